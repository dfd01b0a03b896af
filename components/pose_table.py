"""Reader of poses as a table, CSV or the columns of an NPZ: `clip, frame, person, joint, x, y[, z][, score]`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, groupby
from pathlib import Path

import numpy as np

from components.entries import Entry, find_entries
from components.labels import BESIDE, Loaded, labelled, read_labels
from components.npy import MAX_ARRAYS, parse_npz
from components.pose_json import Opened, Size, given_size
from components.source import Source
from components.tables import Row, read_rows_or_faults
from model.errors import UserError
from model.layouts import LAYOUTS, Layout, load_layout
from model.tracks import PERSONS, Body, assemble

NEEDED = ("frame", "joint", "x", "y")
MAX_ROWS = 1_000_000  # of one clip, about a gigabyte: ten minutes of two persons

FAULT = "fault"  # the only value of a row that could not be read
Rows = Iterator[tuple[str, Row]]


def read_table(
    path: str | Path,
    *,
    strict: bool = False,
    classes: Sequence[str] | None = None,
    layout: str | None = None,
    persons: int = PERSONS,
    image_size: Size = None,
) -> Source:
    """Read CSV or NPZ tables of a row per joint, person and frame; the rows of a clip stand together.

    Without a column `clip` each file is a clip. `joint` is the name or the number of a joint of the layout; without
    a layout, named joints must be those of a shipped one. `person` may be missing or empty: bodies are then linked by
    nearness, which needs each joint once a frame. Empty coordinates are joints that were not seen. With `z` the
    channels are x, y, z; else x, y and, where there is one, the score.

    A clip with a row that is damaged is set aside with the reason; a row that does not even tell its clip counts to
    the one before it.

    Raises UserError naming file and line.
    """
    labels = read_labels(Path(path), classes)
    skeleton, channels, poses = open_table(Path(path), labels.layout(layout), persons, image_size)
    return labelled(poses, labels, skeleton, channels, strict)


def open_table(path: Path, layout: Layout | None, persons: int = PERSONS, image_size: Size = None) -> Opened:
    """Layout, channels and clips, without labels."""
    entries = find_entries(path, lambda name: name.endswith((".csv", ".npz")) and name not in BESIDE)
    if not entries:
        raise UserError(f"{path}: holds no .csv or .npz file of poses")
    groups = groupby(chain.from_iterable(map(_rows, entries)), key=lambda item: item[1].get("clip", ""))
    clips = ((id, list(_bounded(id, rows))) for id, rows in groups)
    first = next(clips, None)
    if first is None:
        raise UserError(f"{entries[0]}: holds no row of poses")
    begun = [first]  # clips before the first that is whole, which shows joints and channels
    while any(FAULT in row for _, row in begun[-1][1]) and (later := next(clips, None)):
        begun.append(later)
    where, row = next(((where, row) for where, row in begun[-1][1] if FAULT not in row), ("", {}))
    if not row:
        raise UserError(next(row[FAULT] for _, row in begun[-1][1]))
    skeleton = layout or _layout_of({row["joint"] for _, row in begun[-1][1] if FAULT not in row}, where)
    channels = ["x", "y", "z"] if "z" in row else ["x", "y", "score"] if "score" in row else ["x", "y"]
    joint = {name: v for v, name in enumerate(skeleton.joints)} | {str(v): v for v in range(skeleton.num_joints)}

    def load(rows: list[tuple[str, Row]]) -> Loaded:
        return _joints(rows, joint, channels, (skeleton.num_joints, len(channels)), persons), given_size(
            image_size, path
        )

    def poses() -> Iterator[tuple[str, Callable[[], Loaded]]]:
        for id, rows in chain(begun, clips):
            yield id, partial(load, rows)

    return skeleton, channels, poses()


def _rows(entry: Entry) -> Rows:
    """(where, row) of each row; a file without the column `clip` is one clip."""
    if entry.inside.suffix == ".npz":
        yield from _columns(entry)
        return
    clip = ""
    for number, row in read_rows_or_faults(entry, NEEDED):
        if isinstance(row, UserError):
            yield f"{entry}, line {number}", {"clip": clip or entry.stem, FAULT: str(row)}
            continue
        row.setdefault("clip", entry.stem)
        clip = row["clip"]
        yield f"{entry}, line {number}", row


def _columns(entry: Entry) -> Rows:
    columns = parse_npz(entry.read(MAX_ARRAYS), str(entry))
    lacking = [name for name in NEEDED if name not in columns]
    lengths = {column.shape for column in columns.values()}
    if lacking or len(lengths) != 1 or len(next(iter(lengths))) != 1:
        raise UserError(f"{entry}: must hold the columns {', '.join(NEEDED)} as arrays of one length")
    for number in range(len(columns["x"])):
        row = {name: _text(column[number]) for name, column in columns.items()}
        row.setdefault("clip", entry.stem)
        yield f"{entry}, row {number}", row


def _text(value: np.generic) -> str:
    return repr(value.item()) if isinstance(value, np.floating) else str(value)


def _bounded(id: str, rows: Rows) -> Rows:
    for number, item in enumerate(rows):
        if number < MAX_ROWS:
            yield item
        elif number == MAX_ROWS:
            yield item[0], {FAULT: f"{item[0]}: clip {id!r} has more than {MAX_ROWS} rows; cut it into clips"}


def _layout_of(names: set[str], where: str) -> Layout:
    for name in LAYOUTS:
        if names == set(load_layout(name).joints):
            return load_layout(name)
    raise UserError(
        f"{where}: no layout is known with the joints {', '.join(sorted(names))[:120]}; "
        "name a layout, or describe it in labels.json with 'joints' and 'parents'"
    )


def _joints(
    rows: list[tuple[str, Row]], joint: Mapping[str, int], channels: Sequence[str], shape: tuple[int, int], persons: int
) -> np.ndarray:
    bodies: dict[tuple[int, str], np.ndarray] = {}
    frames = []
    for where, row in rows:
        if FAULT in row:
            raise UserError(row[FAULT])
        frame = _frame(row["frame"], where)
        frames.append(frame)
        values = [row.get(channel, "") for channel in channels]
        if not row["joint"] and not any(values):
            continue  # a frame in which nobody was seen
        if row["joint"] not in joint:
            raise UserError(f"{where}: {row['joint']!r:.40} is no joint of the layout, by name or number")
        numbers = _numbers(values, where, channels)
        body = bodies.setdefault((frame, row.get("person", "")), np.full(shape, np.nan, np.float32))
        v = joint[row["joint"]]
        if not np.isnan(body[v, 0]):
            raise UserError(f"{where}: joint {row['joint']} of this person and frame is there already")
        body[v] = numbers
    made = [Body(frame, np.nan_to_num(body, nan=0.0), person or None) for (frame, person), body in bodies.items()]
    return assemble(made, frames, shape, persons)


def _frame(text: str, where: str) -> int:
    whole = text.removesuffix(".0")
    if not (whole.isascii() and whole.isdigit() and len(whole) <= 15):
        raise UserError(f"{where}: the frame is {text!r:.40}, not a whole number from 0")
    return int(whole)


def _numbers(values: Sequence[str], where: str, channels: Sequence[str]) -> np.ndarray:
    """(C,) float32; zeros where a coordinate is empty."""
    coordinates = values[:2] if channels[-1] == "score" else values
    if not all(coordinates):
        return np.zeros(len(values), np.float32)
    try:
        with np.errstate(over="ignore"):
            numbers = np.array([float(value) for value in values]).astype(np.float32)
    except ValueError:
        numbers = np.array([np.nan])
    if not np.isfinite(numbers).all():
        raise UserError(
            f"{where}: {', '.join(channels)} are {', '.join(values)[:80]}, not numbers; leave what was not seen empty"
        )
    return numbers
