"""Training heat maps of one sample at a time: chosen frames cut to their box, scaled, cropped, mirrored, drawn.

What `model.heatmap_clips` must equal, for the same draws in [0, 1).
"""

import math
from copy import deepcopy
from typing import Any

import numpy as np

from benchmarks.plain.heatmaps import plain_keypoint_maps, plain_limb_maps
from benchmarks.plain.samples import plain_frames
from model.layouts import Layout

SIGMA, THRESHOLD, PADDING, SHORT, SIDE, AREA, ASPECT, FLIP = 0.6, 1e-4, 0.25, 64, 56, (0.56, 1.0), (3 / 4, 4 / 3), 0.5


def plain_volume(
    annotation: dict[str, Any], layout: Layout, stream: str, draws: dict[str, Any], clip_length: int
) -> np.ndarray:
    """Maps (V or limbs, T, SIDE, SIDE) float32 of `annotation` {"keypoint": (M, T, V, 3), "total_frames", "img_shape"}.

    draws: "frames" (clip_length + 1,), "crop" (22,), "flip" a number.
    """
    sample = deepcopy(annotation)
    x = sample["keypoint"][:, plain_frames(sample["total_frames"], clip_length, draws["frames"])].astype(np.float32)
    points, score = x[..., :2], x[..., 2]
    points, size = _compact(points, sample["img_shape"])
    factor = SHORT / min(size)
    points, size = _resize(points, size, (int(size[0] * factor + 0.5), int(size[1] * factor + 0.5)))
    points, size = _crop(points, size, draws["crop"])
    points, size = _resize(points, size, (SIDE, SIDE))
    if draws["flip"] < FLIP:
        points[..., 0] = np.where(points[..., 0] != 0, size[1] - points[..., 0], points[..., 0])
        points, score = points[:, :, list(layout.mirror)], score[:, :, list(layout.mirror)]
    if stream == "limb":
        return plain_limb_maps(points, score, list(layout.limbs), size, SIGMA, THRESHOLD)
    return plain_keypoint_maps(points, score, size, SIGMA, THRESHOLD)


def _compact(points: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    points = points.copy()
    points[np.isnan(points)] = 0
    x, y = points[..., 0], points[..., 1]  # views
    if not x.any() or not y.any():
        return points, size
    low, high = (x[x != 0].min(), y[y != 0].min()), (x[x != 0].max(), y[y != 0].max())
    if high[0] - low[0] < 10 or high[1] - low[1] < 10:
        return points, size
    middle = [float(low[i] + high[i]) / 2 for i in (0, 1)]
    half = [float(high[i] - low[i]) / 2 * (1 + PADDING) for i in (0, 1)]
    half[1] = max(half[0], half[1])
    half[0] = max(half[1], half[0])
    first = [int(middle[i] - half[i]) for i in (0, 1)]
    last = [int(middle[i] + half[i]) for i in (0, 1)]
    x[x != 0] -= first[0]
    y[y != 0] -= first[1]
    return points, (last[1] - first[1], last[0] - first[0])


def _resize(points: np.ndarray, size: tuple[int, int], new: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    return points * np.array([new[1] / size[1], new[0] / size[0]], np.float32), new


def _crop(points: np.ndarray, size: tuple[int, int], draws: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    height, width = size
    for attempt in range(10):
        aspect = math.exp(math.log(ASPECT[0]) + (math.log(ASPECT[1]) - math.log(ASPECT[0])) * draws[attempt])
        area = (AREA[0] + (AREA[1] - AREA[0]) * draws[10 + attempt]) * height * width
        own_height, own_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if own_height <= height and own_width <= width:
            left, top = int(draws[20] * (width - own_width + 1)), int(draws[21] * (height - own_height + 1))
            return points - np.array([left, top], np.float32), (own_height, own_width)
    side = min(size)
    return points - np.array([(width - side) // 2, (height - side) // 2], np.float32), (side, side)
