"""Reader of Kinetics-Skeleton: an annotation pickle that is a table of contents, key points in files of their own.

A sample names for each detected body its frame (`frame_inds`) and confidence (`box_score`). The key points lie in
`kpfiles/` beside the pickle: many videos in the pickle `raw_file` (PYSKL), or one pickle per video (MMAction2).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components.annotations import Annotations, Sample, image_size, open_annotations, whole
from components.pickles import load_pickle
from components.source import Source, set_aside
from model.errors import UserError
from model.layouts import load_layout
from model.prepare import decompress_pose, filter_kinetics
from model.store import Clip

KEY_POINTS = "kpfiles"


def read_kinetics(
    path: str | Path,
    *,
    strict: bool = False,
    valid_ratio: float = 0.0,
    box_threshold: float = 0.5,
    squeeze: bool = True,
    max_persons: int = 10,
    layout: str = "coco",
    classes: Sequence[str] | None = None,
) -> Source:
    """Read the folder `path`: one annotation pickle, and the folder `kpfiles`.

    With `valid_ratio` above 0, videos with a smaller share of frames that hold a box of `box_threshold` are left out,
    and so are their boxes below it; the released recipes say 0, which uses every box. `squeeze` counts only frames
    that hold a body. Files are read once each, in the order in which samples first name them. A sample that its file
    lacks or whose bodies do not fit is set aside, or ends the run if `strict`.

    Raises UserError naming file, sample and field for everything else that is wrong.
    """
    index = open_annotations(Path(path))
    skeleton = load_layout(layout)
    splits = index.splits()
    excluded: list[tuple[str, str]] = []
    files = _files(index, index.path.parent / KEY_POINTS)
    kept = _filtered(index, valid_ratio, box_threshold)
    for position in sorted(set(range(len(index.ids))) - set(kept)):
        reason = f"fewer than {valid_ratio:g} of its frames hold a box of {box_threshold:g}"
        set_aside(index.ids[position], reason, splits, excluded)
    by_file: dict[Path, list[int]] = {}
    for position in kept:
        by_file.setdefault(files[position], []).append(position)

    def joints_of(position: int, content: Any) -> np.ndarray:
        sample, where = index.samples[position], index.wheres[position]
        boxes = _boxes(sample, where)
        bodies = _bodies(content, index.ids[position], files[position], (len(boxes), skeleton.num_joints))
        confident = _scores(sample, where) >= box_threshold if valid_ratio else None
        frames = whole(sample, "total_frames", where)
        options: dict[str, Any] = {"squeeze": squeeze, "max_persons": max_persons, "keep": confident, "where": where}
        joints = decompress_pose(bodies, boxes, frames, **options)
        if not joints[..., :2].any():
            raise UserError(f"{where}: all joints are zero; leave the sample out")
        return joints

    def clips() -> Iterator[Clip]:
        for file, positions in by_file.items():
            content = None  # the former file's, before the next one is read
            content = load_pickle(file)
            for position in positions:
                id = index.ids[position]
                try:
                    joints = joints_of(position, content)
                except UserError as error:
                    if strict:
                        raise
                    set_aside(id, str(error), splits, excluded)
                    continue
                size = image_size(index.samples[position], index.wheres[position])
                yield Clip(id, index.labels[position], joints, {}, size)

    return Source(clips(), skeleton, index.classes(classes, skeleton), splits, ["x", "y", "score"], excluded)


def _files(index: Annotations, folder: Path) -> list[Path]:
    """The key point file of each sample. Raises UserError when some do not exist."""
    names = [str(sample.get("raw_file", f"{id}.pkl")) for id, sample in zip(index.ids, index.samples, strict=True)]
    # The folder that a released `raw_file` names is that of its author.
    files = [folder / Path(name).name for name in names]
    missing = sorted({file for file in files if not file.is_file()})
    if missing:
        raise UserError(f"{missing[0]}: no such file of key points; put it there ({len(missing)} are missing)")
    return files


def _filtered(index: Annotations, valid_ratio: float, box_threshold: float) -> list[int]:
    if not valid_ratio:
        return list(range(len(index.ids)))
    valid, frames = [], []
    for sample, where in zip(index.samples, index.wheres, strict=True):
        if not isinstance(sample.get("valid"), dict):
            raise UserError(f"{where}: has no 'valid', frames with a box by threshold; set valid_ratio to 0")
        valid.append({round(float(threshold), 1): int(count) for threshold, count in sample["valid"].items()})
        frames.append(whole(sample, "total_frames", where))
    return filter_kinetics(valid, frames, valid_ratio=valid_ratio, box_threshold=box_threshold).tolist()


def _boxes(sample: Sample, where: str) -> np.ndarray:
    boxes = sample.get("frame_inds")
    if not isinstance(boxes, np.ndarray) or boxes.ndim != 1 or boxes.dtype.kind not in "iu":
        raise UserError(f"{where}: 'frame_inds' must be an array of the frame of each body")
    if len(boxes) and not 0 <= boxes.min() <= boxes.max() < whole(sample, "total_frames", where):
        raise UserError(
            f"{where}: 'frame_inds' goes to {boxes.max()} of {sample['total_frames']} frames; correct either"
        )
    return boxes


def _scores(sample: Sample, where: str) -> np.ndarray:
    scores = sample.get("box_score")
    if not isinstance(scores, np.ndarray) or scores.shape != sample["frame_inds"].shape:
        raise UserError(f"{where}: 'box_score' must be an array of the confidence of each body")
    return scores


def _bodies(content: Any, id: str, file: Path, shape: tuple[int, int]) -> np.ndarray:
    """Key points (B, V, 3) of a video in the content of its file. Raises UserError if it is not there."""
    entry = content.get(id, content) if isinstance(content, dict) else content
    bodies = entry.get("keypoint") if isinstance(entry, dict) else None
    if not isinstance(bodies, np.ndarray) or bodies.shape != (*shape, 3) or bodies.dtype.kind not in "fiu":
        found = f"has shape {bodies.shape}" if isinstance(bodies, np.ndarray) else "is missing"
        raise UserError(f"{file}: 'keypoint' of {id} {found}; it must hold {shape[0]} bodies of {shape[1]} x 3")
    if not np.isfinite(bodies).all():
        raise UserError(f"{file}: 'keypoint' of {id} holds NaN or infinity")
    return bodies
