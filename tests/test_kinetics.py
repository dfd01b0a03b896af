"""The reader of Kinetics: a table of contents joined with key points in files of their own."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.readers import READERS
from components.source import Source
from model.errors import UserError

read_kinetics = READERS["kinetics"]
FRAMES = {"a": [0, 0, 3], "b": [1, 2, 2, 2, 5], "c": [4]}


def bodies(name: str) -> np.ndarray:
    count = len(FRAMES[name])
    return np.random.RandomState(ord(name)).rand(count, 17, 3).astype(np.float16) + 1


def folder_of(place: Path, form: str = "raw_file", **changes: Any) -> Path:
    """Three videos; PYSKL's form has them in two files, MMAction2's in one file each."""
    samples = []
    for label, (name, frames) in enumerate(FRAMES.items()):
        sample: dict[str, Any] = {
            "frame_dir": name,
            "label": label,
            "total_frames": 8,
            "frame_inds": np.array(frames, np.int16),
            "box_score": np.linspace(0.95, 0.55, len(frames)).astype(np.float16),
            "valid": {0.5: len(set(frames)), 0.9: 1},
            "img_shape": (240, 320),
        }
        if form == "raw_file":
            sample["raw_file"] = "/author/kpfiles/" + ("second.pkl" if name == "b" else "first.pkl")
        samples.append({**sample, **changes.get(name, {})})
    split = {"train": ["a", "b"], "val": ["c"]}
    (place / "kpfiles").mkdir(parents=True)
    (place / "toc.pkl").write_bytes(pickle.dumps({"split": split, "annotations": samples}, 4))
    entries = {name: {"keypoint": bodies(name)} for name in FRAMES}
    if form == "raw_file":
        files: dict[str, Any] = {"first": {name: entries[name] for name in "ac"}, "second": {"b": entries["b"]}}
    else:
        files = entries
    for name, content in files.items():
        (place / "kpfiles" / f"{name}.pkl").write_bytes(pickle.dumps(content, 4))
    return place


def clips_of(source: Source) -> dict[str, np.ndarray]:
    return {clip.id: clip.joints for clip in source.clips}


@pytest.mark.parametrize("form", ["raw_file", "one each"])
def test_bodies_are_joined_and_unpacked(tmp_path: Path, form: str) -> None:
    source = read_kinetics(folder_of(tmp_path, form))
    assert source.channels == ["x", "y", "score"] and source.layout.name == "coco"
    found = clips_of(source)
    assert {name: joints.shape for name, joints in found.items()} == {
        "a": (2, 2, 17, 3),
        "b": (3, 3, 17, 3),
        "c": (1, 1, 17, 3),
    }
    np.testing.assert_array_equal(found["b"][:, 1], bodies("b")[1:4])
    np.testing.assert_array_equal(found["a"][0], bodies("a")[[0, 2]])
    assert source.splits == {"train": ["a", "b"], "val": ["c"]} and not source.excluded


def test_files_are_read_once_each_and_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from components import kinetics

    read: list[str] = []
    real = kinetics.load_pickle
    monkeypatch.setattr(kinetics, "load_pickle", lambda path: read.append(path.name) or real(path))
    assert list(clips_of(read_kinetics(folder_of(tmp_path)))) == ["a", "c", "b"]
    assert read == ["first.pkl", "second.pkl"]


def test_options_of_unpacking(tmp_path: Path) -> None:
    place = folder_of(tmp_path)
    loose = clips_of(read_kinetics(place, squeeze=False, max_persons=2))
    assert loose["b"].shape == (2, 8, 17, 3)
    surest = bodies("b")[1:4][np.argsort(-bodies("b")[1:4, :, 2].sum(-1))[:2]]
    np.testing.assert_array_equal(loose["b"][:, 2], surest)


def test_ratio_leaves_out_videos_and_unsure_boxes(tmp_path: Path) -> None:
    source = read_kinetics(folder_of(tmp_path), valid_ratio=0.2, box_threshold=0.5)
    assert set(clips_of(source)) == {"a", "b"} and source.splits == {"train": ["a", "b"], "val": []}
    assert source.excluded == [("c", "fewer than 0.2 of its frames hold a box of 0.5")]
    unsure = read_kinetics(tmp_path, valid_ratio=0.1, box_threshold=0.9)
    assert clips_of(unsure)["b"].shape == (1, 1, 17, 3)  # one of five boxes is that sure


def test_a_broken_video_is_set_aside_or_ends_the_run(tmp_path: Path) -> None:
    place = folder_of(tmp_path, b={"frame_inds": np.array([1, 2, 2, 2], np.int16)})
    source = read_kinetics(place)
    assert set(clips_of(source)) == {"a", "c"} and source.splits["train"] == ["a"]
    assert "'keypoint' of b has shape (5, 17, 3); it must hold 4 bodies" in source.excluded[0][1]
    with pytest.raises(UserError, match="must hold 4 bodies"):
        clips_of(read_kinetics(place, strict=True))


def test_missing_files_and_fields_are_named(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "files")
    (place / "kpfiles" / "second.pkl").unlink()
    with pytest.raises(UserError, match="second.pkl: no such file of key points"):
        read_kinetics(place)
    place = folder_of(tmp_path / "valid", a={"valid": None})
    with pytest.raises(UserError, match="sample a: has no 'valid'"):
        read_kinetics(place, valid_ratio=0.5)
    place = folder_of(tmp_path / "frames", a={"frame_inds": np.array([0, 0, 8], np.int16)})
    with pytest.raises(UserError, match="sample a: 'frame_inds' goes to 8 of 8 frames"):
        clips_of(read_kinetics(place, strict=True))


MEASURED = """
import sys
from benchmarks.machine import resident_peak_gib
from components.readers import READERS
from model.store import write_store

source = READERS["kinetics"](sys.argv[1])
begun = resident_peak_gib()
write_store(
    sys.argv[2], source.clips, layout=source.layout, classes=source.classes, splits=source.splits,
    channels=source.channels, data_hash="", source="kinetics",
)
print(resident_peak_gib() - begun)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_is_that_of_a_file_and_not_of_all(tmp_path: Path) -> None:
    files, boxes, unused = 25, 100, 30_000
    (tmp_path / "kpfiles").mkdir()
    samples = []
    for number in range(files):
        name = f"video{number}"
        content = {name: {"keypoint": np.ones((boxes, 17, 3), np.float16)}}
        # Most of a file is for others, as where a set is cut down.
        content["other"] = {"keypoint": np.full((unused, 17, 3), number, np.float16)}
        sample = {"frame_dir": name, "label": number % 2, "total_frames": boxes, "raw_file": f"{number}.pkl"}
        inds = {"frame_inds": np.arange(boxes, dtype=np.int16), "box_score": np.ones(boxes, np.float16)}
        samples.append({**sample, **inds, "img_shape": (240, 320)})
        (tmp_path / "kpfiles" / f"{number}.pkl").write_bytes(pickle.dumps(content, 4))
    ids = [sample["frame_dir"] for sample in samples]
    (tmp_path / "toc.pkl").write_bytes(pickle.dumps({"split": {"train": ids}, "annotations": samples}, 4))
    total = sum(file.stat().st_size for file in (tmp_path / "kpfiles").iterdir())
    command = [sys.executable, "-c", MEASURED, str(tmp_path), str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) * 1024**3 < 0.5 * total, (done.stdout, total)
