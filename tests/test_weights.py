"""Members that start from given weights: tested as they are, fine-tuned, and ordinary in everything after."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_run import CLASSES, annotations, small_params, write_params, write_raw
from test_heatmap_members import planar, planar_params

from components.params import load_params, parse_params
from components.storage import file_md5
from components.tracking import connect
from model import create_model
from model.checkpoint import load_checkpoint, network_card, publish
from model.errors import UserError
from model.layouts import load_layout
from model.reference import to_original
from pipeline.cli import main

OPTIONS = {"base_channels": 8, "num_stages": 2, "inflate_stages": [2], "down_stages": [2]}
KIND = {"model": "stgcnpp", "stream": "joint"}


def original(path: Path, classes: int) -> None:
    """An original checkpoint of a small network for the six joints."""
    torch.manual_seed(3)
    net = create_model("stgcnpp", layout=load_layout("raw/small.json"), num_classes=classes, **OPTIONS)
    torch.save({"state_dict": to_original(net, net.state_dict()), "meta": {"epoch": 9}}, path)


def imported(classes: int, name: str) -> None:
    """The same as ours, `weights/<name>.pt` and models:/<name>/1."""
    original(Path(f"{name}.pth"), classes)
    options = ["--options", *(f"{key}={value}" for key, value in OPTIONS.items())]
    network = ["--model", "stgcnpp", "--layout", "raw/small.json", "--classes", str(classes)]
    assert main(["checkpoint", "import", f"{name}.pth", *network, *options]) == 0


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Path:
    """A workspace with the small dataset packed, and weights of three and of five classes imported."""
    folder = tmp_path_factory.mktemp("prepared")
    shutil.copy(database, folder)
    write_raw(folder / "raw", annotations())
    write_params(folder, small_params())
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        environment.chdir(folder)
        assert main(["preprocess", "--raw", "raw", "--out", "packed"]) == 0
        imported(3, "three")
        imported(5, "five")
    return folder


@pytest.fixture()
def place(tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the prepared workspace."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def with_members(place: Path, **members: dict[str, Any]) -> None:
    ensembles = {"two": {"members": dict.fromkeys(members, 1)}}
    write_params(place, small_params(members=members, ensembles=ensembles))


def run_member(name: str, *options: str) -> None:
    folder = f"runs/{name}"
    assert main(["train", "--member", name, "--data", "packed", "--out", f"{folder}/train", *options]) == 0
    trained = ["--trained", f"{folder}/train", "--out", f"{folder}/scores"]
    assert main(["evaluate", "--member", name, "--data", "packed", *trained]) == 0


def test_the_whole_path_with_given_weights(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_members(
        place,
        tested={**KIND, "train": "none", "weights": "weights/three.pt", "weights_md5": file_md5("weights/three.pt")},
        tuned={**KIND, "seed": 1, "train": "finetune", "weights": "models:/five/1"},
    )
    run_member("tested")
    run_member("tuned")
    said = capsys.readouterr().err
    assert "tuned: starts from models:/five/1" in said and "a new head for 3 classes in place of 5: fc.weight" in said

    given, ours = (load_checkpoint(path) for path in ("weights/three.pt", "runs/tested/train/best.pt"))
    assert all(torch.equal(ours["state"][key], value) for key, value in given["state"].items())
    assert ours["classes"] == CLASSES and ours["data_hash"] and ours["epoch"] == 9
    assert json.loads(Path("runs/tested/train/history.json").read_text()) == []
    assert Path("runs/tested/train/last.pt").read_bytes() == Path("runs/tested/train/best.pt").read_bytes()
    facts = json.loads(Path("runs/tested/train/train.json").read_text())
    assert facts["epochs"] == 0 and facts["weights"].startswith("starts from weights/three.pt (md5 ")

    tuned = load_checkpoint("runs/tuned/train/last.pt")
    assert tuned["epoch"] == 2 and tuned["state"]["fc.weight"].shape[0] == 3
    assert len(json.loads(Path("runs/tuned/train/history.json").read_text())) == 2

    assert main(["ensemble", "--runs", "runs", "--out", "fused"]) == 0
    rest = ["--data", "packed", "--runs", "runs", "--ensembles", "fused"]
    assert main(["report", *rest, "--out", "page"]) == 0
    assert main(["register", *rest, "--out", "registered.json"]) == 0
    registered = json.loads(Path("registered.json").read_text())
    assert set(registered["members"]) == {"tested", "tuned"} and registered["champion"] == "1"
    client = connect(place).client
    experiment = client.get_experiment_by_name("small/development").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert runs["stgcnpp/joint/s0"].data.params["member.weights"] == "weights/three.pt"
    assert "test/top1" in runs["stgcnpp/joint/s0"].data.metrics

    # Another version cannot take the place of a champion by clips that the given weights may have seen.
    with_members(place, tuned={**KIND, "seed": 1, "train": "finetune", "weights": "models:/five/1"})
    assert main(["ensemble", "--runs", "runs", "--out", "fused"]) == 0
    assert main(["register", *rest, "--out", "registered.json"]) == 0
    message = json.loads(Path("registered.json").read_text())["message"]
    assert "stays the champion" in message and "tuned started from weights that may have seen" in message


def test_fine_tuning_begins_with_the_weights(place: Path) -> None:
    from components.train import prepare_job
    from model.store import open_store

    with_members(place, tuned={**KIND, "train": "finetune", "weights": "weights/five.pt"})
    job, given = prepare_job(load_params(), "tuned", open_store("packed"), "cpu")
    state, start = job["net"].state_dict(), load_checkpoint("weights/five.pt")["state"]
    assert {k for k in state if state[k].shape != start[k].shape} == {"fc.weight", "fc.bias"}
    assert all(torch.equal(state[k], start[k]) for k in state if not k.startswith("fc."))
    assert given is not None and given.md5 == file_md5("weights/five.pt")
    # A new head is drawn from the member's seed.
    other, _ = prepare_job(load_params(), "tuned", open_store("packed"), "cpu")
    assert torch.equal(other["net"].fc.weight, job["net"].fc.weight)


def test_other_weights_train_anew(place: Path) -> None:
    """A changed file of the same name neither goes on from the former one's working checkpoints nor clashes."""
    with_members(place, tuned={**KIND, "train": "finetune", "weights": "weights/mine.pt"})
    shutil.copy("weights/three.pt", "weights/mine.pt")
    run_member("tuned")
    first = load_checkpoint("runs/tuned/train/last.pt")["state"]
    shutil.copy("weights/five.pt", "weights/mine.pt")
    run_member("tuned")
    second = load_checkpoint("runs/tuned/train/last.pt")["state"]
    assert not torch.equal(first["fc.weight"], second["fc.weight"])


def test_evaluate_takes_a_file_directly(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_members(place, own={**KIND})
    assert (
        main(["evaluate", "--member", "own", "--data", "packed", "--checkpoint", "weights/three.pt", "--out", "scores"])
        == 0
    )
    assert "own, a_test: top-1 " in capsys.readouterr().out
    with_members(place, own={**KIND, "train": "none", "weights": "models:/three/1"})
    run_member("own")
    for split in ("a_test", "development"):
        given, path = (np.load(f"{folder}/best-{split}.npz") for folder in ("scores", "runs/own/scores"))
        assert np.array_equal(given["scores"], path["scores"])


def test_heat_maps_are_fine_tuned_as_posec3d_from_kinetics(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pixels of another data set, other classes: everything but the classifier is taken over."""
    write_raw(place / "flat", planar(annotations()))
    network = {"base_channels": 4, "stage_blocks": (1, 1, 1)}
    torch.manual_seed(3)
    net = create_model("posec3d", layout=load_layout("flat/small.json"), num_classes=5, **network)
    torch.save({"state_dict": to_original(net, net.state_dict())}, "kinetics.pth")
    line = ["kinetics.pth", "--model", "posec3d", "--layout", "flat/small.json", "--classes", "5"]
    assert main(["checkpoint", "import", *line, "--options", "base_channels=4", "stage_blocks=[1, 1, 1]"]) == 0
    given = {"model": "posec3d", "stream": "keypoint", "weights": "weights/kinetics.pt"}
    content = planar_params(epochs=1)
    content["members"] = {"tuned": {**given, "train": "finetune"}}
    content["ensembles"] = {"all": {"members": {"tuned": 1}}}
    write_params(place, content)
    assert main(["preprocess", "--raw", "flat", "--out", "packed"]) == 0
    run_member("tuned")
    assert "a new head for 3 classes in place of 5: fc.weight, fc.bias" in capsys.readouterr().err
    start, end = (load_checkpoint(path)["state"] for path in ("weights/kinetics.pt", "runs/tuned/train/last.pt"))
    assert end["fc.weight"].shape == (3, 64)
    for key in (key for key, value in start.items() if value.dim() == 5):
        # A short training moves kernels a little; other ones would be far apart.
        assert 0 < (end[key] - start[key]).norm() < 0.5 * start[key].norm(), key


@pytest.mark.parametrize(
    ("options", "words"),
    [([], "--trained, or a file with --checkpoint"), (["--trained", "x", "--checkpoint", "y"], "not both")],
)
def test_evaluate_needs_one_source(place: Path, options: list[str], words: str, capsys: Any) -> None:
    assert main(["evaluate", "--member", "joint", "--data", "packed", "--out", "scores", *options]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("member", "words"),
    [
        ({"weights": "weights/gone.pt"}, "members.own.weights: weights/gone.pt: no such file"),
        ({"weights": "weights/three.pt", "weights_md5": "0" * 32}, "fetch the file again"),
        ({"weights": "three.pth"}, "sixstream checkpoint import"),
        ({"weights": "weights/five.pt"}, "knows 5 classes (class 0, …), the data have 3 (still, …)"),
        ({"weights": "weights/three.pt", "model": "stgcn"}, "another network than the member: stgcnpp, not stgcn"),
        ({"weights": "weights/ntu.pt"}, "another joints than the member"),
        ({"weights": "weights/flat.pt"}, "another number of channels than the member: 2, not 3"),
        ({"weights": "weights/named.pt"}, "knows 3 classes (still, …)"),
        ({"weights": "weights/three.pt", "network": {"base_channels": 16}}, "members.own.network: with"),
        ({"weights": "models:/nobody/1"}, "models:/nobody/1: cannot be fetched"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    place: Path, capsys: pytest.CaptureFixture[str], member: dict[str, Any], words: str
) -> None:
    for name, layout, channels, classes in (
        ("ntu", "nturgb+d", 3, ["a", "b", "c"]),
        ("flat", "raw/small.json", 2, ["a", "b", "c"]),
        ("named", "raw/small.json", 3, ["still", "wave", "jump"]),
    ):
        skeleton = load_layout(layout)
        net = create_model("stgcnpp", layout=skeleton, num_classes=3, in_channels=channels, **OPTIONS)
        card = network_card(
            "stgcnpp", layout=skeleton, in_channels=channels, options=OPTIONS, recipe={}, classes=classes, data_hash=""
        )
        publish(f"weights/{name}.pt", card, net.state_dict(), 1)
    with_members(place, own={**KIND, "train": "none", **member})
    assert main(["train", "--member", "own", "--data", "packed", "--out", "trained"]) == 2
    assert words in capsys.readouterr().err and not Path("trained").exists()


@pytest.mark.parametrize(
    ("member", "words"),
    [
        ({"train": "none"}, "members.own: train: none needs weights"),
        ({"train": "finetune"}, "members.own: train: finetune needs weights"),
        ({"weights": "x.pt"}, "members.own: weights are named, but train: scratch does not use them"),
        ({"train": "never", "weights": "x.pt"}, "members.own.train: Input should be 'scratch', 'finetune' or 'none'"),
    ],
)
def test_parameters_that_contradict_each_other_are_refused(member: dict[str, Any], words: str) -> None:
    members = {"own": {**KIND, **member}}
    with pytest.raises(UserError, match=words):
        parse_params(small_params(members=members, ensembles={"two": {"members": {"own": 1}}}), "params.yaml")
