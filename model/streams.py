"""The six streams: views of the joints by a linear map over the joints and, for motion, a time difference.

    joint          x[v]
    bone           x[v] - x[parent of v]
    kbone          x[v] - x[grandparent of v]            ("K-bone" of InfoGCN)
    *_motion       next frame - this frame of the above, zero in the last frame

A third channel that is a detection score follows the layout's `score_mean`: averaged over the two joints (or the
two frames), or, where the released code treats it as a coordinate, differenced.

All functions take numpy arrays or torch tensors. Differences are taken in the precision of the input, and `bone`
and `kbone` are then float32: annotations released in float16 are subtracted in float16 by the original systems.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from model.errors import UserError
from model.layouts import Layout

STREAMS = ("joint", "bone", "kbone", "joint_motion", "bone_motion", "kbone_motion")
HEATMAP_STREAMS = ("keypoint", "limb")  # PoseC3D's, made by model.heatmap_clips
CHANNELS = (("x", "y", "z"), ("x", "y", "score"), ("x", "y"))

Array = Any  # numpy.ndarray or torch.Tensor; torch is not imported here


def is_motion(stream: str) -> bool:
    """Whether the stream is a difference between frames. Raises UserError for an unknown stream."""
    if stream not in STREAMS:
        raise UserError(f"unknown stream '{stream}'; streams: {', '.join(STREAMS)}")
    return stream.endswith("_motion")


def base_of(stream: str) -> str:
    """The stream whose time difference this is; itself when it is no motion."""
    return stream.removesuffix("_motion") if is_motion(stream) else stream


def score_channel(channels: Sequence[str]) -> int | None:
    """Position of the detection score, None without one. Raises UserError for channels no data set has."""
    if tuple(channels) not in CHANNELS:
        known = "; ".join(", ".join(names) for names in CHANNELS)
        raise UserError(f"channels ({', '.join(channels)}) are not supported; supported: {known}")
    return list(channels).index("score") if "score" in channels else None


def spatial_part(x: Array, layout: Layout, stream: str, channels: Sequence[str]) -> Array:
    """The stream without its time difference.

    x: (..., V, C). Returns (..., V, C): x itself for the joint streams, float32 for the others.
    """
    score = score_channel(channels)
    base = base_of(stream)
    if base == "joint":
        return x
    other = of_joints(x, layout.bones if base == "bone" else layout.kbones)
    difference = x - other
    if score is not None and layout.score_mean[base]:
        difference[..., score] = (x[..., score] + other[..., score]) / 2
    return _single(difference)


def time_difference(now: Array, following: Array, layout: Layout, channels: Sequence[str]) -> Array:
    """Next frame minus this frame; the score is averaged where the layout says so. All shapes (..., V, C)."""
    score = score_channel(channels)
    difference = following - now
    if score is not None and layout.score_mean["motion"]:
        difference[..., score] = (following[..., score] + now[..., score]) / 2
    return difference


def apply_stream(x: Array, layout: Layout, stream: str, channels: Sequence[str]) -> Array:
    """A stream of whole sequences.

    x: (..., T, V, C), consecutive frames. Returns the same shape; a motion is zero in the last frame.
    """
    base = spatial_part(x, layout, stream, channels)
    if not is_motion(stream):
        return base
    moved = base.copy() if isinstance(base, np.ndarray) else base.clone()
    moved[..., :-1, :, :] = time_difference(base[..., :-1, :, :], base[..., 1:, :, :], layout, channels)
    moved[..., -1, :, :] = 0
    return moved


def motion_of(now: Array, following: Array, layout: Layout, channels: Sequence[str], last: Array) -> Array:
    """The motion of gathered frames, for batches.

    now: (..., T, V, C), the spatial part of any frames. following: the same shape, that of what comes one frame after
    each of them. last: (..., T) bool, frames with no successor, whose motion is zero. Returns (..., T, V, C).
    """
    moved = time_difference(now, following, layout, channels)
    moved[last] = 0
    return moved


def stream_matrix(layout: Layout, stream: str, channels: Sequence[str]) -> np.ndarray:
    """The linear map of a stream's spatial part, one matrix per channel.

    Returns (C, V, V) float32 with `spatial_part(x)[..., v, c] = sum_u matrix[c, v, u] x[..., u, c]`.
    """
    count, width = layout.num_joints, len(channels)
    basis = np.repeat(np.eye(count, dtype=np.float32)[:, :, None], width, axis=2)
    return spatial_part(basis, layout, stream, channels).transpose(2, 1, 0)


def motion_matrix(layout: Layout, channels: Sequence[str]) -> np.ndarray:
    """How a motion mixes two frames, per channel.

    Returns (C, 2) float32, the weights of this and the next frame: (-1, 1), or (0.5, 0.5) for an averaged score.
    """
    now, following = np.eye(2, dtype=np.float32)[:, :, None, None].repeat(len(channels), axis=3)
    return time_difference(now, following, layout, channels)[:, 0].T


def of_joints(x: Array, joints: Sequence[int]) -> Array:
    """The joints `joints` of x (..., V, C), in that order."""
    if isinstance(x, np.ndarray):
        return x[..., list(joints), :]
    import torch

    # All numbers of a frame are one row: on a CPU that is eight times as quick as joint by joint.
    width = x.shape[-1]
    columns = [joint * width + channel for joint in joints for channel in range(width)]
    rows = x.flatten(-2).index_select(-1, torch.tensor(columns, device=x.device))
    return rows.unflatten(-1, (len(joints), width))


def _single(x: Array) -> Array:
    return x.astype(np.float32) if isinstance(x, np.ndarray) else x.float()
