"""Preparation of single samples, done once before they are packed: centring, turning, scaling, unpacking.

numpy only. x is (M, T, V, C) throughout; precision follows the original systems, because annotations released in
float16 are centred in float16.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from model.errors import UserError
from model.layouts import Layout

BOX_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def keep_main_person(x: np.ndarray) -> np.ndarray:
    """Drop the frames in which the main person is missing, and put that person first.

    The main person is slot 0, unless another has strictly more non-empty frames; that one then changes places with
    slot 0. The originals refuse more than two persons. x: (M, T, V, C). Returns (M, kept frames, V, C).
    """
    there = _present(x)
    main = int(there.sum(axis=1).argmax())
    order = list(range(len(x)))
    order[0], order[main] = main, 0
    return x[order][:, there[main]]


def normalise_3d(
    x: np.ndarray,
    layout: Layout,
    *,
    align_spine: bool = False,
    align_shoulder: bool = False,
    spine: tuple[int, int] = (0, 1),
    shoulders: tuple[int, int] = (8, 4),
    centre: bool = True,
) -> np.ndarray:
    """Centre a sample and, if asked, turn it upright and to the front (PreNormalize3D).

    Frames without the main person are dropped; joint `layout.origin` of that person in the first kept frame
    becomes zero for the whole sample, missing (all-zero) joints stay zero. `align_spine` turns the vector from
    spine[0] to spine[1] in the first frame to +z, `align_shoulder` then that from shoulders[1] to shoulders[0] to
    +x. ProtoGCN only centres; PYSKL's single flag is both; MMAction2 turns both ways by default.

    x: (M, T, V, 3) metres. Returns (M, kept frames, V, 3): float64 if turned, else the precision of x. A sample of
    zeros comes back unchanged.
    """
    if not _present(x).any():
        return x
    x = keep_main_person(x)
    if centre:
        present = (x != 0).any(axis=-1, keepdims=True)
        x = (x - x[0, 0, layout.origin]) * present
    if align_spine:
        bottom, top = spine
        x = _turn(x, x[0, 0, top] - x[0, 0, bottom], np.array([0.0, 0.0, 1.0]))
    if align_shoulder:
        right, left = shoulders
        x = _turn(x, x[0, 0, right] - x[0, 0, left], np.array([1.0, 0.0, 0.0]))
    return x


def _present(x: np.ndarray) -> np.ndarray:
    return ~np.isclose(x, 0, rtol=0, atol=1e-8).all(axis=(2, 3))


def _turn(x: np.ndarray, vector: np.ndarray, target: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) @ rotation_between(vector, target).T


def rotation_between(vector: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The smallest rotation that takes the direction of `vector` to the unit vector `target`; (3, 3) float64.

    Identity when the two are parallel. It is also identity when they are opposite: the originals do not turn round.
    """
    axis = np.cross(vector.astype(np.float64), target)
    if np.abs(axis).sum() < 1e-6 or np.abs(vector).sum() < 1e-6:
        return np.eye(3)
    # The originals normalise in the precision of the annotation, which for float16 moves the angle visibly.
    cosine = np.clip((vector / np.linalg.norm(vector)).astype(np.float64) @ target, -1, 1)
    sine = np.sqrt(1 - cosine * cosine)
    a, b, c = axis / np.linalg.norm(axis)
    cross = np.array([[0, -c, b], [c, 0, -a], [-b, a, 0]])
    return np.eye(3) + sine * cross + (1 - cosine) * cross @ cross


def normalise_2d(
    x: np.ndarray,
    image_size: tuple[float, float] = (1080, 1920),
    *,
    variant: str = "mmaction2",
    mode: str = "fix",
    threshold: float = 0.01,
) -> np.ndarray:
    """Pixels to about [-1, 1] (PreNormalize2D). A third channel is the score and stays.

    mmaction2 maps the image to [-1, 1] in the precision of x, missing joints to (-1, -1). pyskl works in float32 and
    puts joints whose score is at most `threshold` to (0, 0); its mode "auto" maps the box round the other joints
    (without scores: round all of them) instead, if both sides exceed 10 pixels.

    x: (M, T, V, 2 | 3), image_size: (height, width). Returns the same shape.
    """
    if variant not in ("mmaction2", "pyskl"):
        raise UserError(f"normalise_2d: unknown variant '{variant}'; choose mmaction2 or pyskl")
    if mode not in ("fix", "auto") or (mode == "auto" and variant == "mmaction2"):
        raise UserError(f"normalise_2d: mode '{mode}' is unknown for {variant}; choose fix, or auto with pyskl")
    x = x.astype(x.dtype if variant == "mmaction2" else np.float32)
    half = np.array(image_size[::-1], dtype=x.dtype) / 2
    middle = half
    known = x[..., 2] > threshold if x.shape[-1] == 3 else np.ones(x.shape[:-1], dtype=bool)
    if mode == "auto":
        seen = x[..., :2][known]
        low, high = (seen.min(axis=0), seen.max(axis=0)) if len(seen) else (np.zeros(2), np.zeros(2))
        middle, half = (low + high) / 2, (high - low) / 2
    if mode == "fix" or (2 * half > 10).all():
        x[..., :2] = (x[..., :2] - middle) / half
    if variant == "pyskl" and x.shape[-1] == 3:
        x[~known, :2] = 0
    return x


def coco_to_coco_new(x: Any) -> Any:
    """COCO's 17 joints with mid-hip, middle of the spine and mid-shoulder appended (ProtoGCN's `coco_new`).

    x: (..., 17, C), numpy or torch; scores are averaged like coordinates. Returns (..., 20, C) float32.
    """
    x = x.astype(np.float32) if isinstance(x, np.ndarray) else x.float()
    hip = (x[..., 11:12, :] + x[..., 12:13, :]) / 2
    shoulder = (x[..., 5:6, :] + x[..., 6:7, :]) / 2
    joints = [x, hip, (hip + shoulder) / 2, shoulder]
    if isinstance(x, np.ndarray):
        return np.concatenate(joints, axis=-2)
    import torch

    return torch.cat(joints, dim=-2)


def filter_kinetics(
    valid: Sequence[dict[float, int]],
    total_frames: Sequence[int],
    *,
    valid_ratio: float | None,
    box_threshold: float | None,
) -> np.ndarray:
    """Positions of the videos with enough frames that hold a confident box (Kinetics); int64.

    valid: for each video, number of such frames by threshold. Nothing is filtered unless `valid_ratio` is above 0;
    the released recipes set 0.0, which also makes their box threshold idle.
    """
    if not valid_ratio:
        return np.arange(len(valid))
    if box_threshold not in BOX_THRESHOLDS:
        raise UserError(f"box threshold {box_threshold} is not one of {', '.join(map(str, BOX_THRESHOLDS))}")
    share = [counts[box_threshold] / frames for counts, frames in zip(valid, total_frames, strict=True)]
    return np.flatnonzero(np.array(share) >= valid_ratio)


def decompress_pose(
    keypoints: np.ndarray,
    frame_indices: np.ndarray,
    num_frames: int,
    *,
    squeeze: bool = True,
    max_persons: int = 10,
    keep: np.ndarray | None = None,
    where: str = "sample",
) -> np.ndarray:
    """A list of detected bodies to the padded form (DecompressPose).

    keypoints: (B, V, 3) x, y, score of B bodies; frame_indices: (B,) frame of each, never decreasing; keep: (B,)
    bool, bodies to use. `squeeze` counts only frames that hold a body. Bodies take slots in listing order; in a
    frame with more than `max_persons` the highest summed scores are kept. Returns (M, T, V, 3) float16.

    Raises UserError, naming `where`, when no body is left or the frames go backwards.
    """
    if keep is not None:
        keypoints, frame_indices = keypoints[keep], frame_indices[keep]
    if not len(frame_indices):
        raise UserError(f"{where}: no detected body is left; lower the box threshold or remove the sample")
    if (np.diff(frame_indices) < 0).any():
        raise UserError(f"{where}: frame_inds must not decrease; sort the bodies by frame")
    frames = frame_indices.astype(np.int64)
    if squeeze:
        frames = np.unique(frames, return_inverse=True)[1]
        num_frames = int(frames[-1]) + 1
    slot = np.arange(len(frames)) - np.searchsorted(frames, frames)
    if slot.max() >= max_persons:
        total = keypoints[..., 2].sum(axis=-1)
        order = np.lexsort((-total, frames))
        keypoints, frames = keypoints[order], frames[order]
        kept = slot < max_persons
        keypoints, frames, slot = keypoints[kept], frames[kept], slot[kept]
    packed = np.zeros((int(slot.max()) + 1, num_frames, *keypoints.shape[1:]), dtype=np.float16)
    packed[slot, frames] = keypoints
    return packed


def pad_frames(x: np.ndarray, length: int, *, loop: bool = False) -> np.ndarray:
    """Fill a sample up to `length` frames, with zeros or by starting over (vanilla ST-GCN). x: (M, T, V, C)."""
    frames = x.shape[1]
    if frames > length:
        raise UserError(f"a sample of {frames} frames cannot be padded to {length}; sample frames instead")
    if loop:
        return x[:, np.arange(length) % frames]
    return np.pad(x, ((0, 0), (0, length - frames), (0, 0), (0, 0)))


def format_clips(x: np.ndarray, num_clips: int = 1, *, persons: int = 2, loop: bool = False) -> np.ndarray:
    """A sample's clips with a fixed number of persons (FormatGCNInput).

    Missing persons are zeros (`loop`, MMAction2 only: a single person is repeated), further ones are dropped in
    storage order. x: (M, num_clips * T, V, C). Returns (num_clips, persons, T, V, C).
    """
    count, frames, joints, channels = x.shape
    if frames % num_clips:
        raise UserError(f"{frames} frames do not divide into {num_clips} clips")
    if loop and count == 1:
        x = np.repeat(x, persons, axis=0)
    x = np.concatenate([x[:persons], np.zeros((max(persons - count, 0), *x.shape[1:]), x.dtype)])[:persons]
    return x.reshape(persons, num_clips, frames // num_clips, joints, channels).swapaxes(0, 1)
