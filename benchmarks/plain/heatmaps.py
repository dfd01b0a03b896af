"""Heat maps drawn one window at a time, in loops over frames, joints and persons: what `model.heatmaps` must equal."""

import numpy as np

Pair = tuple[int, int]


def plain_keypoint_maps(x: np.ndarray, score: np.ndarray, size: Pair, sigma: float, threshold: float) -> np.ndarray:
    """x: (M, T, V, 2) float32 pixels, score: (M, T, V). Returns (V, T, H, W) float32."""
    persons, frames, joints, _ = x.shape
    maps = np.zeros((joints, frames, *size), np.float32)
    for v in range(joints):
        for t in range(frames):
            for m in range(persons):
                if score[m, t, v] >= threshold:
                    _draw_point(maps[v, t], x[m, t, v], score[m, t, v], sigma)
    return maps


def plain_limb_maps(
    x: np.ndarray, score: np.ndarray, limbs: list[Pair], size: Pair, sigma: float, threshold: float
) -> np.ndarray:
    """As `plain_keypoint_maps`, a map per limb (start, end): (limbs, T, H, W)."""
    persons, frames, _, _ = x.shape
    maps = np.zeros((len(limbs), frames, *size), np.float32)
    for i, (a, b) in enumerate(limbs):
        for t in range(frames):
            for m in range(persons):
                if min(score[m, t, a], score[m, t, b]) >= threshold:
                    _draw_limb(maps[i, t], x[m, t, a], x[m, t, b], score[m, t, a], score[m, t, b], sigma)
    return maps


def _draw_point(image: np.ndarray, centre: np.ndarray, weight: float, sigma: float) -> None:
    columns, lines = _window(centre, centre, image.shape, sigma)
    if columns.size and lines.size:
        squared = (columns - centre[0]) ** 2 + (lines[:, None] - centre[1]) ** 2
        _keep_larger(image, columns, lines, np.exp(-squared / 2 / sigma**2) * weight)


def _draw_limb(image: np.ndarray, start: np.ndarray, end: np.ndarray, first: float, last: float, sigma: float) -> None:
    along = end - start
    length = (along**2).sum()
    if length < 1:
        _draw_point(image, start, first, sigma)
        return
    columns, lines = _window(np.minimum(start, end), np.maximum(start, end), image.shape, sigma)
    if columns.size and lines.size:
        pixels = np.stack(np.meshgrid(columns, lines), axis=-1)
        share = np.clip(((pixels - start) @ along) / length, 0, 1)
        squared = ((pixels - start - share[..., None] * along) ** 2).sum(-1)
        _keep_larger(image, columns, lines, np.exp(-squared / 2 / sigma**2) * min(first, last))


def _window(low: np.ndarray, high: np.ndarray, size: Pair, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Columns and lines from int(low - 3 sigma) to int(high + 3 sigma), both included, inside the image."""
    first = [max(int(float(value) - 3 * sigma), 0) for value in low]
    last = [int(float(value) + 3 * sigma) + 1 for value in high]
    return (
        np.arange(first[0], min(last[0], size[1]), dtype=np.float32),
        np.arange(first[1], min(last[1], size[0]), dtype=np.float32),
    )


def _keep_larger(image: np.ndarray, columns: np.ndarray, lines: np.ndarray, patch: np.ndarray) -> None:
    where = np.s_[int(lines[0]) : int(lines[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
    image[where] = np.maximum(image[where], patch)
