"""Readers by name, and the reader of raw NTU RGB+D.

A reader takes the path of raw files and returns a `Source`: checked clips with their layout, classes and splits.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path
from typing import Any

import numpy as np

from components.annotations import read_annotations
from components.entries import Entry, close_archives, find_entries, is_archive
from components.kinetics import read_kinetics
from components.params import Data
from components.pose_arrays import read_arrays, read_mediapipe
from components.pose_json import read_coco, read_openpose
from components.pose_table import read_table
from components.source import Source, set_aside
from model import ntu
from model.errors import UserError
from model.layouts import load_layout
from model.mapping import joint_map, map_joints
from model.store import Clip


def _bodies_of_umurl(raw: ntu.RawClip) -> np.ndarray:
    """UmURL's choice in the axes of a store, (M, T, V, C) float32; an absent second body stays as zeros."""
    return ntu.convert_umurl(raw).transpose(3, 1, 2, 0)


CONVERSIONS: dict[str, Callable[[ntu.RawClip], np.ndarray]] = {
    "pyskl": ntu.convert_pyskl,
    "mmaction2": ntu.convert_mmaction2,
    "umurl": _bodies_of_umurl,
}
FACTORS = ("subject", "camera", "setup")
PARALLEL_FROM = 1000  # files; fewer are read before processes have started
BLOCK = 2048  # files in flight, which bounds memory


def read_ntu(
    path: str | Path,
    *,
    strict: bool = False,
    conversion: str = "pyskl",
    actions: int = 120,
    workers: int | None = None,
) -> Source:
    """Read a folder of `.skeleton` files, or of archives (zip as published, tar), on all cores or `workers` processes.

    `path` may also be one archive; archives are read without unpacking them.

    Clips on the published list of missing skeletons are left out. A broken file is set aside with its reason, or
    ends the run if `strict`. Classes are the actions present, in the order of their numbers. `actions` (60 or 120)
    is the data set, which decides the splits; `conversion` the tool whose choice of bodies is followed.

    Raises UserError for a folder without clips, names that are not NTU's, doubled names,
    and archives that `find_entries` refuses.
    """
    path = Path(path)
    if conversion not in CONVERSIONS:
        raise UserError(f"conversion '{conversion}' is not one of {', '.join(CONVERSIONS)}")
    if not path.is_dir() and not is_archive(path):
        raise UserError(f"{path}: not a folder or archive (zip, tar); name what holds the .skeleton files")
    files = _files(path)
    parts = {name: ntu.parse_name(name) for name in files}
    of_data_set = [name for name in files if parts[name]["action"] <= actions]
    missing = ntu.missing_names().intersection(of_data_set)
    kept = [name for name in of_data_set if name not in missing]
    if not kept:
        raise UserError(f"{path}: holds no .skeleton file of actions 1 to {actions}; name another folder")
    present = sorted({parts[name]["action"] for name in kept})
    label = {action: position for position, action in enumerate(present)}
    splits = {name: members for name, members in ntu.ntu_splits(kept, actions).items() if members}
    excluded = [(name, "on the published list of missing skeletons") for name in sorted(missing)]

    def clips() -> Iterator[Clip]:
        read = partial(_read_skeleton, conversion=conversion)
        results = _spread(read, [files[name] for name in kept], workers)
        try:
            for name, (joints, reason) in zip(kept, results, strict=True):
                if joints is not None:
                    factors = {factor: parts[name][factor] for factor in FACTORS}
                    yield Clip(name, label[parts[name]["action"]], joints, factors)
                elif strict:
                    raise UserError(reason)
                else:
                    set_aside(name, reason, splits, excluded)
        finally:
            close_archives()

    classes = [ntu.action_names()[action - 1] for action in present]
    return Source(clips(), load_layout("nturgb+d"), classes, splits, ["x", "y", "z"], excluded)


def _files(path: Path) -> dict[str, Entry]:
    files: dict[str, Entry] = {}
    for entry in sorted(find_entries(path, ".skeleton"), key=lambda entry: (entry.stem, entry)):
        if entry.stem in files:
            raise UserError(f"{entry}: the same clip lies at {files[entry.stem]}; keep one of them")
        files[entry.stem] = entry
    return files


def _read_skeleton(entry: Entry, conversion: str) -> tuple[np.ndarray | None, str]:
    """Joints (M, T, 25, 3), or None and the reason why not."""
    try:
        raw = ntu.parse_skeleton(entry.read(ntu.MAX_BYTES), str(entry))
        joints = CONVERSIONS[conversion](replace(raw, name=entry.stem))
    except UserError as error:
        return None, str(error)
    if not joints.any():
        return None, f"{entry.stem}: no body in any frame; leave the clip out"
    return joints, ""


def _spread(read: Callable[[Entry], Any], paths: Sequence[Entry], workers: int | None) -> Iterator[Any]:
    """`map(read, paths)` over processes, with a bounded number of results ahead of the consumer."""
    workers = workers or cpu_count() or 1
    if workers == 1 or len(paths) <= PARALLEL_FROM:
        yield from map(read, paths)
        return
    # Forking a process that has threads (torch, MLflow) can hang.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for start in range(0, len(paths), BLOCK):
            yield from pool.map(read, paths[start : start + BLOCK], chunksize=32)


READERS: dict[str, Callable[..., Source]] = {
    "ntu_raw": read_ntu,
    "annotations": read_annotations,
    "kinetics": read_kinetics,
    "openpose": read_openpose,
    "coco": read_coco,
    "mediapipe": read_mediapipe,
    "arrays": read_arrays,
    "table": read_table,
}


def open_source(data: Data, raw: Path) -> Source:
    """The clips of `raw` by the reader of `data`, their joints mapped to the layout `data.to` where one is named.

    Raises UserError for a reader or an option that there is not, and what the reader raises.
    """
    if data.reader not in READERS:
        raise UserError(f"data.reader: {data.reader!r} is none of {', '.join(READERS)}")
    reader = READERS[data.reader]
    known = [name for name in inspect.signature(reader).parameters if name not in ("path", "strict")]
    unknown = sorted(set(data.options) - set(known))
    if unknown:
        raise UserError(f"data.options: {data.reader} has no option {', '.join(unknown)}; it takes {', '.join(known)}")
    if not raw.exists():
        raise UserError(f"{raw}: no such file or folder; put the raw data there")
    source = reader(raw, strict=data.strict, **data.options)
    if not data.to:
        return source
    by = joint_map(source.layout, load_layout(data.to))
    print(f"{raw}: {source.layout.name} to {by.layout.name}: {by}", file=sys.stderr)
    clips = (replace(clip, joints=map_joints(clip.joints, by)) for clip in source.clips)
    return replace(source, clips=clips, layout=by.layout)
