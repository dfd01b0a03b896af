"""Given weights by a recipe's protocol, beside the published figures."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_run import annotations, write_raw

from components.files import write_json
from components.storage import file_md5
from model.errors import UserError
from model.nets import create_model
from model.reference import to_original
from pipeline import catalogue
from pipeline.cli import main
from pipeline.reproduce import comparison, member_figures, with_weights
from pipeline.workspace import ROOT

NETWORK = {"base_channels": 16, "num_stages": 2, "inflate_stages": [2], "down_stages": [2], "num_prototypes": 4}
RECIPE: dict[str, Any] = {
    "model": "protogcn",
    "classes": 3,
    "clips": [24, 12],
    "protocol": "published",
    "members": ["joint-s0", "bone-s0", "joint-s1"],
    "ensembles": {"two": {"joint-s0": 2, "bone-s0": 1}, "twice": {"joint-s0": 1, "joint-s1": 1}},
    "published": {"joint": 0.0, "bone": 0.0, "two": 0.0, "twice": 50.0},
    "data": {"prepare": [{"name": "normalise_3d"}]},
    "split": {"name": "a", "train": "a_train", "test": ["a_test"]},
    "recipe": {"clip_length": 12, "test_clips": 2, "persons": 1, "network": {"protogcn": NETWORK}},
}


@pytest.fixture()
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A catalogue with the one recipe `tiny/small`; a function that writes it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(catalogue, "FOLDER", tmp_path / "recipes")
    (tmp_path / "recipes").mkdir()
    write_raw(tmp_path / "raw", annotations())

    def write(**changes: Any) -> None:
        recipe = {**RECIPE, "layout": str(tmp_path / "raw" / "small.json"), **changes}
        (tmp_path / "recipes" / "tiny.yaml").write_text(yaml.safe_dump({"tiny/small": recipe}))
        catalogue._files.cache_clear()

    yield write
    catalogue._files.cache_clear()


def untrained() -> Any:
    torch.manual_seed(0)
    net = create_model("protogcn", layout="raw/small.json", num_classes=3, in_channels=3, **NETWORK)
    net(torch.randn(8, 1, 12, 6, 3))  # moves the statistics of the norms
    return net


def test_given_weights_are_tested_and_compared(
    recipes: Any, tmp_path: Path, database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes()
    (tmp_path / "place").mkdir()
    for folder in (tmp_path, tmp_path / "place"):
        shutil.copy(database, folder)
    net = untrained()
    torch.save({"state_dict": to_original(net, net.state_dict())}, tmp_path / "bone.pth")
    command = ["reproduce", "tiny/small", "--checkpoints", "bone=bone.pth", "--data", "raw"]
    assert main([*command, "--folder", "place"]) == 1  # some clip is right, and 0 % is what is published
    printed = capsys.readouterr().out
    assert "not as released" not in printed
    assert "joint            -       0.00              not tested" in printed and "within 0.1 points" in printed

    found = json.loads((tmp_path / "place/ensembles/small/published/metrics.json").read_text())
    ours = 100 * found["members"]["protogcn-bone-s0"]["best"]["a_test"]["top1"]
    recipes(published={"bone": round(ours, 2), "two": 50.0})
    # The same folder, as a run of one's own.
    assert main(["reproduce", "tiny/small", "--folder", "place"]) == 0
    assert "at most 0.5 points below" in capsys.readouterr().out
    recipes(published={"bone": ours + 3})
    assert main(["reproduce", "tiny/small", "--folder", "place"]) == 1
    assert main(["reproduce", "tiny/small", "--folder", "place", "--tolerance", "4"]) == 0


def test_members_with_a_checkpoint_and_their_fusions_are_kept(recipes: Any, tmp_path: Path) -> None:
    recipes()
    for name in ("joint", "bone"):
        (tmp_path / f"{name}.pt").write_text(name)
    content = with_weights("tiny/small", ["joint=joint.pt", "bone-s0=bone.pt"], tmp_path / "raw", tmp_path / "kept")
    assert list(content["members"]) == ["protogcn-joint-s0", "protogcn-bone-s0"]
    assert content["ensembles"] == {"two": {"members": {"protogcn-joint-s0": 2, "protogcn-bone-s0": 1}}}
    member = content["members"]["protogcn-bone-s0"]
    assert (member["train"], Path(member["weights"]).read_text()) == ("none", "bone")
    assert member["weights_md5"] == file_md5(tmp_path / "bone.pt")


def test_mistakes_are_named(recipes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipes()
    for arguments, words in (
        (["--checkpoints", "elbow=joint.pt", "--data", "raw"], "write one of joint-s0, bone-s0, joint-s1"),
        (["--checkpoints", "joint=nowhere.pt", "--data", "raw"], "nowhere.pt: no such checkpoint"),
        (["--checkpoints", "joint=nowhere.pt"], "--data : name the folder with the annotations of tiny/small"),
        (["--folder", "nowhere"], "nowhere/params.yaml: no such file"),
    ):
        assert main(["reproduce", "tiny/small", *arguments]) == 2
        assert words in capsys.readouterr().err
    content = catalogue.params_of("tiny/small")
    content["datasets"]["small"]["recipe"].pop("released")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    assert main(["reproduce", "tiny/small"]) == 2
    assert "'small' follows no released recipe, not tiny/small" in capsys.readouterr().err
    recipes(published={})
    with pytest.raises(UserError, match="no figures were published"):
        from pipeline.reproduce import reproduce

        reproduce("tiny/small")


def test_bounds_of_a_comparison(recipes: Any) -> None:
    recipes(published={"joint": 91.54}, metric="mean_class")
    recipe = catalogue.released("tiny/small")

    def verdict(mean_class: float, both_ways: bool) -> bool:
        entry = {"chosen": "best", "best": {"a_test": {"top1": 0.0, "mean_class": mean_class}}}
        ours = member_figures(recipe, {"members": {"protogcn-joint-s0": entry}, "ensembles": {}}, "a_test")
        lines, passed = comparison(recipe, ours, 0.1, both_ways=both_ways)
        assert lines[0].startswith("mean class")
        return passed

    assert verdict(0.9144, True) and verdict(0.9164, True)
    assert not verdict(0.9143, True) and not verdict(0.9143, False)
    assert not verdict(0.9166, True) and verdict(0.9166, False)
    lines, passed = comparison(recipe, {}, 9, both_ways=True)
    assert lines[1].endswith("not tested") and not passed


def test_pre_training_is_compared_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load((ROOT / "params.yaml").read_text()) | catalogue.params_of("umurl/ntu60-xview")
    content["umurl"]["pretrain"]["epochs"] = 20
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    place = tmp_path / "unsupervised" / "ntu60-xview" / "published"
    linear = {"chosen": "best_on_test", "best_on_test": {"xview_val": {"top1": 0.91}}}
    write_json(place / "linear" / "metrics.json", {"umurl": linear})
    write_json(place / "retrieval" / "metrics.json", {"umurl": {"xview_val": {"top1": 0.88}}})
    assert main(["reproduce", "umurl/ntu60-xview"]) == 1  # 88.9 is published of retrieval
    printed = capsys.readouterr().out
    assert "linear" in printed and "+0.10  pass" in printed and "-0.90  fail" in printed
    assert "not as released: pretrain" in printed
    assert main(["reproduce", "umurl/ntu60-xview", "--checkpoints", "a=b"]) == 2
