"""Which reader a folder, archive or file is for, told by names and, where they do not say, by a look inside."""

from pathlib import Path
from typing import Any

from components.entries import Entry, find_entries
from components.files import parse_json
from components.labels import BESIDE
from components.npy import MAX_ARRAYS, parse_npz
from components.pose_arrays import LANDMARKS, open_arrays
from components.pose_json import MAX_FILE, NAME
from model.errors import UserError

KINDS = (".skeleton", "_keypoints.json", ".pkl", ".pickle", ".json", ".csv", ".npz", ".npy")


def detect_reader(path: Path) -> str:
    """The name of the reader in `READERS`. Raises UserError when nothing at `path` is of a form that is known."""
    entries = find_entries(path, lambda name: name.endswith(KINDS) and name not in BESIDE)
    names = [entry.inside.name for entry in entries]

    def some(*endings: str) -> Entry | None:
        return next((entry for entry, name in zip(entries, names, strict=True) if name.endswith(endings)), None)

    if some(".skeleton"):
        return "ntu_raw"
    if any(NAME.fullmatch(entry.stem) for entry, name in zip(entries, names, strict=True) if name.endswith(KINDS[1])):
        return "openpose"
    if some(".pkl", ".pickle"):
        return "kinetics" if (path / "kpfiles").is_dir() else "annotations"
    if some(".csv"):
        return "table"
    if entry := some(".npz"):
        arrays = parse_npz(entry.read(MAX_ARRAYS), str(entry))
        if {"frame", "joint", "x", "y"} <= arrays.keys():
            return "table"
    if some(".npz", ".npy"):
        # A layout of its own may have 33 joints too; whoever has one names the reader.
        return "mediapipe" if _joints(path) == 33 else "arrays"
    if entry := some(".json"):
        return _of_json(parse_json(entry.read(MAX_FILE), str(entry)), str(entry))
    raise UserError(
        f"{path}: holds none of {', '.join(f'*{kind}' for kind in KINDS)}; docs/DATA.md says which forms are read"
    )


def _joints(path: Path) -> int | None:
    try:
        return open_arrays(path, None)[0].num_joints
    except UserError:  # no layout is known for so many joints
        return None


def _of_json(content: Any, where: str) -> str:
    if isinstance(content, dict) and ("annotations" in content or "instance_info" in content):
        return "coco"
    first = content[0] if isinstance(content, list) and content else content
    if isinstance(first, dict) and ("keypoints" in first or "instances" in first):
        return "coco"
    landmarks = isinstance(first, list) or first is None or (isinstance(first, dict) and first.keys() & set(LANDMARKS))
    if landmarks or (isinstance(content, dict) and "frames" in content):
        return "mediapipe"
    raise UserError(f"{where}: neither COCO key points nor MediaPipe landmarks; docs/DATA.md says which forms are read")
