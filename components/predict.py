"""Raw clips and a registered model → classes with scores."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from components.bundle import Predictor, load_bundle
from components.files import write_json
from components.weights import bundle_folder
from model.errors import UserError

Clip = dict[str, Any]


def predict(
    model_uri: str, files: list[Path], /, *, out: Path | None = None, as_json: bool = False
) -> list[dict[str, Any]]:
    """Classify raw clips and print a table, or JSON.

    Args:
        model_uri: models:/NAME@champion, models:/NAME/3, a run's models:/m-…, or the folder of a bundle.
        files: .skeleton files, .npy and .npz with joints, annotation pickles, or folders of .skeleton files.
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
        clips = [clip for path in _expanded(files) for clip in read_clips(path, predictor.spec)]
        answers = predictor.answer(clips)
        if out is not None:
            write_json(out, answers)
        print(json.dumps(answers, indent=1) if as_json else table(answers, predictor))
    return answers


def read_clips(path: Path, spec: dict[str, Any]) -> list[Clip]:
    """The clips of one file, {"id", "joints", …}, as the reader of the bundle's own data would give them.

    Raises UserError naming the file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix not in FORMATS:
        raise UserError(f"{path}: ends in none of {', '.join(FORMATS)}; convert the clip to one of them")
    return FORMATS[path.suffix](path, spec)


def _skeleton(path: Path, spec: dict[str, Any]) -> list[Clip]:
    from components.readers import CONVERSIONS
    from model.ntu import read_skeleton

    if spec["layout"]["name"] != "nturgb+d":
        raise UserError(f"{path}: holds NTU's 25 joints, the model takes the layout {spec['layout']['name']!r}")
    conversion = spec["preparation"].get("options", {}).get("conversion", "pyskl")
    return [{"id": path.stem, "joints": CONVERSIONS[conversion](read_skeleton(path))}]


def _array(path: Path, spec: dict[str, Any]) -> list[Clip]:
    joints = _load(path)
    if joints.ndim == 5:
        return [{"id": f"{path.stem}[{i}]", "joints": clip} for i, clip in enumerate(joints)]
    return [{"id": path.stem, "joints": joints}]


def _arrays(path: Path, spec: dict[str, Any]) -> list[Clip]:
    """Every array of the archive is a clip by its own name; `joints` and `image_size` together are one clip."""
    arrays = _load(path)
    if "joints" in arrays:
        clip = {"id": path.stem, "joints": arrays["joints"]}
        return [clip | ({"image_size": arrays["image_size"]} if "image_size" in arrays else {})]
    return [{"id": f"{path.stem}/{name}", "joints": joints} for name, joints in arrays.items()]


def _annotations(path: Path, spec: dict[str, Any]) -> list[Clip]:
    from components.readers import READERS

    with tempfile.TemporaryDirectory(prefix="sixstream-") as scratch:
        layout = write_json(Path(scratch) / "layout.json", spec["layout"])
        source = READERS["annotations"](
            path, strict=True, layout=str(layout), channels=spec["channels"], classes=spec["classes"]
        )
        return [{"id": clip.id, "joints": clip.joints, "image_size": clip.image_size} for clip in source.clips]


FORMATS: dict[str, Callable[[Path, dict[str, Any]], list[Clip]]] = {
    ".skeleton": _skeleton,
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


def _expanded(files: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in map(Path, files):
        inside = sorted(path.rglob("*.skeleton")) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"{path}: holds no .skeleton file")
        found += inside
    return found


def _load(path: Path) -> Any:
    try:
        loaded = np.load(path, allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    except Exception as error:  # on damaged bytes numpy and zipfile raise almost any type
        raise UserError(f"{path}: not a readable array file ({error}); save numbers with numpy.save") from None
