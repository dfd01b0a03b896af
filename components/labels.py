"""Labels, splits and factors that lie beside poses, which have none of their own: `labels.csv`, `splits.csv`, JSON."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from components.annotations import FACTOR_KEYS
from components.entries import Entry, close_archives, find_entries
from components.files import parse_json
from components.source import Source, set_aside
from components.tables import read_rows
from model.errors import UserError
from model.layouts import Layout, layout_from_dict, load_layout
from model.store import Clip

LABELS, SPLITS, ABOUT = "labels.csv", "splits.csv", "labels.json"
BESIDE = (LABELS, SPLITS, ABOUT)
MAX_ABOUT = 64 << 20  # bytes; a million clips with their labels

Loaded = tuple[np.ndarray, tuple[float, float] | None]  # joints (M, T, V, C), image size
Poses = Iterable[tuple[str, Callable[[], Loaded]]]  # clip id and what reads the clip


@dataclass
class Labels:
    """What is known of the clips by their ids. `folder` is where it was found; `about` is what the JSON says."""

    folder: Path
    classes: list[str]
    of: dict[str, int]
    splits: dict[str, list[str]]
    factors: dict[str, dict[str, int]]
    about: dict[str, Any] = field(default_factory=dict)

    def layout(self, given: str | None, otherwise: Layout | None = None) -> Layout | None:
        """The layout `given`, or named or described in the JSON, or `otherwise`."""
        if given is not None:
            return load_layout(given)
        if "joints" in self.about:
            own = {key: value for key, value in self.about.items() if key in ("joints", "parents", "mirror", "centre")}
            return layout_from_dict({"layout": self.about.get("layout", "own"), **own}, str(self.folder / ABOUT))
        return load_layout(str(self.about["layout"])) if "layout" in self.about else otherwise


def read_labels(path: Path, classes: Sequence[str] | None = None) -> Labels:
    """Read what lies in the folder `path`, or beside the file, or was packed into the archive.

    `labels.csv` has the columns `clip,label` and may have `split`, `subject`, `camera`, `setup`; `splits.csv` has
    `clip,split`, a clip in as many rows as splits. `labels.json` may hold `labels` {clip: label}, `splits`
    {name: [clips]}, `classes`, and `layout` or `joints` and `parents`. A label is the name of a class, or its
    number. Classes are those given, else the names in the order of the alphabet.

    Raises UserError naming the file and what is wrong with it.
    """
    folder = path if path.is_dir() else path.parent
    files = _beside(path, folder)
    about = _about(files.get(ABOUT), folder / ABOUT)
    names: dict[str, str] = {str(clip): str(label) for clip, label in about.get("labels", {}).items()}
    splits: dict[str, list[str]] = {str(name): list(map(str, ids)) for name, ids in about.get("splits", {}).items()}
    known: dict[str, dict[str, str]] = {}
    for number, row in _rows(files.get(LABELS), ("clip", "label")):
        where = f"{files[LABELS]}, line {number}"
        clip = row["clip"]
        if not clip or clip in names:
            raise UserError(f"{where}: the clip {clip!r} has a label already" if clip else f"{where}: names no clip")
        names[clip] = row["label"]
        if row.get("split"):
            splits.setdefault(row["split"], []).append(clip)
        known[clip] = {factor: row[factor] for factor in FACTOR_KEYS if row.get(factor)}
    for _, row in _rows(files.get(SPLITS), ("clip", "split")):
        splits.setdefault(row["split"], []).append(row["clip"])
    if not names:
        raise UserError(f"{folder}: no labels; write {LABELS} there with the columns clip,label,split")
    for name, members in splits.items():
        if len(set(members)) < len(members):
            raise UserError(f"{folder}: split {name!r} names a clip twice; {SPLITS} adds to the splits of {LABELS}")
        unknown = [id for id in members if id not in names]
        if unknown:
            raise UserError(f"{folder}: split {name!r} names the clip {unknown[0]!r}, which has no label; add it")
    chosen = _classes(classes or about.get("classes"), names, folder)
    position = {name: label for label, name in enumerate(chosen)}
    of = {}
    for clip, name in names.items():
        label = position.get(name, int(name) if name.isascii() and name.isdigit() and len(name) < 7 else -1)
        if not 0 <= label < len(chosen):
            raise UserError(f"{folder}: the label {name!r} of the clip {clip!r} is none of the {len(chosen)} classes")
        of[clip] = label
    if not splits:
        splits = {"all": list(names)}
    return Labels(folder, chosen, of, splits, _factors(known), about)


def labelled(poses: Poses, labels: Labels, layout: Layout, channels: list[str], strict: bool) -> Source:
    """Clips with their labels. A clip that is broken or has no label, and a label without a clip, is set aside."""
    splits = {name: list(members) for name, members in labels.splits.items()}
    excluded: list[tuple[str, str]] = []

    def refuse(id: str, reason: str) -> None:
        if strict:
            raise UserError(reason)
        set_aside(id, reason, splits, excluded)

    def clips() -> Iterator[Clip]:
        found = set()
        try:
            for id, load in poses:
                if id in found:
                    raise UserError(
                        f"clip {id}: is there twice; clips need names of their own, and the rows of one stand together"
                    )
                found.add(id)
                if id not in labels.of:
                    refuse(id, f"clip {id}: has no label in {labels.folder}; add it to {LABELS}")
                    continue
                try:
                    joints, size = load_checked(id, load, channels)
                except UserError as error:
                    refuse(id, str(error))
                    continue
                yield Clip(id, labels.of[id], joints, labels.factors.get(id, {}), size)
        finally:
            close_archives()
        for id in labels.of:
            if id not in found:
                refuse(id, f"clip {id}: has a label, but its poses are not there")

    return Source(clips(), layout, labels.classes, splits, channels, excluded)


def load_checked(id: str, load: Callable[[], Loaded], channels: Sequence[str]) -> Loaded:
    """A clip's joints. Raises UserError naming it when they are not finite or nobody is seen."""
    joints, size = load()
    if not np.isfinite(joints).all():
        raise UserError(f"clip {id}: holds NaN or infinity; leave a joint that was not seen empty")
    if not joints[..., : 2 if channels[-1] == "score" else None].any():
        raise UserError(f"clip {id}: all joints are zero; leave it out")
    return joints, size


def _beside(path: Path, folder: Path) -> dict[str, Entry]:
    """The files of labels by their names: those in the folder, else those that were packed with the poses."""
    found = {name: Entry(PurePosixPath(name), folder / name) for name in BESIDE if (folder / name).is_file()}
    return found or {entry.inside.name: entry for entry in find_entries(path, lambda name: name in BESIDE)}


def _about(entry: Entry | None, path: Path) -> dict[str, Any]:
    about = {} if entry is None else parse_json(entry.read(MAX_ABOUT), str(entry))
    forms = {"labels": dict, "splits": dict, "classes": list}
    if not isinstance(about, dict) or not all(isinstance(about.get(key, kind()), kind) for key, kind in forms.items()):
        raise UserError(f"{path}: must be a JSON object with 'labels' {{clip: label}}, 'splits' {{name: [clips]}}")
    if not all(isinstance(members, list) for members in about.get("splits", {}).values()):
        raise UserError(f"{path}: 'splits' must map names to lists of clips")
    return about


def _rows(entry: Entry | None, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    if entry is not None:
        yield from read_rows(entry, needed)


def _classes(given: Any, names: dict[str, str], folder: Path) -> list[str]:
    if given is not None:
        if not all(isinstance(name, str) for name in given) or len(set(given)) < len(given):
            raise UserError(f"{folder}: 'classes' must be a list of different names, one per label")
        return list(given)
    if all(name.isascii() and name.isdigit() and len(name) < 7 for name in names.values()):
        return [f"class {label}" for label in range(max(map(int, names.values())) + 1)]
    return sorted(set(names.values()))


def _factors(known: dict[str, dict[str, str]]) -> dict[str, dict[str, int]]:
    """Factors as numbers: their own, or the place in the alphabet where one of them is no number."""
    factors: dict[str, dict[str, int]] = {clip: {} for clip in known}
    for factor in FACTOR_KEYS:
        values = sorted({row[factor] for row in known.values() if factor in row})
        numbers = all(value.isascii() and value.isdigit() and len(value) < 10 for value in values)
        code = {value: int(value) if numbers else place for place, value in enumerate(values)}
        for clip, row in known.items():
            if factor in row:
                factors[clip][factor] = code[row[factor]]
    return factors
