"""Training samples of 3D joints made one at a time, numpy step by step: what `model.clips` must equal.

Each sample is copied whole and centred (released systems prepare at every access, a packed store once); its whole
sequence is augmented and turned into the stream before frames are chosen. Draws are numbers in [0, 1): `draws` holds
those of one sample, by step.
"""

from copy import deepcopy
from typing import Any

import numpy as np

from model.layouts import Layout

Draws = dict[str, Any]


def plain_sample(
    annotation: dict[str, Any],
    layout: Layout,
    stream: str,
    steps: list[dict[str, Any]],
    draws: Draws,
    clip_length: int,
    persons: int,
    centre: bool = True,
) -> np.ndarray:
    """One clip (persons, clip_length, V, C) float32 of `annotation` {"keypoint": (M, T, V, C), "total_frames"}."""
    sample = deepcopy(annotation)
    x = _centred(sample["keypoint"], layout.origin) if centre else sample["keypoint"]
    x = x.astype(np.float32)
    for step in steps:
        x = STEPS[step["name"]](x, layout, step, draws[step["name"]])
    x = _stream(x, layout, stream)
    frames = plain_frames(sample["total_frames"], clip_length, draws["frames"])
    x = x[:, frames]
    if len(x) < persons:
        x = np.concatenate([x, np.zeros((persons - len(x), *x.shape[1:]), np.float32)])
    return np.ascontiguousarray(x[:persons])


def _centred(x: np.ndarray, origin: int) -> np.ndarray:
    """The main body's joint `origin` in its first frame becomes zero; frames without that body are dropped."""
    kept = [[t for t in range(x.shape[1]) if not np.all(np.isclose(body[t], 0))] for body in x]
    main = 1 if len(x) == 2 and len(kept[1]) > len(kept[0]) else 0
    x = x[::-1] if main else x
    x = x[:, kept[main]]
    seen = ((x != 0).sum(-1) > 0)[..., None]
    return (x - x[0, 0, origin]) * seen


def plain_frames(total: int, length: int, draws: np.ndarray) -> np.ndarray:
    """Frames of a clip from `length` + 1 draws."""
    if total < length:
        start = int(draws[0] * total)
        return np.array([(start + k) % total for k in range(length)])
    if total < 2 * length:
        gaps = set(np.argsort(draws, kind="stable")[: total - length].tolist())
        frames, skipped = [], 0
        for k in range(length):
            skipped += k in gaps
            frames.append(k + skipped)
        return np.array(frames)
    frames = []
    for k in range(length):
        first, end = k * total // length, (k + 1) * total // length
        frames.append(first + int(draws[k] * (end - first)))
    return np.array(frames)


def _rotate(x: np.ndarray, layout: Layout, step: dict[str, Any], draws: np.ndarray) -> np.ndarray:
    if not x.any():
        return x
    theta = step["theta"]
    a, b, c = (draws.astype(np.float64) * 2 - 1) * theta
    about_x = np.array([[1, 0, 0], [0, np.cos(a), np.sin(a)], [0, -np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, -np.sin(b)], [0, 1, 0], [np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), np.sin(c), 0], [-np.sin(c), np.cos(c), 0], [0, 0, 1]])
    matrix = about_z @ about_y @ about_x
    return np.einsum("ab,mtvb->mtva", matrix, x).astype(np.float32)


def _scale(x: np.ndarray, layout: Layout, step: dict[str, Any], draws: np.ndarray) -> np.ndarray:
    factor = 1 + (draws.astype(np.float64) * 2 - 1) * step["scale"]
    return x * factor.astype(np.float32)


def _flip(x: np.ndarray, layout: Layout, step: dict[str, Any], draws: np.ndarray) -> np.ndarray:
    return x[:, :, list(layout.mirror)] if draws < step["p"] else x


def _drop(x: np.ndarray, layout: Layout, step: dict[str, Any], draws: tuple[float, int]) -> np.ndarray:
    if draws[0] < step["p"]:
        x = x.copy()
        for joint in list(layout.parts.values())[draws[1]]:
            x[:, :, joint] = 0
    return x


STEPS = {"rotate": _rotate, "scale": _scale, "spatial_flip": _flip, "part_drop": _drop}


def _stream(x: np.ndarray, layout: Layout, stream: str) -> np.ndarray:
    base = stream.removesuffix("_motion")
    if base != "joint":
        others = layout.bones if base == "bone" else layout.kbones
        made = np.zeros(x.shape, np.float32)
        for joint, other in enumerate(others):
            made[:, :, joint] = x[:, :, joint] - x[:, :, other]
        x = made
    if stream.endswith("_motion"):
        moved = np.zeros(x.shape, np.float32)
        moved[:, :-1] = np.diff(x, axis=1)
        x = moved
    return x
