"""Readers of poses as arrays: .npy and .npz clips of any layout, and the 33 landmarks of MediaPipe."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from components.annotations import LAYOUT_OF_JOINTS
from components.entries import Entry, find_entries
from components.files import parse_json
from components.labels import BESIDE, Loaded, labelled, read_labels
from components.npy import MAX_ARRAYS, parse_npy, parse_npz
from components.pose_json import Opened, Size, given_size
from components.source import Source
from model.errors import UserError
from model.layouts import Layout, load_layout
from model.tracks import PERSONS, Body, assemble

MAX_JSON = 256 << 20
LANDMARKS = ("pose_world_landmarks", "pose_landmarks", "landmarks")
CHANNELS = {2: ["x", "y"], 3: ["x", "y", "z"]}
FORMS = (".npy", ".npz", ".json")


def read_arrays(
    path: str | Path,
    *,
    strict: bool = False,
    classes: Sequence[str] | None = None,
    layout: str | None = None,
    channels: Sequence[str] | None = None,
    persons: int = PERSONS,
    image_size: Size = None,
) -> Source:
    """Read arrays (M, T, V, C) or (T, V, C): an .npy is a clip, an .npz a clip for each of its arrays, by name.

    Three values a joint are x y z unless `channels` says x, y, score. NaN is a joint that was not seen. Without a
    layout, 25 joints are taken for NTU's, 17 for COCO's, 33 for MediaPipe's.

    Raises UserError naming file and array.
    """
    labels = read_labels(Path(path), classes)
    own = labels.layout(layout)
    found, kinds, poses = open_arrays(Path(path), own, channels, persons, image_size)
    return labelled(poses, labels, found, kinds, strict)


def read_mediapipe(
    path: str | Path,
    *,
    strict: bool = False,
    classes: Sequence[str] | None = None,
    depth: bool = True,
    persons: int = PERSONS,
    image_size: Size = None,
) -> Source:
    """Read MediaPipe's 33 landmarks: .npy or .npz arrays (T, 33, 3 to 5) or (M, T, 33, …), or a JSON a clip.

    A JSON is a list with an item per frame: the landmarks `{"x": …, "y": …, "z": …, "visibility": …}` of one person,
    a list of such persons, an object that holds either as `pose_landmarks` (`pose_world_landmarks`), or nothing.
    With `depth` the channels are x, y, z, else x, y and the visibility as the score.
    """
    labels = read_labels(Path(path), classes)
    layout, channels, poses = open_mediapipe(Path(path), depth, persons, image_size)
    return labelled(poses, labels, layout, channels, strict)


def open_arrays(
    path: Path,
    layout: Layout | None,
    channels: Sequence[str] | None = None,
    persons: int = PERSONS,
    image_size: Size = None,
) -> Opened:
    """Layout, channels and clips, without labels."""
    entries = _files(path, FORMS[:2])
    tried = (_tried(load) for _, load in _clips(entries, persons))
    first = next((clip for clip in tried if clip is not None), None)
    if first is None:
        raise UserError(f"{path}: holds no .npy or .npz file with an array (persons, frames, joints, channels)")
    joints, width = first.shape[2:]
    known = {**LAYOUT_OF_JOINTS, 33: "mediapipe"}
    if layout is None and joints not in known:
        raise UserError(f"{path}: no layout is known for {joints} joints; name one")
    kinds = list(channels or CHANNELS.get(width, []))
    skeleton = layout or load_layout(known[joints])

    def load(read: Callable[[], np.ndarray]) -> Loaded:
        clip = read()
        if clip.shape[2:] != (skeleton.num_joints, len(kinds)):
            raise UserError(
                f"has the shape {clip.shape}, not (persons, frames, {skeleton.num_joints}, {len(kinds)}) of the "
                f"layout '{skeleton.name}' with {', '.join(kinds)}"
            )
        return _seen(clip)[:persons], given_size(image_size, path)

    return skeleton, kinds, ((id, partial(_named, id, partial(load, read))) for id, read in _clips(entries, persons))


def open_mediapipe(path: Path, depth: bool = True, persons: int = PERSONS, image_size: Size = None) -> Opened:
    """Layout, channels and clips, without labels."""
    layout = load_layout("mediapipe")
    columns = [0, 1, 2] if depth else [0, 1, 3]

    def load(read: Callable[[], np.ndarray]) -> Loaded:
        clip = read()
        if clip.shape[2] != layout.num_joints or not max(columns) < clip.shape[3] <= 5:
            raise UserError(f"has the shape {clip.shape}, not (persons, frames, 33, {max(columns) + 1} to 5)")
        return _seen(clip[..., columns])[:persons], given_size(image_size, path)

    entries = _files(path, FORMS)
    found = ((id, partial(_named, id, partial(load, read))) for id, read in _clips(entries, persons))
    return layout, ["x", "y", "z"] if depth else ["x", "y", "score"], found


def _files(path: Path, forms: Sequence[str]) -> list[Entry]:
    entries = find_entries(path, lambda name: name.endswith(tuple(forms)) and name not in BESIDE)
    if not entries:
        raise UserError(f"{path}: holds no {', '.join(forms)} file of poses")
    return entries


def _clips(entries: list[Entry], persons: int) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """(id, what reads the array (M, T, V, C)) of every clip."""
    for entry in entries:
        if entry.inside.suffix == ".npz":
            yield from _archived(entry)
        elif entry.inside.suffix == ".npy":
            yield entry.stem, partial(_array, entry)
        else:
            yield entry.stem, partial(_landmarks, entry, persons)


def _archived(entry: Entry) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    try:
        arrays = parse_npz(entry.read(MAX_ARRAYS), str(entry))
    except UserError as error:
        yield entry.stem, partial(_fail, error)
        return
    for name, array in arrays.items():
        yield (entry.stem if len(arrays) == 1 else name), partial(_four, array, f"{entry}, {name}")


def _fail(error: UserError) -> np.ndarray:
    raise error


def _array(entry: Entry) -> np.ndarray:
    return _four(parse_npy(entry.read(MAX_ARRAYS), str(entry)), str(entry))


def _four(array: np.ndarray, where: str) -> np.ndarray:
    if array.ndim not in (3, 4) or array.size == 0 or array.dtype.kind not in "fiu":
        raise UserError(f"{where}: {array.dtype} {array.shape} is no array (persons, frames, joints, channels)")
    with np.errstate(over="ignore"):
        return (array if array.ndim == 4 else array[None]).astype(np.float32)


def _landmarks(entry: Entry, persons: int) -> np.ndarray:
    """(M, T, 33, 4) of a JSON."""
    frames = parse_json(entry.read(MAX_JSON), str(entry))
    if isinstance(frames, dict):
        frames = frames.get("frames")
    if not isinstance(frames, list):
        raise UserError(f"{entry}: must be a list with the landmarks of each frame")
    bodies = []
    for number, frame in enumerate(frames):
        for person in _persons(frame, f"{entry}, frame {number}"):
            try:
                with np.errstate(over="ignore"):
                    points = np.array([_point(point) for point in person], np.float64).astype(np.float32)
            except (TypeError, ValueError, KeyError, OverflowError):
                raise UserError(f"{entry}, frame {number}: landmarks must be x, y, z, visibility as numbers") from None
            if points.shape != (33, 4):
                raise UserError(f"{entry}, frame {number}: a person has {len(points)} landmarks, not 33")
            bodies.append(Body(number, points))
    return assemble(bodies, list(range(len(frames))), (33, 4), persons)


def _persons(frame: Any, where: str) -> list[Any]:
    if isinstance(frame, dict):
        frame = next((frame[key] for key in LANDMARKS if key in frame), None)
    if not frame:
        return []
    if not isinstance(frame, list):
        raise UserError(f"{where}: must hold the list of landmarks")
    one = isinstance(frame[0], dict) or (isinstance(frame[0], list) and frame[0] and not _is_group(frame[0][0]))
    return [frame] if one else frame


def _is_group(value: Any) -> bool:
    return isinstance(value, dict | list)


def _point(point: Any) -> list[Any]:
    if isinstance(point, dict):
        return [point["x"], point["y"], point.get("z", 0.0), point.get("visibility", 1.0)]
    return [*point[:3], point[3] if len(point) > 3 else 1.0]


def _seen(clip: np.ndarray) -> np.ndarray:
    """NaN in every channel is what estimators write for a joint that was not seen; in a single one it is damage."""
    return np.where(np.isnan(clip).all(axis=-1, keepdims=True), 0, clip)


def _tried(load: Callable[[], np.ndarray]) -> np.ndarray | None:
    try:
        return load()
    except UserError:
        return None


def _named(id: str, load: Callable[[], Loaded]) -> Loaded:
    try:
        return load()
    except UserError as error:
        raise UserError(f"clip {id}: {error}") from None
