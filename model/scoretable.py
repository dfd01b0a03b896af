"""Score tables: what a member says about every clip of a split, keyed by sample id."""

import json
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.arrays import npz_bytes
from model.atomic import write_bytes
from model.errors import UserError

FORMAT = "sixstream-scores/1"
# What zipfile and numpy raise on damaged bytes.
_DAMAGE = (
    ValueError,
    OSError,
    EOFError,
    KeyError,
    MemoryError,
    OverflowError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)
_ARRAYS = ("header", "ids", "labels", "scores")


@dataclass(frozen=True)
class ScoreTable:
    """Class scores of N clips over K classes.

    Axes: ids N strings, labels (N,) int64, scores (N, K) float32. `split` and `data_hash` say which data were
    scored, `member` who scored them, `classes` are the K names. A table holds neither times nor run ids, so
    equal work gives equal bytes. Raises UserError when the parts do not fit each other.
    """

    ids: list[str]
    labels: np.ndarray
    scores: np.ndarray
    split: str
    member: str
    data_hash: str
    classes: list[str]

    def __post_init__(self) -> None:
        _check(self, f"score table of {self.member!r}")

    def __len__(self) -> int:
        return len(self.ids)


def save_table(path: str | Path, table: ScoreTable) -> Path:
    """Write one .npz atomically; equal tables give equal bytes. No pickles inside."""
    header = {
        "format": FORMAT,
        "split": table.split,
        "member": table.member,
        "data_hash": table.data_hash,
        "classes": table.classes,
    }
    arrays = {
        "header": np.array(json.dumps(header, sort_keys=True)),
        "ids": np.array(table.ids, dtype=np.str_),
        "labels": table.labels,
        "scores": np.ascontiguousarray(table.scores),
    }
    return write_bytes(path, npz_bytes(arrays))


def load_table(path: str | Path) -> ScoreTable:
    """Read a table. Raises UserError naming the file when it is missing, damaged or not a score table."""
    path = Path(path)
    again = "score the member again"
    try:
        with np.load(path, allow_pickle=False) as stored:
            if not hasattr(stored, "files") or sorted(stored.files) != sorted(_ARRAYS):
                raise UserError(f"{path}: not a score table; {again}")
            arrays = {name: stored[name] for name in _ARRAYS}
    except FileNotFoundError:
        raise UserError(f"{path}: no such score table; {again}") from None
    except _DAMAGE as error:
        raise UserError(f"{path}: not a readable score table ({error}); {again}") from None
    header = _header(path, arrays["header"])
    if arrays["ids"].ndim != 1 or arrays["ids"].dtype.kind != "U":
        raise UserError(f"{path}: ids must be a list of strings; {again}")
    try:
        return ScoreTable(
            ids=arrays["ids"].tolist(),
            labels=arrays["labels"],
            scores=arrays["scores"],
            split=header["split"],
            member=header["member"],
            data_hash=header["data_hash"],
            classes=header["classes"],
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _header(path: Path, stored: np.ndarray) -> dict[str, Any]:
    try:
        header = json.loads(str(stored[()]))
    except (json.JSONDecodeError, IndexError):
        header = None
    texts = ("split", "member", "data_hash")
    if (
        not isinstance(header, dict)
        or header.get("format") != FORMAT
        or not all(isinstance(header.get(name), str) for name in texts)
        or not isinstance(header.get("classes"), list)
        or not all(isinstance(name, str) for name in header["classes"])
    ):
        raise UserError(f"{path}: the header is not that of a {FORMAT} table; score the member again")
    return header


def _check(table: ScoreTable, where: str) -> None:
    clips, classes = len(table.ids), len(table.classes)
    if clips == 0:
        raise UserError(f"{where}: holds no clip; check the split {table.split!r}")
    if table.scores.dtype != np.float32 or table.scores.shape != (clips, classes):
        raise UserError(
            f"{where}: scores are {table.scores.dtype} {table.scores.shape}, expected float32 "
            f"({clips} ids, {classes} classes)"
        )
    if table.labels.dtype != np.int64 or table.labels.shape != (clips,):
        raise UserError(f"{where}: labels are {table.labels.dtype} {table.labels.shape}, expected int64 ({clips} ids,)")
    if not np.isfinite(table.scores).all():
        row = int(np.flatnonzero(~np.isfinite(table.scores).all(axis=1))[0])
        raise UserError(f"{where}: score of sample {table.ids[row]!r} is NaN or infinite; train again")
    if len(set(table.ids)) != clips:
        doubled = [name for name, count in Counter(table.ids).items() if count > 1]
        raise UserError(f"{where}: sample {doubled[0]!r} occurs more than once")
    outside = (table.labels < 0) | (table.labels >= classes)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise UserError(
            f"{where}: label {int(table.labels[row])} of sample {table.ids[row]!r} lies outside the {classes} classes"
        )
