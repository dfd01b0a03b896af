"""The packed store: one folder that holds every clip of a data set, ragged and memory-mapped.

Clip `i` occupies the rows `offset[i] : offset[i] + persons[i] * frames[i]` of `joints.npy`, person by person:
row `offset + m * frames + t` is person `m` in frame `t`. Nothing is padded and nothing is pickled.

    joints.npy      (rows, V, C) float32, or float16 where a released recipe needs the original's rounding
    index.npy       (N, 3) int64: offset, persons, frames
    labels.npy      (N,) int64
    factors.npz     subject, camera, setup … (N,) int64; only those known of every clip
    image_size.npy  (N, 2) float32 height, width; only for coordinates in pixels
    splits.npz      name -> (n,) int64 positions, in the order of the split
    store.json      ids, classes, layout, channels, counts, where the data came from and its hash

Equal clips give equal bytes: no times, no machine's paths.
"""

import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from model.arrays import npz_bytes
from model.atomic import staged_dir
from model.errors import UserError
from model.layouts import Layout, layout_from_dict, layout_to_dict

VERSION = 1
DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class Clip:
    """A clip on its way into a store: `joints` (M, T, V, C), `image_size` height and width in pixels (2D)."""

    id: str
    label: int
    joints: np.ndarray
    factors: Mapping[str, int] = field(default_factory=dict)
    image_size: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class Store:
    """An opened store. `joints` is mapped read-only: writing to it raises ValueError."""

    folder: Path
    joints: np.ndarray
    offset: np.ndarray
    persons: np.ndarray
    frames: np.ndarray
    labels: np.ndarray
    ids: list[str]
    classes: list[str]
    layout: Layout
    channels: list[str]
    splits: dict[str, np.ndarray]
    factors: dict[str, np.ndarray]
    image_size: np.ndarray | None
    data_hash: str
    meta: dict[str, Any]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def scored(self) -> bool:
        """Whether the third channel is a detection score rather than a coordinate."""
        return self.channels[-1] == "score"

    def clip(self, i: int) -> np.ndarray:
        """Return the joints (M, T, V, C) of clip `i`, a view of the map."""
        start, persons, frames = int(self.offset[i]), int(self.persons[i]), int(self.frames[i])
        rows = self.joints[start : start + persons * frames]
        return rows.reshape(persons, frames, *self.joints.shape[1:])

    def split(self, name: str) -> np.ndarray:
        """Return the positions of the split `name`. Raises UserError naming the splits there are."""
        if name not in self.splits:
            raise UserError(f"split '{name}' is not in {self.folder}; it has: {', '.join(self.splits)}")
        return self.splits[name]


def write_store(
    folder: str | Path,
    clips: Iterable[Clip],
    *,
    layout: Layout,
    classes: Sequence[str],
    splits: Mapping[str, Sequence[str]],
    channels: Sequence[str],
    data_hash: str,
    source: str,
    dtype: str = "float32",
) -> None:
    """Write `clips` as a packed store, one clip in memory at a time; the folder appears whole or not at all.

    `splits` maps a name to clip ids and is read only after the last clip, so a reader may drop the ids of
    clips it sets aside on the way. Raises UserError naming the sample (wrong shape, empty, not finite, all
    zero, label out of range, doubled id) or the split (unknown or doubled ids) that cannot be stored.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype '{dtype}' is not one of {', '.join(DTYPES)}")
    folder = Path(folder)
    row_shape = (layout.num_joints, len(channels))
    ids: dict[str, int] = {}
    labels: list[int] = []
    factors: list[Mapping[str, int]] = []
    image_sizes: list[tuple[float, float] | None] = []
    index: list[tuple[int, int, int]] = []
    rows = 0
    _refuse_foreign(folder)
    with staged_dir(folder) as aside:
        with open(aside / "joints.npy", "wb") as stream:
            header = _write_header(stream, (0, *row_shape), dtype)
            for clip in clips:
                if clip.id in ids:
                    raise UserError(f"sample {clip.id}: the id occurs twice; ids must be unique")
                if not 0 <= clip.label < len(classes):
                    raise UserError(f"sample {clip.id}: label {clip.label} is out of range for {len(classes)} classes")
                joints = _checked(clip, row_shape, dtype)
                ids[clip.id] = len(ids)
                labels.append(int(clip.label))
                factors.append(clip.factors)
                image_sizes.append(clip.image_size)
                index.append((rows, joints.shape[0], joints.shape[1]))
                rows += joints.shape[0] * joints.shape[1]
                stream.write(np.ascontiguousarray(joints).tobytes())
            if not ids:
                raise UserError(f"{source}: holds no usable clip; nothing to store")
            stream.seek(0)
            if _write_header(stream, (rows, *row_shape), dtype) != header:
                raise AssertionError("numpy's header keeps its length while the first axis grows")
        positions = {name: _positions(name, members, ids) for name, members in splits.items()}
        np.save(aside / "index.npy", np.array(index, np.int64))
        np.save(aside / "labels.npy", np.array(labels, np.int64))
        (aside / "factors.npz").write_bytes(npz_bytes(_complete_factors(factors)))
        (aside / "splits.npz").write_bytes(npz_bytes(positions))
        sizes = _image_sizes(image_sizes, list(ids))
        if sizes is not None:
            np.save(aside / "image_size.npy", sizes)
        meta = {
            "version": VERSION,
            "source": source,
            "data_hash": data_hash,
            "channels": list(channels),
            "layout": layout_to_dict(layout),
            "classes": list(classes),
            "counts": {
                "clips": len(ids),
                "rows": rows,
                "persons": max(persons for _, persons, _ in index),
                "splits": {name: len(members) for name, members in positions.items()},
            },
            "ids": list(ids),
        }
        (aside / "store.json").write_text(json.dumps(meta, sort_keys=True) + "\n", encoding="utf-8")


def open_store(folder: str | Path) -> Store:
    """Open a packed store; joints stay on disk until they are used.

    Raises UserError when `folder` is not a store, is of another version, or its files do not fit together.
    """
    folder = Path(folder)
    if not (folder / "store.json").is_file():
        raise UserError(f"{folder}: not a packed store (no store.json); preprocess the data first")
    try:
        meta = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        if meta["version"] != VERSION:
            raise UserError(f"{folder}: store version {meta['version']} is not {VERSION}; preprocess the data again")
        joints = np.load(folder / "joints.npy", mmap_mode="r", allow_pickle=False)
        index = np.load(folder / "index.npy", allow_pickle=False)
        size_file = folder / "image_size.npy"
        store = Store(
            folder=folder,
            joints=joints,
            offset=np.ascontiguousarray(index[:, 0]),
            persons=np.ascontiguousarray(index[:, 1]),
            frames=np.ascontiguousarray(index[:, 2]),
            labels=np.load(folder / "labels.npy", allow_pickle=False),
            ids=meta["ids"],
            classes=meta["classes"],
            layout=layout_from_dict(meta["layout"], f"{folder / 'store.json'}, field 'layout'"),
            channels=meta["channels"],
            splits=_load_arrays(folder / "splits.npz"),
            factors=_load_arrays(folder / "factors.npz"),
            image_size=np.load(size_file, allow_pickle=False) if size_file.is_file() else None,
            data_hash=meta["data_hash"],
            meta={key: meta[key] for key in ("version", "source", "counts")},
        )
        fault = _fault(store)
    except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile) as error:
        # EOFError and ValueError: truncated .npy; the others: store.json of some other program
        raise UserError(f"{folder}: damaged store ({error}); preprocess the data again") from None
    if fault:
        raise UserError(f"{folder}: damaged store ({fault}); preprocess the data again")
    return store


def _fault(store: Store) -> str | None:
    """Say what does not fit together, or None. Looks at the index only, never at the joints."""
    clips = len(store)
    if store.joints.shape[1:] != (store.layout.num_joints, len(store.channels)):
        return "joints.npy does not have the layout's joints and channels"
    if str(store.joints.dtype) not in DTYPES:
        return f"joints.npy holds {store.joints.dtype}"
    rows = store.persons * store.frames
    ends = np.cumsum(rows)
    if not clips or len(rows) != clips or (rows <= 0).any() or (ends - rows != store.offset).any():
        return "index.npy does not describe its clips"
    if ends[-1] != len(store.joints):
        return f"joints.npy has {len(store.joints)} rows, index.npy wants {ends[-1]}"
    per_clip = [store.labels, *store.factors.values()]
    if store.image_size is not None:
        per_clip.append(store.image_size)
    if any(len(values) != clips for values in per_clip):
        return "labels, factors or image sizes do not count as many clips as store.json"
    if store.labels.min() < 0 or store.labels.max() >= len(store.classes):
        return "labels.npy names classes that store.json does not have"
    for members in store.splits.values():
        if len(members) and (members.min() < 0 or members.max() >= clips):
            return "splits.npz points behind the last clip"
    return None


def _checked(clip: Clip, row_shape: tuple[int, int], dtype: str) -> np.ndarray:
    joints = np.asarray(clip.joints)
    where = f"sample {clip.id}"
    if joints.ndim != 4 or joints.shape[2:] != row_shape:
        raise UserError(
            f"{where}: joints have the shape {joints.shape}, not (persons, frames, {row_shape[0]}, "
            f"{row_shape[1]}); check the layout and the channels"
        )
    if joints.size == 0:
        raise UserError(f"{where}: an empty clip, shape {joints.shape}; leave it out")
    if not np.isfinite(joints).all():
        raise UserError(f"{where}: holds NaN or infinity; mend it or leave it out")
    with np.errstate(over="ignore"):
        joints = joints.astype(dtype, copy=False)
    if not np.isfinite(joints).all():
        raise UserError(f"{where}: holds values too large for {dtype}; check the units")
    if not joints.any():
        raise UserError(f"{where}: all joints are zero; leave the clip out")
    return joints


def _positions(name: str, members: Sequence[str], ids: Mapping[str, int]) -> np.ndarray:
    unknown = [member for member in members if member not in ids]
    if unknown:
        raise UserError(
            f"split '{name}': names {len(unknown)} unknown ids, first {unknown[0]}; correct the split or add the clips"
        )
    positions = np.array([ids[member] for member in members], np.int64)
    if len(np.unique(positions)) != len(positions):
        doubled = next(member for i, member in enumerate(members) if member in members[:i])
        raise UserError(f"split '{name}': names the id {doubled} twice")
    return positions


def _complete_factors(factors: Sequence[Mapping[str, int]]) -> dict[str, np.ndarray]:
    known = set(factors[0]).intersection(*factors)
    return {name: np.array([clip[name] for clip in factors], np.int64) for name in sorted(known)}


def _image_sizes(sizes: Sequence[tuple[float, float] | None], ids: Sequence[str]) -> np.ndarray | None:
    missing = [id for id, size in zip(ids, sizes, strict=True) if size is None]
    if len(missing) == len(ids):
        return None
    if missing:
        raise UserError(f"sample {missing[0]}: has no image size although others do; give it to all or none")
    return np.array(sizes, np.float32)


def _write_header(stream: IO[bytes], shape: tuple[int, ...], dtype: str) -> int:
    """Write an .npy header and return its length; numpy leaves room for the first axis to grow."""
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.tell()


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _refuse_foreign(folder: Path) -> None:
    """Raise UserError when writing a store to `folder` would take away something else."""
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not empty and not (folder / "store.json").is_file():
        raise UserError(f"{folder}: exists and is not a packed store; choose another folder")
