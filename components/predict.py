"""Raw clips and a registered model → classes with scores."""

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from components.bundle import Predictor, load_bundle
from components.entries import Entry, find_entries
from components.files import write_json
from components.npy import MAX_ARRAYS, parse_npy, parse_npz
from components.pose_json import Opened
from components.weights import bundle_folder
from model.errors import UserError
from model.layouts import Layout, layout_from_dict, load_layout
from model.mapping import joint_map, map_joints, to_channels

Clip = dict[str, Any]


def predict(
    model_uri: str, files: list[Path], /, *, out: Path | None = None, as_json: bool = False
) -> list[dict[str, Any]]:
    """Classify raw clips and print a table, or JSON.

    Args:
        model_uri: models:/NAME@champion, models:/NAME/3, a run's models:/m-…, or the folder of a bundle.
        files: clips in any form that preprocess reads (docs/DATA.md): files, folders or zip archives.
        out: also write the answers to this JSON file.
        as_json: print JSON in place of the table.

    Returns:
        One {"id", "class", "label", "scores"} a clip; the scores are the weighted sum that the pipeline fuses.

    Raises:
        UserError: the model cannot be fetched, or a file does not hold clips of the model's joints.
    """
    if not files:
        raise UserError("predict: no file is named; name .skeleton, .npy, .npz or annotation files")
    with tempfile.TemporaryDirectory(prefix="sixstream-") as scratch:
        predictor = load_bundle(bundle_folder(model_uri, Path(scratch)))
        clips = [clip for path in map(Path, files) for clip in read_clips(path, predictor.spec)]
        answers = predictor.answer(clips)
        if out is not None:
            write_json(out, answers)
        print(json.dumps(answers, indent=1) if as_json else table(answers, predictor))
    return answers


def read_clips(path: Path, spec: dict[str, Any]) -> list[Clip]:
    """The clips of a file, folder or archive, {"id", "joints", …}, as the reader of the bundle's data would give them.

    Raises UserError naming the file.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    entries = find_entries(path, ".skeleton")
    if entries:
        return [_skeleton(entry, spec) for entry in entries]
    landmarks = spec["preparation"].get("reader") == "mediapipe"  # whose arrays have columns to choose from
    if path.suffix in FORMATS and path.is_file() and not landmarks:
        return FORMATS[path.suffix](path, spec)
    return _poses(path, spec)


def _skeleton(entry: Entry, spec: dict[str, Any]) -> Clip:
    from components.readers import CONVERSIONS
    from model.ntu import MAX_BYTES, parse_skeleton

    prepared = spec["preparation"]
    if spec["layout"]["name"] != "nturgb+d" and not prepared.get("to"):
        raise UserError(f"{entry}: holds NTU's 25 joints, the model takes the layout {spec['layout']['name']!r}")
    raw = replace(parse_skeleton(entry.read(MAX_BYTES), str(entry)), name=entry.stem)
    joints = CONVERSIONS[prepared.get("options", {}).get("conversion", "pyskl")](raw)
    return {"id": entry.stem, "joints": _fitted(joints, load_layout("nturgb+d"), ["x", "y", "z"], spec)}


def _fitted(joints: np.ndarray, layout: Layout, channels: Sequence[str], spec: dict[str, Any]) -> np.ndarray:
    """Joints of a layout and channels as those that the model takes."""
    if list(layout.joints) != spec["layout"]["joints"]:
        joints = map_joints(joints, joint_map(layout, layout_from_dict(spec["layout"], "bundle.json, field 'layout'")))
    return to_channels(joints, channels, spec["channels"])


def _poses(path: Path, spec: dict[str, Any]) -> list[Clip]:
    """Clips of a pose estimator or a table, their joints mapped by name to those of the model."""
    from components.detect import detect_reader
    from components.labels import load_checked
    from components.pose_arrays import open_arrays, open_mediapipe
    from components.pose_json import open_coco, open_openpose
    from components.pose_table import open_table

    own = layout_from_dict(spec["layout"], "bundle.json, field 'layout'")
    wanted, persons = spec["channels"], spec["persons"]
    size = spec["preparation"].get("options", {}).get("image_size")  # what the data were read with
    openers: dict[str, Callable[[], Opened]] = {
        "openpose": lambda: open_openpose(path, persons, size),
        "coco": lambda: open_coco(path, load_layout("coco"), persons, size),
        "mediapipe": lambda: open_mediapipe(path, "z" in wanted, persons, size),
        "arrays": lambda: open_arrays(path, own, wanted, persons, size),
        "table": lambda: open_table(path, own, persons, size),
    }
    kind = detect_reader(path)
    if kind not in openers:
        return [clip for file in sorted(path.iterdir()) if file.suffix in FORMATS for clip in read_clips(file, spec)]
    layout, channels, poses = openers[kind]()
    if layout.joints != own.joints:
        print(f"{path}: {layout.name} to {own.name}: {joint_map(layout, own)}", file=sys.stderr)
    clips = []
    for id, load in poses:
        joints, image_size = load_checked(id, load, channels)
        clips.append({"id": id, "joints": _fitted(joints, layout, channels, spec), "image_size": image_size})
    return clips


def _array(path: Path, spec: dict[str, Any]) -> list[Clip]:
    joints = _load(path)
    if joints.ndim == 5:
        return [{"id": f"{path.stem}[{i}]", "joints": clip} for i, clip in enumerate(joints)]
    return [{"id": path.stem, "joints": joints}]


def _arrays(path: Path, spec: dict[str, Any]) -> list[Clip]:
    """Every array is a clip by its own name; `joints` and `image_size` are one clip, the columns of a table many."""
    arrays = _load(path)
    if {"frame", "joint", "x", "y"} <= arrays.keys():
        return _poses(path, spec)
    if "joints" in arrays:
        clip = {"id": path.stem, "joints": arrays["joints"]}
        return [clip | ({"image_size": arrays["image_size"]} if "image_size" in arrays else {})]
    return [{"id": f"{path.stem}/{name}", "joints": joints} for name, joints in arrays.items()]


def _annotations(path: Path, spec: dict[str, Any]) -> list[Clip]:
    from components.readers import READERS

    prepared = spec["preparation"]
    with tempfile.TemporaryDirectory(prefix="sixstream-") as scratch:
        own = str(write_json(Path(scratch) / "layout.json", spec["layout"]))
        layout = prepared.get("options", {}).get("layout") if prepared.get("to") else own
        source = READERS["annotations"](
            path, strict=True, layout=layout, channels=spec["channels"], classes=spec["classes"]
        )
        return [
            {
                "id": clip.id,
                "joints": _fitted(clip.joints, source.layout, source.channels, spec),
                "image_size": clip.image_size,
            }
            for clip in source.clips
        ]


FORMATS: dict[str, Callable[[Path, dict[str, Any]], list[Clip]]] = {
    ".npy": _array,
    ".npz": _arrays,
    ".pkl": _annotations,
    ".pickle": _annotations,
}


def table(answers: list[dict[str, Any]], predictor: Predictor) -> str:
    """Clip, class and share of the score, and the runner-up."""
    total = sum(member["weight"] for member in predictor.spec["members"])
    lines = []
    for answer in answers:
        order = np.argsort(answer["scores"], kind="stable")[::-1][:2]
        best = [f"{predictor.classes[k]} {answer['scores'][k] / total:.1%}" for k in order]
        lines.append([answer["id"], *best, *[""] * (2 - len(best))])
    heads = ["clip", "class", "next"]
    widths = [max(len(line[column]) for line in [heads, *lines]) for column in range(len(heads))]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in [heads, *lines]]
    return "\n".join(row.rstrip() for row in rows)


def _load(path: Path) -> Any:
    content = Entry(PurePosixPath(path.name), path).read(MAX_ARRAYS)
    return (parse_npz if path.suffix == ".npz" else parse_npy)(content, str(path))
