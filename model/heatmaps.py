"""Heat maps of key points and limbs (PoseC3D, arXiv 2104.13586, section 3.2), drawn from joints for a whole batch.

A map holds exp(-d² / 2 sigma²) times the score, d the distance in pixels to the joint, or to the segment between two
joints, inside the box that reaches 3 sigma further; borders are cut to whole pixels towards zero, as released, so a
joint just left of the image still touches its first column. Persons are joined by the maximum.

x is (N, M, T, V, 2) pixels, score (N, M, T, V); maps are (N, channels, T, H, W) float32 on the device of x.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

REACH = 3  # sigmas
CHUNK = 1 << 24  # pixels drawn at a time, which bounds the memory beside the maps themselves


def keypoint_maps(
    x: Tensor, score: Tensor, size: tuple[int, int], *, sigma: float = 0.6, threshold: float = 1e-4
) -> Tensor:
    """One map per joint. Scores below `threshold` (PYSKL: 1e-3) are missing joints. size: (H, W)."""
    points, weight = x.permute(0, 3, 2, 1, 4), score.permute(0, 3, 2, 1)
    weight = weight * (weight >= threshold)
    maps = x.new_empty((*points.shape[:3], *size), dtype=torch.float32)
    rows, points, weight = maps.flatten(0, 2), points.flatten(0, 2), weight.flatten(0, 2)
    for part in _chunks(len(rows), points.shape[1] * size[0] * size[1]):
        across = _profile(points[part, :, 0], size[1], sigma)
        down = _profile(points[part, :, 1], size[0], sigma) * weight[part, :, None]
        _join(down[..., :, None] * across[..., None, :], rows[part])
    return maps


def limb_maps(
    x: Tensor,
    score: Tensor,
    limbs: Sequence[tuple[int, int]],
    size: tuple[int, int],
    *,
    sigma: float = 0.6,
    threshold: float = 1e-4,
) -> Tensor:
    """One map per limb (start, end), with the lower of its joints' scores.

    A limb shorter than one pixel is drawn as its start joint, with that joint's score.
    """
    ends = torch.tensor(limbs, device=x.device)
    points, weight = x.permute(0, 3, 2, 1, 4), score.permute(0, 3, 2, 1)
    maps = x.new_empty((len(x), len(limbs), x.shape[2], *size), dtype=torch.float32)
    rows = maps.flatten(0, 2)
    start, end = (points[:, ends[:, side]].flatten(0, 2) for side in (0, 1))
    first, last = (weight[:, ends[:, side]].flatten(0, 2) for side in (0, 1))
    weight = torch.minimum(first, last)
    drawn = weight >= threshold
    along = end - start
    squared = along.square().sum(-1)
    point = squared < 1
    weight = torch.where(point, first, weight) * drawn
    end = torch.where(point[..., None], start, end)
    along = along.masked_fill(point[..., None], 0)
    squared = squared.masked_fill(point, 1)
    low, high = torch.minimum(start, end), torch.maximum(start, end)
    for part in _chunks(len(rows), start.shape[1] * size[0] * size[1]):
        columns = _offsets(start[part, :, 0], size[1])[..., None, :]
        lines = _offsets(start[part, :, 1], size[0])[..., :, None]
        dx, dy = (along[part, :, axis, None, None] for axis in (0, 1))
        # Share of the way from start to end at which the pixel is nearest.
        share = (columns * dx + lines * dy).div_(squared[part, :, None, None]).clamp_(0, 1)
        distance = (columns - share * dx).square_().add_((lines - share * dy).square_())
        patch = distance.div_(-2 * sigma**2).exp_().mul_(weight[part, :, None, None])
        patch *= _window(low[part, :, 0], high[part, :, 0], size[1], sigma)[..., None, :]
        patch *= _window(low[part, :, 1], high[part, :, 1], size[0], sigma)[..., :, None]
        _join(patch, rows[part])
    return maps


def mirrored(maps: Tensor, mirror: Sequence[int]) -> Tensor:
    """Maps of the mirrored image: columns reversed, left and right channels (`mirror[c]` is c's) exchanged."""
    return maps.flip(-1)[:, list(mirror)]


def _profile(centre: Tensor, length: int, sigma: float) -> Tensor:
    """exp(-(i - centre)² / 2 sigma²) for i < length, zero outside the window; (..., length)."""
    return (_offsets(centre, length).square_() / (-2 * sigma**2)).exp_() * _window(centre, centre, length, sigma)


def _offsets(centre: Tensor, length: int) -> Tensor:
    return torch.arange(length, device=centre.device, dtype=centre.dtype) - centre[..., None]


def _window(low: Tensor, high: Tensor, length: int, sigma: float) -> Tensor:
    """Which of `length` pixels lie between trunc(low - 3 sigma) and trunc(high + 3 sigma), both included."""
    first = (low.double() - REACH * sigma).trunc()[..., None]
    last = (high.double() + REACH * sigma).trunc()[..., None]
    pixel = torch.arange(length, device=low.device)
    return (pixel >= first) & (pixel <= last)


def _join(patches: Tensor, maps: Tensor) -> None:
    """The maximum over persons of patches (rows, M, H, W), into maps (rows, H, W)."""
    torch.amax(patches, 1, out=maps)


def _chunks(rows: int, pixels: int) -> list[slice]:
    step = max(1, CHUNK // pixels)
    return [slice(start, start + step) for start in range(0, rows, step)]
