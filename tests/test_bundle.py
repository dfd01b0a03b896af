"""A bundle predicts what the pipeline scores, wherever it is loaded."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import CLASSES, PREPARATION, tiny_bundle, tiny_checkpoint, tiny_store

from components.bundle import BundleMember, bundle_key, load_bundle, read_bundle, write_bundle
from components.files import write_json
from components.predict import predict, read_clips
from components.preparation import prepare_clips
from components.readers import READERS
from components.servable import save_served
from model.checkpoint import build_network, load_checkpoint
from model.ensemble import fuse
from model.errors import UserError
from model.feeding import test_clips as clips_for_test
from model.layouts import load_layout
from model.ntu import RawClip, format_skeleton
from model.score import score_clips
from model.scoretable import ScoreTable
from model.store import Clip, Store, open_store, write_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return tiny_store(tmp_path_factory.mktemp("data") / "store")


@pytest.fixture(scope="module")
def bundle(store: Store) -> Path:
    return tiny_bundle(store.folder.parent / "bundle", store)


def test_scores_are_those_of_the_pipeline(store: Store, bundle: Path) -> None:
    positions = store.split("test")
    tables = []
    for name in ("joint", "bone_motion"):
        checkpoint = load_checkpoint(bundle / f"{name}.pt")
        clips = clips_for_test(store, positions, checkpoint["recipe"], "cpu")
        ids = [store.ids[position] for position in positions]
        scores = score_clips(build_network(checkpoint), clips, 64)
        tables.append(ScoreTable(ids, store.labels[positions], scores, "test", name, store.data_hash, CLASSES))
    expected = fuse(tables, [1.0, 0.5], "tiny").scores

    predictor = load_bundle(bundle, "cpu")
    assert np.array_equal(predictor.score(store, positions, "test").scores, expected)
    scores, labels = predictor.predict([store.clip(position) for position in positions])
    assert np.abs(scores - expected).max() < 1e-6
    assert np.array_equal(labels, expected.argmax(axis=1))


def test_a_clip_alone_scores_as_among_others(store: Store, bundle: Path) -> None:
    """One person alone must still be averaged over the persons of training."""
    predictor = load_bundle(bundle, "cpu")
    together, _ = predictor.predict([store.clip(i) for i in range(4)])
    alone = np.concatenate([predictor.predict([store.clip(i)])[0] for i in range(4)])
    assert np.abs(alone - together).max() < 1e-6
    # Without the person axis, as nested lists, and as one array of equal clips
    assert np.abs(predictor.predict([store.clip(1)[0].tolist()])[0] - together[1]).max() < 1e-6
    assert np.abs(predictor.predict(np.stack([store.clip(2)] * 2))[0] - together[2]).max() < 1e-6


def test_answers_are_plain(store: Store, bundle: Path) -> None:
    clips = [{"id": "a", "joints": store.clip(0)}, store.clip(1), {"id": "a", "joints": store.clip(0)}]
    answers = load_bundle(bundle, "cpu").answer(clips)
    assert [answer["id"] for answer in answers] == ["a", "1", "a#2"]
    assert answers[0]["scores"] == answers[2]["scores"]
    assert all(answer["class"] == CLASSES[answer["label"]] for answer in json.loads(json.dumps(answers)))


def test_key_is_of_the_content_alone(store: Store, bundle: Path, tmp_path: Path) -> None:
    members = [
        BundleMember("joint", bundle / "joint.pt", 1.0, version="models:/x/1"),
        BundleMember("bone_motion", bundle / "bone_motion.pt", 0.5),
    ]
    same = write_bundle(tmp_path / "same", "other name", members, store, PREPARATION, {"commit": "x"}, ["clip0"])
    assert bundle_key(same) == bundle_key(bundle)
    other = write_bundle(tmp_path / "other", "tiny", members[:1], store, PREPARATION)
    assert bundle_key(other) != bundle_key(bundle)
    assert load_bundle(same, "cpu").seen(["clip0", "clip1"]) == 1
    assert load_bundle(bundle, "cpu").seen(["clip0"]) is None


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (np.zeros((1, 4, 25, 3), np.float32), r"clip 0: .*\(1, 4, 25, 3\).*kinect20.*x, y, z"),
        ([[1.0, 2.0], [3.0]], "clip 0: not a full array"),
        ({"id": "mine"}, "clip mine: has no 'joints'"),
        ({"id": "mine", "joints": np.full((1, 4, 20, 3), np.nan)}, "mine: holds NaN"),
        (np.zeros((1, 4, 20, 3)), "0: all joints are zero"),
        (np.ones((1, 0, 20, 3)), "0: an empty clip"),
    ],
)
def test_clips_that_cannot_be_used_are_named(bundle: Path, clip: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_bundle(bundle, "cpu").predict([clip])


def test_damaged_and_foreign_bundles_are_refused(store: Store, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_bundle(tmp_path)
    write_json(tmp_path / "foreign" / "bundle.json", {"format": "other"})
    with pytest.raises(UserError, match="not the description"):
        load_bundle(tmp_path / "foreign")
    copy = write_bundle(tmp_path / "copy", "t", [BundleMember("joint", bundle / "joint.pt")], store, PREPARATION)
    (copy / "joint.pt").write_bytes((bundle / "bone_motion.pt").read_bytes())
    with pytest.raises(UserError, match="joint.pt: missing or not the checkpoint"):
        read_bundle(copy)
    others = tiny_store(tmp_path / "others", layout_name="kinect15")
    with pytest.raises(UserError, match="other joints"):
        load_bundle(bundle, "cpu").score(others, others.split("test"), "test")
    no_classes = {"classes": ["a", "b", "c"]}
    checkpoint = {**load_checkpoint(bundle / "joint.pt"), **no_classes}
    import torch

    torch.save(checkpoint, tmp_path / "other.pt")
    with pytest.raises(UserError, match="other.pt: trained on other classes"):
        write_bundle(tmp_path / "x", "t", [BundleMember("joint", tmp_path / "other.pt")], store, PREPARATION)
    assert not (tmp_path / "x").exists()


def test_preparation_is_that_of_the_store(tmp_path: Path) -> None:
    """Raw clips through the predictor equal prepared clips through the pipeline, at both stored types."""
    generator = np.random.default_rng(3)
    layout = load_layout("nturgb+d")
    raw = [Clip(f"c{i}", i % 3, generator.normal(size=(2, 9, 25, 3)).astype(np.float32)) for i in range(3)]
    steps = [{"name": "normalise_3d", "align_spine": True, "align_shoulder": True}]
    for dtype in ("float32", "float16"):
        folder = tmp_path / dtype
        write_store(
            folder / "store", prepare_clips(raw, steps, layout), layout=layout, classes=CLASSES, splits={},
            channels=["x", "y", "z"], data_hash="d", source="test", dtype=dtype,
        )  # fmt: skip
        store = open_store(folder / "store")
        member = BundleMember("joint", tiny_checkpoint(folder / "joint.pt", store))
        bundle = write_bundle(folder / "bundle", "t", [member], store, {"prepare": steps, "dtype": dtype})
        predictor = load_bundle(bundle, "cpu")
        scores, _ = predictor.predict([clip.joints for clip in raw])
        assert np.array_equal(scores, predictor.score(store, np.arange(3), "all").scores)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"name": "normalize"}, "'normalize' is no step"),
        ({"align_spine": True}, "None is no step"),
        ({"name": "normalise_3d", "align": True}, "no option align; it takes align_spine"),
        ({"name": "normalise_2d"}, "sample c: has no image size"),
    ],
)
def test_preparation_mistakes_are_named(step: dict[str, object], message: str) -> None:
    clip = Clip("c", 0, np.ones((1, 2, 25, 3), np.float32))
    with pytest.raises(UserError, match=message):
        list(prepare_clips([clip], [step], load_layout("nturgb+d")))


def test_files_of_every_form(store: Store, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = load_bundle(bundle, "cpu").predict([store.clip(i) for i in range(3)])[0]
    np.save(tmp_path / "one.npy", store.clip(0))
    np.savez(tmp_path / "some.npz", first=store.clip(1), second=store.clip(2))
    np.savez(tmp_path / "single.npz", joints=store.clip(0))
    annotations = []
    for i in range(3):
        joints = np.array(store.clip(i))
        about = {"frame_dir": f"clip{i}", "label": 0, "total_frames": joints.shape[1]}
        annotations.append({**about, "keypoint": joints})
    with (tmp_path / "set.pkl").open("wb") as stream:
        pickle.dump({"split": {"all": [item["frame_dir"] for item in annotations]}, "annotations": annotations}, stream)
    files = [tmp_path / name for name in ("one.npy", "some.npz", "single.npz", "set.pkl")]
    answers = predict(str(bundle), files, out=tmp_path / "answers.json")
    assert [answer["id"] for answer in answers] == ["one", "some/first", "some/second", "single", *store.ids[:3]]
    scores = np.array([answer["scores"] for answer in answers], np.float32)
    assert np.abs(scores - expected[[0, 1, 2, 0, 0, 1, 2]]).max() < 1e-6
    assert json.loads((tmp_path / "answers.json").read_text()) == answers
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and lines[0].split() == ["clip", "class", "next"] and answers[1]["class"] in lines[2]
    assert json.loads(_printed(capsys, str(bundle), files[:1])) == answers[:1]


def _printed(capsys: pytest.CaptureFixture[str], uri: str, files: list[Path]) -> str:
    predict(uri, files, as_json=True)
    return capsys.readouterr().out


def test_raw_skeleton_files_score_as_in_the_pipeline(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    raw = tmp_path / "raw"
    raw.mkdir()
    names = [f"S001C001P001R001A{action:03d}" for action in (1, 2, 3)]
    for name in names:
        frames = generator.normal(size=(20, 25, 3)) * (0.1, 0.5, 0.1) + (0, 0, 3)
        clip = RawClip(name, np.ones(20, np.int64), ("7",) * 20, frames.astype(np.float32))  # type: ignore[arg-type]
        (raw / f"{name}.skeleton").write_bytes(format_skeleton(clip))
    steps = [{"name": "normalise_3d"}]
    source = READERS["ntu_raw"](raw)
    write_store(
        tmp_path / "store", prepare_clips(source.clips, steps, source.layout), layout=source.layout,
        classes=source.classes, splits=source.splits, channels=source.channels, data_hash="d", source="ntu_raw",
    )  # fmt: skip
    store = open_store(tmp_path / "store")
    member = BundleMember("joint", tiny_checkpoint(tmp_path / "joint.pt", store))
    bundle = write_bundle(tmp_path / "bundle", "t", [member], store, {"prepare": steps, "options": {}})
    answers = predict(str(bundle), [raw])
    assert [answer["id"] for answer in answers] == names == store.ids
    expected = load_bundle(bundle, "cpu").score(store, np.arange(3), "all").scores
    assert np.abs(np.array([answer["scores"] for answer in answers]) - expected).max() < 1e-6


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.npy", None, "none.npy: no such file"),
        ("clip.txt", b"x", "clip.txt: holds none of"),
        ("clip.npy", b"not numpy", "clip.npy: not a readable array"),
        ("clip.npz", b"PK\x03\x04 cut", "clip.npz: not a readable .npz"),
        ("S001C001P001R001A001.skeleton", b"1\r\n", "takes the layout 'kinect20'"),
    ],
)
def test_files_that_cannot_be_used_are_named(
    bundle: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_clips(tmp_path / name, read_bundle(bundle))


@pytest.mark.parametrize("uri", ["missing", "file:///missing", "models:/no-such-model@champion"])
def test_models_that_are_not_there_are_named(
    uri: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=uri):
        predict(uri, [tmp_path / "clip.npy"])


def test_served_model_needs_no_repository(store: Store, bundle: Path, tmp_path: Path) -> None:
    """MLflow loads the model in a process that cannot import this project, from the code logged with it."""
    save_served(bundle, tmp_path / "served")
    requirements = (tmp_path / "served" / "requirements.txt").read_text().split()
    assert [line.split("==")[0] for line in requirements] == ["torch", "numpy", "mlflow", "pydantic", "pyyaml"]
    assert not any("+" in line for line in requirements)  # a local build label is on no index
    np.savez(tmp_path / "clips.npz", *[store.clip(i) for i in range(3)])
    code = f"""
import importlib.util, json, sys
root = {str(Path(__file__).resolve().parent.parent)!r}
sys.path[:] = [entry for entry in sys.path if entry != root]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
assert importlib.util.find_spec("components") is None and importlib.util.find_spec("model") is None
import numpy, mlflow.pyfunc
model = mlflow.pyfunc.load_model("served")
clips = numpy.load("clips.npz")
answers = model.predict([{{"id": name, "joints": clips[name].tolist()}} for name in clips.files])
import components
assert not components.__file__.startswith(root), components.__file__
print("ANSWERS", json.dumps(answers))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MLFLOW"))}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.split("ANSWERS")[1])
    expected = load_bundle(bundle, "cpu").predict([store.clip(i) for i in range(3)])[0]
    assert np.abs(np.array([answer["scores"] for answer in answers]) - expected).max() < 1e-6
    assert "UserWarning" not in done.stderr
