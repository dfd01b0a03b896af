"""Readers of the JSON that pose estimators write: OpenPose's files per frame, and COCO key points.

Of COCO's form there are annotation files (images, annotations, perhaps videos), lists of results (one a body), and
MMPose's `instance_info` (one a frame). Channels are x, y in pixels and the score.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from components.annotations import image_size as image_size_of
from components.entries import Entry, find_entries
from components.files import parse_json
from components.labels import BESIDE, Loaded, labelled, read_labels
from components.source import Source
from model.errors import UserError
from model.layouts import Layout, load_layout
from model.tracks import PERSONS, Body, assemble

MAX_FRAME = 8 << 20  # bytes of a file that holds one frame
MAX_FILE = 512 << 20  # bytes of a file that holds clips
SCORED = ["x", "y", "score"]
OPENPOSE_LAYOUTS = {25: "body25", 18: "openpose"}
KEYPOINTS = ("pose_keypoints_2d", "pose_keypoints")
TRACKS = ("track_id", "person_id", "idx", "instance_id")
NAME = re.compile(r"(?:(?P<clip>.+)[_.-])?(?P<frame>[0-9]{1,15})_keypoints")
_LAST_NUMBER = re.compile(r"([0-9]{1,15})[^0-9]*$")

Size = Sequence[float] | None
Opened = tuple[Layout, list[str], Iterator[tuple[str, Callable[[], Loaded]]]]
Frames = dict[int, list[Body]]


def read_openpose(
    path: str | Path,
    *,
    strict: bool = False,
    classes: Sequence[str] | None = None,
    persons: int = PERSONS,
    image_size: Size = None,
) -> Source:
    """Read OpenPose's `CLIP_000000000000_keypoints.json`, a file a frame, of BODY_25 (layout body25) or COCO-18.

    A clip is named after its files, or after their folder where they are named by number alone. Bodies are linked
    over frames by nearness unless `person_id` tells them apart; the `persons` seen most are kept. Labels and splits
    lie beside (`components.labels`). `image_size` is (height, width).

    Raises UserError naming file and field.
    """
    layout, channels, poses = open_openpose(Path(path), persons, image_size)
    return labelled(poses, read_labels(Path(path), classes), layout, channels, strict)


def read_coco(
    path: str | Path,
    *,
    strict: bool = False,
    classes: Sequence[str] | None = None,
    layout: str | None = None,
    persons: int = PERSONS,
    image_size: Size = None,
) -> Source:
    """Read COCO key points: one JSON of many clips, a JSON a clip, or a folder a clip with a JSON a frame.

    In one JSON a clip is a video, else the folder of its images. The layout is COCO's 17 joints unless another is
    named. Track ids are used where all bodies of a clip have one. Else as `read_openpose`.
    """
    labels = read_labels(Path(path), classes)
    own = labels.layout(layout, load_layout("coco"))
    assert own is not None
    _, channels, poses = open_coco(Path(path), own, persons, image_size)
    return labelled(poses, labels, own, channels, strict)


def open_openpose(path: Path, persons: int = PERSONS, image_size: Size = None) -> Opened:
    """Layout, channels and clips, without labels."""
    clips: dict[str, list[tuple[int, Entry]]] = {}
    for entry in find_entries(path, lambda name: name.endswith("_keypoints.json")):
        match = NAME.fullmatch(entry.stem)
        if match is None:
            raise UserError(f"{entry}: its name has no frame number; OpenPose writes CLIP_000000000000_keypoints.json")
        id = match["clip"] or (str(entry.inside.parent) if entry.inside.parent.name else path.stem)
        clips.setdefault(id, []).append((int(match["frame"]), entry))
    if not clips:
        raise UserError(f"{path}: holds no file NAME_keypoints.json; name the folder that OpenPose wrote")
    layout = _openpose_layout(clips)

    def load(files: list[tuple[int, Entry]]) -> Loaded:
        frames: Frames = {}
        for frame, entry in files:
            if frame in frames:
                raise UserError(f"{entry}: the frame {frame} of this clip is there twice; keep clips apart by name")
            frames[frame] = [
                Body(frame, _scored(values, str(entry), layout), track) for values, track in _openpose_bodies(entry)
            ]
        return _clip(frames, layout, persons), given_size(image_size, path)

    return layout, SCORED, ((id, partial(load, files)) for id, files in sorted(clips.items()))


def open_coco(path: Path, layout: Layout, persons: int = PERSONS, image_size: Size = None) -> Opened:
    """Layout, channels and clips, without labels."""
    files: dict[str, list[Entry]] = {}
    for entry in find_entries(path, lambda name: name.endswith(".json") and name not in BESIDE):
        by_frame = entry.stem.isdigit() and bool(entry.inside.parent.name)
        files.setdefault(str(entry.inside.parent) if by_frame else str(entry.inside.with_suffix("")), []).append(entry)
    if not files:
        raise UserError(f"{path}: holds no JSON file of key points")

    def loaded(frames: Frames, size: Size) -> Loaded:
        return _clip(frames, layout, persons), given_size(image_size or size, path)

    def of_frames(entries: list[Entry]) -> Loaded:
        frames: Frames = {}
        for entry in entries:
            number = int(entry.stem[-15:])
            for found, _ in _coco_clips(entry, layout, MAX_FRAME).values():
                bodies = [body for each in found.values() for body in each]
                frames.setdefault(number, []).extend(Body(number, body.joints, body.person) for body in bodies)
        return loaded(frames, None)

    def clips() -> Iterator[tuple[str, Callable[[], Loaded]]]:
        for id, entries in sorted(files.items()):
            if entries[0].stem.isdigit() and entries[0].inside.parent.name:
                yield id, partial(of_frames, entries)
                continue
            try:
                found = _coco_clips(entries[0], layout, MAX_FILE)
            except UserError as error:
                yield id, partial(_fail, error)
                continue
            for own, (frames, size) in found.items():
                yield own or entries[0].stem, partial(loaded, frames, size)

    return layout, SCORED, clips()


def _fail(error: UserError) -> Loaded:
    raise error


def _openpose_layout(clips: dict[str, list[tuple[int, Entry]]]) -> Layout:
    """The layout of the first body there is; damaged files are left to their own clips."""
    for files in clips.values():
        for _, entry in files:
            try:
                bodies = _openpose_bodies(entry)
            except UserError:
                continue
            for values, _ in bodies:
                if isinstance(values, list) and len(values) // 3 in OPENPOSE_LAYOUTS:
                    return load_layout(OPENPOSE_LAYOUTS[len(values) // 3])
    raise UserError(f"{entry}: no body of 25 or 18 joints in any file; run OpenPose with BODY_25 or COCO")


def _openpose_bodies(entry: Entry) -> list[tuple[Any, Any]]:
    """(flat key points, track or None) of each body."""
    content = parse_json(entry.read(MAX_FRAME), str(entry))
    people = content.get("people") if isinstance(content, dict) else None
    if not isinstance(people, list) or not all(isinstance(person, dict) for person in people):
        raise UserError(f"{entry}: must be an object with the list 'people', as OpenPose writes it")
    found = []
    for person in people:
        values = next((person[key] for key in KEYPOINTS if key in person), None)
        if values is None:
            raise UserError(f"{entry}: a person has no '{KEYPOINTS[0]}'; write body key points")
        track = person.get("person_id")
        track = track[0] if isinstance(track, list) and track else track
        found.append((values, track if isinstance(track, int) and track >= 0 else None))
    return found


def _coco_clips(entry: Entry, layout: Layout, limit: int) -> dict[str, tuple[Frames, Size]]:
    """Frames and image size by clip; the clip '' is that of the file's own name."""
    content = parse_json(entry.read(limit), str(entry))
    if isinstance(content, dict) and "annotations" in content:
        return _annotated(content, entry, layout)
    if isinstance(content, dict) and "instance_info" in content:
        content = content["instance_info"]
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise UserError(f"{entry}: must be COCO annotations, a list of results, or MMPose's instance_info")
    clips: dict[str, tuple[Frames, Size]] = {}
    for place, item in enumerate(content):
        frames: Frames
        if "instances" in item:
            frames, _ = clips.setdefault("", ({}, None))
            own = _list(item["instances"], entry, "instances")
            number = _whole(item.get("frame_id", place), entry, "frame_id")
            frames.setdefault(number, []).extend(_body(each, number, entry, layout) for each in own)
            continue
        image = item.get("image_id", place)
        number = _frame_of(str(image), place) if isinstance(image, str) else _whole(image, entry, "image_id")
        name = _folder(image) if isinstance(image, str) else ""
        frames, _ = clips.setdefault(name, ({}, None))
        frames.setdefault(number, []).append(_body(item, number, entry, layout))
    return clips


def _annotated(content: dict[str, Any], entry: Entry, layout: Layout) -> dict[str, tuple[Frames, Size]]:
    """An annotation file. A frame is the image's `frame_id`, else its place among the images of the clip by name."""
    videos = {_id(v, entry): str(v.get("name", v["id"])) for v in _list(content.get("videos", []), entry, "videos")}
    named: dict[str, list[tuple[str, Any, dict[str, Any]]]] = {}
    for image in _list(content.get("images"), entry, "images"):
        file = str(image.get("file_name", ""))
        video = image.get("video_id")
        clip = videos.get(video, str(video)) if isinstance(video, int | str) else _folder(file)
        named.setdefault(clip, []).append((file, _id(image, entry), image))
    clips: dict[str, tuple[Frames, Size]] = {}
    where: dict[Any, tuple[str, int]] = {}
    for clip, images in named.items():
        first = images[0][2]
        size = (first["height"], first["width"]) if {"height", "width"} <= first.keys() else None
        frames: Frames = {}
        for place, (_, key, image) in enumerate(sorted(images, key=lambda item: item[0])):
            number = _whole(image.get("frame_id", place), entry, "frame_id")
            frames.setdefault(number, [])
            where[key] = clip, number
        clips[clip] = frames, size
    for item in _list(content["annotations"], entry, "annotations"):
        image = item.get("image_id")
        if not isinstance(image, int | str) or image not in where:
            raise UserError(f"{entry}: an annotation names the image {image!r:.40}, which is not there")
        if "keypoints" not in item:  # a box or a mask of something else
            continue
        clip, number = where[image]
        body = _body(item, number, entry, layout)
        score = body.joints[:, 2]
        if np.isin(score, (0, 1, 2)).all():  # COCO's flag: 0 not labelled, 1 hidden, 2 visible
            body.joints[:, 2] = score > 0
        clips[clip][0][number].append(body)
    return clips


def _body(item: dict[str, Any], frame: int, entry: Entry, layout: Layout) -> Body:
    track = next((item[key] for key in TRACKS if isinstance(item.get(key), int | str)), None)
    values = item.get("keypoints")
    if isinstance(values, list) and values and isinstance(values[0], list) and "keypoint_scores" in item:
        scores = _list(item["keypoint_scores"], entry, "keypoint_scores", dict_items=False)
        if len(scores) != len(values) or not all(isinstance(point, list) for point in values):
            raise UserError(f"{entry}: 'keypoints' and 'keypoint_scores' must be as many")
        values = [[*point[:2], score] for point, score in zip(values, scores, strict=True)]
    return Body(frame, _scored(values, str(entry), layout), track)


def _scored(values: Any, where: str, layout: Layout) -> np.ndarray:
    """(V, 3) float32 from a flat or nested list of x, y, score; a joint whose score is 0 was not seen."""
    try:
        with np.errstate(over="ignore"):
            joints = np.array(values, np.float64).reshape(-1, 3).astype(np.float32)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{where}: key points must be x, y, score of each joint, as numbers") from None
    if len(joints) != layout.num_joints:
        raise UserError(f"{where}: a body has {len(joints)} joints, layout '{layout.name}' {layout.num_joints}")
    if (joints[:, 2] < 0).any():
        raise UserError(f"{where}: a key point has a negative score; scores go from 0 up")
    joints[joints[:, 2] == 0] = 0
    return joints


def _clip(frames: Frames, layout: Layout, persons: int) -> np.ndarray:
    bodies = [body for frame in sorted(frames) for body in frames[frame]]
    return assemble(bodies, list(frames), (layout.num_joints, 3), persons)


def given_size(size: Size, path: Path) -> tuple[float, float] | None:
    """An image size that a reader was given. Raises UserError when it is none."""
    return image_size_of({"img_shape": size}, str(path))


def _folder(name: str) -> str:
    parent = PurePosixPath(name).parent
    return str(parent) if parent.name else ""


def _frame_of(name: str, otherwise: int) -> int:
    match = _LAST_NUMBER.search(PurePosixPath(name).stem)
    return int(match[1]) if match else otherwise


def _whole(value: Any, entry: Entry, key: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 10**15:
        raise UserError(f"{entry}: '{key}' is {value!r:.40}, not a whole number from 0")
    return value


def _list(value: Any, entry: Entry, key: str, dict_items: bool = True) -> list[Any]:
    if not isinstance(value, list) or (dict_items and not all(isinstance(item, dict) for item in value)):
        raise UserError(f"{entry}: '{key}' must be a list{' of objects' if dict_items else ''}")
    return value


def _id(item: dict[str, Any], entry: Entry) -> int | str:
    if not isinstance(item.get("id"), int | str):
        raise UserError(f"{entry}: an image or video has no 'id'")
    return item["id"]
