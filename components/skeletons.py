"""Clips made small enough to travel in a page: upright axes, few frames, 16-bit coordinates."""

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.layouts import Layout

MISSING = -32768
EXTENT = 20000  # half the larger side of a clip's box, in units of the 16-bit coordinates
UPPER = ("head", "nose", "neck", "eye")
LOWER = ("ankle", "foot", "knee", "hip", "base")


def describe_layout(layout: Layout) -> dict[str, Any]:
    """What drawing needs to know: bones, the side of each joint (-1 left, 0 middle, 1 right) and the loose ends."""
    degree = np.bincount(np.array(layout.edges).reshape(-1), minlength=layout.num_joints)
    return {
        "joints": list(layout.joints),
        "edges": [list(edge) for edge in layout.edges],
        "sides": [_side(layout, v) for v in range(layout.num_joints)],
        "ends": np.flatnonzero(degree == 1).tolist(),
    }


def _side(layout: Layout, joint: int) -> int:
    twin = layout.mirror[joint]
    if twin == joint:
        return 0
    names = layout.joints[joint].lower(), layout.joints[twin].lower()
    if any(word in names[0] for word in ("left", "right")):
        return -1 if "left" in names[0] else 1
    return -1 if joint < twin else 1


def upright_axes(clips: list[NDArray], layout: Layout, channels: list[str]) -> list[tuple[int, int]]:
    """(channel, sign) of rightward, upward and (in 3D) depth, so that heads are above feet however a set is turned.

    A data set's up is where upper-body joints lie from lower-body ones; layouts without such names keep y, which
    points up in 3D and down in images. Handedness is kept.
    """
    names = [name.lower() for name in layout.joints]
    upper = [v for v, name in enumerate(names) if any(word in name for word in UPPER)]
    lower = [v for v, name in enumerate(names) if any(word in name for word in LOWER)]
    depth = len(channels) > 2 and channels[2] == "z"
    if not depth:
        return [(0, 1), (1, -1)]
    up, sign = 1, 1
    if upper and lower and clips:
        rise = np.median([_rise(clip, upper, lower) for clip in clips], axis=0)
        up = int(np.abs(rise).argmax())
        sign = 1 if rise[up] >= 0 else -1
    # A rotation of the axes, never a mirror image: left stays left.
    right, away = {0: ((1, -1), (2, 1)), 1: ((0, 1), (2, 1)), 2: ((0, 1), (1, -1))}[up]
    return [right, (up, sign), (away[0], away[1] * sign)]


def _rise(clip: NDArray, upper: list[int], lower: list[int]) -> NDArray:
    clip = clip[..., :3].astype(np.float32)
    seen = (clip != 0).any(axis=(2, 3))  # (M, T)
    body = clip[seen] if seen.any() else clip.reshape(-1, *clip.shape[2:])
    return body[:, upper].mean(axis=(0, 1)) - body[:, lower].mean(axis=(0, 1))


def encode_clip(
    clip: NDArray, axes: list[tuple[int, int]], channels: list[str], max_frames: int = 64
) -> dict[str, Any]:
    """Clip (M, T, V, C) as {"persons", "frames", "step", "dims", "box", "data"}; empty persons are left out.

    `data` is base64 of little-endian int16 [frame, person, joint, dimension], centred on the middle of the box that
    holds 98 % of the joints, whose larger side spans 2 * EXTENT; `box` is half the extent of each dimension. A joint
    that was not seen is MISSING: no body in the frame, or score 0 and far from the body. Of longer clips every
    `step`-th frame is kept.
    """
    clip = np.asarray(clip, np.float32)
    seen = np.broadcast_to((clip != 0).any(axis=(2, 3))[..., None], clip.shape[:3])
    if "score" in channels:
        seen = seen & _plausible(clip[..., :2], clip[..., channels.index("score")] > 0)
    present = seen.any(axis=(1, 2))
    clip, seen = clip[present], seen[present]
    step = -(-clip.shape[1] // max_frames)
    clip, seen = clip[:, ::step], seen[:, ::step]
    turned = np.stack([clip[..., channel] * sign for channel, sign in axes], axis=-1)
    visible = turned[seen] if seen.any() else np.zeros((1, len(axes)), np.float32)
    low, high = np.percentile(visible, [1, 99], axis=0)
    scale = EXTENT / max(float((high - low)[:2].max()) / 2, 1e-6)
    numbers = np.clip((turned - (low + high) / 2) * scale, -32767, 32767).round()
    numbers[~seen] = MISSING
    packed = numbers.transpose(1, 0, 2, 3).astype("<i2")
    return {
        "persons": packed.shape[1],
        "frames": packed.shape[0],
        "step": step,
        "dims": packed.shape[3],
        "box": ((high - low) / 2 * scale).round().astype(int).tolist(),
        "data": base64.b64encode(packed.tobytes()).decode(),
    }


def _plausible(places: NDArray, scored: NDArray) -> NDArray:
    """(M, T, V) joints to draw: those with a score, and hidden ones whose estimate lies by the body of the frame.

    Annotators place hidden joints with care; detectors leave them in the image's corner.
    """
    low = np.where(scored[..., None], places, np.inf).min(axis=2, keepdims=True)
    high = np.where(scored[..., None], places, -np.inf).max(axis=2, keepdims=True)
    margin = np.maximum(high - low, 0).max(axis=-1, keepdims=True) / 2
    return scored | ((places >= low - margin) & (places <= high + margin)).all(axis=-1)


def decode_clip(encoded: dict[str, Any], joints: int) -> NDArray:
    """(T, M, V, dims) float32 coordinates of an encoded clip, NaN where a joint is missing."""
    flat = np.frombuffer(base64.b64decode(encoded["data"]), "<i2").astype(np.float32)
    flat[flat == MISSING] = np.nan
    return flat.reshape(encoded["frames"], encoded["persons"], joints, encoded["dims"])
