"""Heat maps of key points and limbs (PoseC3D, arXiv 2104.13586, section 3.2), drawn from joints for a whole batch.

A map holds exp(-d² / 2 sigma²) times the score, d the distance in pixels to the joint, or to the segment between two
joints, inside the box that reaches 3 sigma further; borders are cut to whole pixels towards zero, as released, so a
joint just left of the image still touches its first column. Persons are joined by the maximum.

x is (N, M, T, V, 2) pixels, score (N, M, T, V); maps are (N, channels, T, H, W) float32 on the device of x.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

REACH = 3  # sigmas
# Windows are drawn as patches whose sides are the next of these, or the map's, those of one form at a time. A CPU gains
# by few superfluous pixels, others by few forms: there patches are square.
SIDES = {"cpu": (0, 5, 7, 9, 12, 15, 19, 24, 32)}
SIDES_ELSEWHERE = (0, 8, 12, 16, 24, 32)
# Pixels drawn at a time, which bounds the memory beside the maps; on a CPU they should stay in its cache.
CHUNK = {"cpu": 1 << 17}
CHUNK_ELSEWHERE = 1 << 23


def keypoint_maps(
    x: Tensor, score: Tensor, size: tuple[int, int], *, sigma: float = 0.6, threshold: float = 1e-4
) -> Tensor:
    """One map per joint. Scores below `threshold` (PYSKL: 1e-3) are missing joints. size: (H, W)."""
    points, weight = _by_channel(x, score)
    return _draw(points, points, weight * (weight >= threshold), size, sigma)


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
    points, weight = _by_channel(x, score)
    ends = torch.tensor(limbs, device=x.device)
    start, end = points[:, ends[:, 0]], points[:, ends[:, 1]]
    first, last = weight[:, ends[:, 0]], weight[:, ends[:, 1]]
    lower = torch.minimum(first, last)
    short = (end - start).square().sum(-1) < 1
    end = torch.where(short[..., None], start, end)
    return _draw(start, end, torch.where(short, first, lower) * (lower >= threshold), size, sigma)


def mirrored(maps: Tensor, mirror: Sequence[int]) -> Tensor:
    """Maps of the mirrored image: columns reversed, left and right channels (`mirror[c]` is c's) exchanged."""
    return maps.flip(-1)[:, list(mirror)]


def _by_channel(x: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """(N, V, T, M, 2) and (N, V, T, M): in the order of the maps, persons last."""
    return x.float().permute(0, 3, 2, 1, 4), score.float().permute(0, 3, 2, 1)


def _draw(start: Tensor, end: Tensor, weight: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """Segments (N, channels, T, M, 2) with weights (N, channels, T, M), zero for none, as maps.

    Only the windows are computed, which cover a small part of the maps.
    """
    maps = _zeros((*weight.shape[:3], *size), start.device)
    persons = weight.shape[3]
    start, end, weight = start.reshape(-1, 2), end.reshape(-1, 2), weight.reshape(-1)
    edge = torch.tensor([size[1], size[0]], device=start.device) - 1
    # In double precision: the released code subtracts 3 sigma in it.
    first = (torch.minimum(start, end).double() - REACH * sigma).trunc().clamp(min=0).long()
    last = torch.minimum((torch.maximum(start, end).double() + REACH * sigma).trunc().long(), edge)
    reach = last - first + 1
    device = maps.device.type
    chunk, sides = CHUNK.get(device, CHUNK_ELSEWHERE), SIDES.get(device, SIDES_ELSEWHERE)
    if device not in SIDES:
        reach = reach.amax(1, keepdim=True).expand_as(reach)
    form = torch.bucketize(reach, torch.tensor(sides[1:], device=reach.device))
    code = (form[:, 1] * len(sides) + form[:, 0]).masked_fill((weight <= 0) | (last < first).any(1), -1)
    for kind in code.unique().tolist():
        if kind < 0:
            continue
        height, width = (
            min((*sides[1:], max(size))[i], side) for i, side in zip(divmod(kind, len(sides)), size, strict=True)
        )
        for some in (code == kind).nonzero()[:, 0].split(max(1, chunk // (height * width))):
            # A patch lies inside the map; what it holds beyond the window is zero.
            corner = torch.minimum(first[some], edge + 1 - torch.tensor([width, height], device=edge.device))
            columns = corner[:, :1] + torch.arange(width, device=edge.device)
            lines = corner[:, 1:] + torch.arange(height, device=edge.device)
            inside = (columns >= first[some, :1]) & (columns <= last[some, :1])
            within = (lines >= first[some, 1:]) & (lines <= last[some, 1:])
            patch = _gaussian(columns - start[some, :1], lines - start[some, 1:], end[some] - start[some], sigma)
            patch *= (inside * weight[some, None])[:, None]
            patch *= within[..., None]
            pixel = ((some // persons)[:, None] * size[0] + lines)[..., None] * size[1] + columns[:, None]
            maps.view(-1).scatter_reduce_(0, pixel.flatten(), patch.flatten(), "amax")
    return maps


def _zeros(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """On a CPU from numpy, which asks for huge pages: filling fresh small ones costs ten times as much."""
    if device.type == "cpu":
        return torch.from_numpy(np.zeros(shape, np.float32))
    return torch.zeros(shape, device=device)


def _gaussian(across: Tensor, down: Tensor, along: Tensor, sigma: float) -> Tensor:
    """exp(-d² / 2 sigma²) of pixels at (across, down) from the start of segments `along`: (K, lines, columns)."""
    squared = along.square().sum(-1, keepdim=True)
    unit = along / squared.masked_fill(squared == 0, 1)
    # Share of the way from start to end at which the pixel is nearest.
    share = ((across * unit[:, :1])[:, None] + (down * unit[:, 1:])[..., None]).clamp_(0, 1)
    dx = torch.addcmul(across[:, None], share, along[:, :1, None], value=-1)
    dy = torch.addcmul(down[..., None], share, along[:, 1:, None], value=-1)
    # The exponential of less than -87 is denormal, which takes a CPU 25 times as long.
    return dx.square_().addcmul_(dy, dy).div_(-2 * sigma**2).clamp_(min=-80).exp_()
