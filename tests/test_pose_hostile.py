"""Broken and hostile pose files: each is refused with its name, or set aside, and never more than a message."""

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pose_files import IDS, poses, write_coco, write_labels, write_mediapipe, write_openpose, write_table

from components import npy, pose_json, pose_table
from components.npy import parse_npy, parse_npz
from components.readers import READERS
from model.errors import UserError
from model.layouts import load_layout

NAN = {"x": float("nan"), "y": 0, "z": 0}
BODY = [1.0, 2.0, 0.5] * 17


def outcome(reader: str, folder: Path, **options) -> tuple[int, str]:
    """(number of clips, everything that was said): readers end in clips and messages, never in another error."""
    try:
        source = READERS[reader](folder, **options)
        clips = list(source.clips)
    except UserError as error:
        return 0, str(error)
    assert all(np.isfinite(clip.joints).all() and clip.joints.size for clip in clips)
    return len(clips), " ".join(reason for _, reason in source.excluded)


def refused(reader: str, folder: Path, name: str, message: str = "") -> None:
    count, said = outcome(reader, folder)
    assert count == 0 and name in said and message in said, said


DEEP = b"[" * 100_000 + b"]" * 100_000
TEXTS = {
    "empty": (b"", "not a JSON file"),
    "truncated": (b'[{"keypoints": [1, 2', "not a JSON file"),
    "not UTF-8": (b'[{"image_id": "\xff\xfe"}]', "not a JSON file"),
    "deep": (DEEP, "not a JSON file"),
    "digits": (b"[" + b"9" * 10_000 + b"]", ""),
    "wrong kind": (b'{"people": 3, "annotations": 4, "images": 5, "frames": 6}', "must"),
    "number": (b"7", "must be"),
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    ("reader", "name"), [("openpose", "wave_1_0_keypoints.json"), ("coco", "wave_1.json"), ("mediapipe", "wave_1.json")]
)
def test_texts_that_are_no_poses(tmp_path, reader, name, text):
    write_labels(tmp_path)
    content, message = TEXTS[text]
    (tmp_path / name).write_bytes(content)
    refused(reader, tmp_path, name, "" if reader == "openpose" else message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"image_id": 0, "keypoints": [*BODY[:-1], float("nan")]}], "NaN or infinity"),
        ([{"image_id": 0, "keypoints": [1e300, *BODY[1:]]}], "NaN or infinity"),
        ([{"image_id": 0, "keypoints": [*BODY[:-1], -1]}], "negative score"),
        ([{"image_id": 0, "keypoints": [10**400, *BODY[1:]]}], "as numbers"),
        ([{"image_id": 0, "keypoints": BODY[:-1]}], "as numbers"),
        ([{"image_id": 0, "keypoints": BODY[:-3]}], "16 joints"),
        ([{"image_id": 0, "keypoints": "x"}], "as numbers"),
        ([{"image_id": -1, "keypoints": BODY}], "'image_id' is -1"),
        ([{"image_id": 0, "keypoints": BODY}, {"image_id": 10**12, "keypoints": BODY}], "frames go from 0"),
        ([{"image_id": 0, "keypoints": BODY}] * 300, "a frame has 300 bodies"),
        ([{"frame_id": 0, "instances": 3}], "'instances' must be a list"),
        ({"images": [{"id": 1}], "annotations": [{"image_id": 2, "keypoints": BODY}]}, "the image 2"),
        ({"images": [{"id": [1]}], "annotations": []}, "no 'id'"),
        ({"images": [{"id": 1, "height": -4, "width": 3}], "annotations": []}, "not (height, width)"),
        ({"images": [{"id": 1, "height": "a", "width": 3}], "annotations": []}, "not (height, width)"),
        ({"images": [], "annotations": []}, "poses are not there"),
    ],
)
def test_coco_that_is_not_what_it_says(tmp_path, content, message):
    write_labels(tmp_path, [["clip", "label"], ["a", "wave"]])
    (tmp_path / "a.json").write_text(json.dumps(content))
    refused("coco", tmp_path, "a", message)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([[NAN] * 33], "NaN or infinity"),
        ([[{"x": 1, "y": 2}] * 32], "32 landmarks, not 33"),
        ([[{"x": 1}] * 33], "as numbers"),
        ([[{"x": "far", "y": 1}] * 33], "as numbers"),
        ([3], "list of landmarks"),
        ([[3]], "as numbers"),
        ([], "holds no frame"),
        ([None, []], "all joints are zero"),
    ],
)
def test_landmarks_that_are_not_what_they_say(tmp_path, frames, message):
    write_labels(tmp_path)
    (tmp_path / "wave_1.json").write_text(json.dumps(frames))
    refused("mediapipe", tmp_path, "wave_1", message)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("wave_1,0,0,nose,nan,1", "not numbers"),
        ("wave_1,0,0,nose,1,-inf", "not numbers"),
        ("wave_1,0,0,nose,1,1e99", "not numbers"),
        ("wave_1,0,0,nose,one,1", "not numbers"),
        ("wave_1,-3,0,nose,1,1", "the frame is '-3'"),
        ("wave_1,1.5,0,nose,1,1", "the frame is '1.5'"),
        ("wave_1,0,0,tail,1,1", "'tail' is no joint"),
        ("wave_1,0,0,-1,1,1", "'-1' is no joint"),
        ("wave_1,0,0,99,1,1", "'99' is no joint"),
        ("wave_1,0,0,nose,1", "has 5 values, not 6"),
        ('wave_1,0,0,"nose,1,1', "not a row"),
        ("wave_1,0,0,nose,1,1\nwave_1,0,0,nose,1,1", "there already"),
        ("wave_1,0,0,nose,1,1\nwave_1,999999999999,0,nose,1,1", "frames go from 0"),
        ("x" * 1_000_000, "is longer than"),
        ("wave_1,0,0,\x00,1,1", ""),
    ],
)
def test_rows_that_are_no_poses(tmp_path, row, message):
    write_labels(tmp_path)
    (tmp_path / "poses.csv").write_text(f"clip,frame,person,joint,x,y\n{row}\n")
    count, said = outcome("table", tmp_path, layout="coco")
    assert count == 0 and message in said, said


@pytest.mark.parametrize("names", ["clip,fr\rame,person,joint,x,y", 'clip,"frame,person,joint,x,y'])
def test_a_line_of_names_that_is_no_row(tmp_path, names):
    write_labels(tmp_path)
    (tmp_path / "poses.csv").write_bytes(f"{names}\nwave_1,0,0,nose,1,1\n".encode())
    refused("table", tmp_path, "poses.csv, line 1", "not a row of a table")


def test_a_clip_of_a_table_is_bounded(tmp_path, monkeypatch):
    write_table(tmp_path, list(load_layout("penn13").joints), ["x", "y"])
    monkeypatch.setattr(pose_table, "MAX_ROWS", 80)
    count, said = outcome("table", tmp_path)
    assert 0 < count < 4 and "poses.csv" in said and "'kick_2' has more than 80 rows" in said


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"wave_1,0,0,nose", "has 4 values, not 6"),
        (b'wave_1,0,0,"nose,1,1', "not a row of a table"),
        (b"wave_1,0,0,nose,\xff,1", "is not text in UTF-8"),
        (b"wave_1," + b"0" * 3_000_000, "is longer than"),
        (b"wave_1,0,0,head,far,1", "not numbers"),
        (b"wave_1,0,0,tail,1,1", "is no joint"),
    ],
)
def test_a_bad_row_sets_aside_its_clip_alone(tmp_path, line, message):
    write_table(tmp_path, list(load_layout("penn13").joints), ["x", "y"])
    lines = (tmp_path / "poses.csv").read_bytes().splitlines()
    place = next(i for i, text in enumerate(lines) if text.startswith(b"wave_1")) + 20
    (tmp_path / "poses.csv").write_bytes(b"\n".join([*lines[:place], line, *lines[place:]]))
    source = READERS["table"](tmp_path, layout="penn13")
    assert sorted(clip.id for clip in source.clips) == sorted(set(IDS) - {"wave_1"})
    ((id, reason),) = source.excluded
    assert id == "wave_1" and f"line {place + 1}" in reason and message in reason
    if b"far" not in line and b"tail" not in line:  # joints and channels are those of the first clip that is whole
        assert len(list(READERS["table"](tmp_path).clips)) == len(IDS) - 1
    with pytest.raises(UserError, match=message):
        list(READERS["table"](tmp_path, layout="penn13", strict=True).clips)


def test_a_file_larger_than_its_kind_may_be_is_not_read(tmp_path, monkeypatch):
    write_labels(tmp_path)
    (tmp_path / "wave_1.json").write_bytes(b"[" + b" " * 5000 + b"]")
    monkeypatch.setattr(pose_json, "MAX_FILE", 1000)
    refused("coco", tmp_path, "wave_1.json", "more than the 1000 bytes")


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000, 33, 3), }") + b"\0" * 64,
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4), }") + b"\0" * 16,
        header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }") + b"\0" * 8,
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }") + b"\0" * 4,
        header("{'descr': '<f4', 'fortran_order': False, 'shape': __import__('os').getcwd(), }"),
        header("(" * 5000),
        header("{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (1,), }") + b"\0" * 4,
    ],
)
def test_arrays_are_no_larger_than_their_bytes(tmp_path, content):
    with pytest.raises(UserError, match="a.npy: not a readable array"):
        parse_npy(content, "a.npy")
    write_labels(tmp_path)
    (tmp_path / "wave_1.npy").write_bytes(content)
    refused("mediapipe", tmp_path, "wave_1.npy")


def test_bombs_and_foreign_archives_are_no_arrays(monkeypatch):
    monkeypatch.setattr(npy, "MAX_ARRAYS", 100_000)
    stream = io.BytesIO()
    np.savez_compressed(stream, x=np.zeros(10_000_000))
    with pytest.raises(UserError, match="more than 100000 bytes"):
        parse_npz(stream.getvalue(), "a.npz")
    np.savez_compressed(stream := io.BytesIO(), **{f"x{i}": np.zeros(5_000) for i in range(3)})
    with pytest.raises(UserError, match="x2.npy and those before it"):
        parse_npz(stream.getvalue(), "a.npz")
    with zipfile.ZipFile(stream := io.BytesIO(), "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", b"1")
    with pytest.raises(UserError, match="rare compression"):
        parse_npz(stream.getvalue(), "a.npz")
    with pytest.raises(UserError, match="not a readable .npz"):
        parse_npz(b"PK nonsense", "a.npz")


def write_arrays(folder: Path, form: str) -> None:
    write_labels(folder)
    if form == "npz":
        np.savez_compressed(folder / "all.npz", **poses(17))
        return
    for id, clip in poses(17).items():
        np.save(folder / f"{id}.npy", clip)


WRITERS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "openpose": ("openpose", write_openpose, "wave_1/wave_1_000000000000_keypoints.json"),
    "coco dataset": ("coco", lambda f: write_coco(f, "dataset"), "person_keypoints.json"),
    "coco results": ("coco", lambda f: write_coco(f, "results"), "wave_1.json"),
    "mmpose": ("coco", lambda f: write_coco(f, "mmpose"), "wave_1.json"),
    "mediapipe npy": ("mediapipe", lambda f: write_mediapipe(f, "npy"), "wave_1.npy"),
    "mediapipe npz": ("mediapipe", lambda f: write_mediapipe(f, "npz"), "all.npz"),
    "mediapipe json": ("mediapipe", lambda f: write_mediapipe(f, "json"), "wave_1.json"),
    "arrays npy": ("arrays", lambda f: write_arrays(f, "npy"), "wave_1.npy"),
    "arrays npz": ("arrays", lambda f: write_arrays(f, "npz"), "all.npz"),
    "table": ("table", lambda f: write_table(f, list(load_layout("penn13").joints), ["x", "y"]), "poses.csv"),
    "table npz": (
        "table",
        lambda f: write_table(f, list(load_layout("penn13").joints), ["x", "y"], "npz"),
        "poses.npz",
    ),
    "labels": ("mediapipe", lambda f: write_mediapipe(f, "npy"), "labels.csv"),
}


@pytest.mark.parametrize("name", WRITERS)
@given(data=st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_damage_ends_in_clips_and_messages(tmp_path_factory, name, data):
    reader, write, spoilt = WRITERS[name]
    folder = tmp_path_factory.getbasetemp() / f"fuzz-{name.replace(' ', '-')}"
    if not folder.exists():
        write(folder)
        (folder / "good").write_bytes((folder / spoilt).read_bytes())
    good = (folder / "good").read_bytes()
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(good)))
        kind = data.draw(st.sampled_from(["cut", "flip", "put"]))
        if kind == "cut":
            del content[at : at + data.draw(st.integers(1, 5000))]
        elif kind == "flip" and at < len(content):
            content[at] ^= data.draw(st.integers(1, 255))
        else:
            piece = data.draw(
                st.sampled_from([b"NaN", b"-1", b"1e400", b"null", b"[", b"}", b"\xff", b'"', b",", b"\n"])
            )
            content[at:at] = piece
    (folder / spoilt).write_bytes(bytes(content))
    count, _ = outcome(reader, folder)
    assert 0 <= count <= len(IDS) + 1
