"""From pixels of a video to pixels of a small square: the geometry of PoseC3D (arXiv 2104.13586), batched.

A step takes joints x (N, M, T, V, C), x and y in the first two channels, and image sizes (N, 2) int64, height and
width, and returns both. Only joints are moved, no image is read. Coordinates stay float32 and borders are found in
double precision, as the released code does.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SMALLEST = 10  # pixels: a narrower box round all joints is left alone
ATTEMPTS = 10  # candidates of a random crop


def normalise_pixels(x: Tensor, size: Tensor, threshold: float | None = None) -> Tensor:
    """Pixels to [-1, 1] over the image: `prepare.normalise_2d` on a batch.

    With a `threshold` (PYSKL) in float32, and joints whose score, the third channel, is at most that become (0, 0);
    without (MMAction2) in the precision of x, and missing joints become (-1, -1).
    """
    x = x if threshold is None else x.float()
    half = (size.flip(-1).to(x.dtype) / 2)[:, None, None, None]
    points = (x[..., :2] - half) / half
    if threshold is not None and x.shape[-1] == 3:
        points = points.masked_fill(x[..., 2:] <= threshold, 0)
    return torch.cat([points, x[..., 2:]], dim=-1)


def compact(
    x: Tensor,
    size: Tensor,
    *,
    padding: float = 0.25,
    ratio: float | tuple[float, float] | None = 1.0,
    beyond: bool = True,
) -> tuple[Tensor, Tensor]:
    """Cut to one box round all joints of a clip, grown by `padding` (PoseCompact).

    Coordinates that are zero are missing: they do not count for the box and stay zero; NaN become zero. `ratio` is
    the height of the box over its width, or the least and the most. `beyond` lets the box leave the image.
    """
    points = x[..., :2].masked_fill(x[..., :2].isnan(), 0)
    seen = points != 0
    low = points.masked_fill(~seen, torch.inf).amin((1, 2, 3))
    high = points.masked_fill(~seen, -torch.inf).amax((1, 2, 3))
    narrow = (high - low < SMALLEST).any(1, keepdim=True)
    middle = (low + high).double() / 2
    across, down = ((high - low).double() / 2 * (1 + padding)).unbind(1)
    if ratio is not None:
        least, most = ratio if isinstance(ratio, tuple) else (ratio, ratio)
        down = torch.maximum(least * across, down)
        across = torch.maximum(down / most, across)
    half = torch.stack([across, down], dim=1)
    left_top, right_bottom = middle - half, middle + half
    if not beyond:
        left_top = left_top.clamp(min=0)
        right_bottom = torch.minimum(right_bottom, size.flip(-1).double())
    # Towards zero, also left of and above the image. A box of no joint at all is infinite, and is narrow.
    left_top = left_top.masked_fill(narrow, 0).trunc()
    right_bottom = torch.where(narrow, size.flip(-1).double(), right_bottom.trunc())
    moved = points - left_top.to(x.dtype)[:, None, None, None]
    points = torch.where(seen, moved, points)
    return torch.cat([points, x[..., 2:]], dim=-1), (right_bottom - left_top).long().flip(-1)


def fitted(size: Tensor, short: float, long: float = math.inf) -> Tensor:
    """Sizes scaled, with their shape kept, until the short side is `short` or the long one `long` pixels."""
    factor = torch.minimum(short / size.amin(1).double(), long / size.amax(1).double())
    return (size * factor[:, None] + 0.5).long()


def resize(x: Tensor, size: Tensor, new: Tensor | Sequence[int]) -> tuple[Tensor, Tensor]:
    """Scale the image to the sizes `new`, (N, 2) or one (height, width) for all."""
    new = torch.as_tensor(new, device=size.device).expand_as(size)
    factor = (new.double() / size.double()).flip(-1).to(x.dtype)[:, None, None, None]
    return torch.cat([x[..., :2] * factor, x[..., 2:]], dim=-1), new


def crop(x: Tensor, left_top: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """Cut a box out of the image. left_top: (N, 2) int64, x and y; new: (N, 2) its height and width.

    All joints move, also missing ones: their zeros become negative. That is the released code's way; heat maps
    know missing joints by their score.
    """
    shift = left_top.to(x.dtype)[:, None, None, None]
    return torch.cat([x[..., :2] - shift, x[..., 2:]], dim=-1), new


def centre_crop(x: Tensor, size: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Cut the square of `side` pixels out of the middle."""
    return crop(x, (size.flip(-1) - side) // 2, torch.full_like(size, side))


def random_crop(
    x: Tensor,
    size: Tensor,
    *,
    area: tuple[float, float] = (0.56, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    generator: torch.Generator | None = None,
    draws: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Cut a box of random area (share of the image) and aspect, width over height (RandomResizedCrop).

    The first of ten candidates that fits is placed at random; if none fits, the largest square is cut out of the
    middle. draws: (N, 10) logarithms of the aspects, (N, 10) areas, (N, 2) left and top in pixels.
    """
    height, width = size.unbind(1)
    if draws is None:
        where = generator.device if generator is not None else x.device
        shape = (len(x), 2 * ATTEMPTS + 2)
        u = torch.rand(shape, generator=generator, dtype=torch.float64, device=where).to(x.device)
        logs = math.log(aspect[0]) + (math.log(aspect[1]) - math.log(aspect[0])) * u[:, :ATTEMPTS]
        areas = area[0] + (area[1] - area[0]) * u[:, ATTEMPTS:-2]
    else:
        logs, areas, placed = (draw.to(x.device) for draw in draws)
    aspects, pixels = logs.double().exp(), areas.double() * (height * width)[:, None]
    sides = torch.stack([(pixels / aspects).sqrt().round(), (pixels * aspects).sqrt().round()], dim=2).long()
    fits = (sides <= size[:, None]).all(2)
    first = fits.long().argmax(1)
    chosen = sides[torch.arange(len(sides), device=x.device), first]
    if draws is None:
        placed = (u[:, -2:] * (size - chosen + 1).flip(-1)).long()
    none = ~fits.any(1, keepdim=True)
    square = size.amin(1, keepdim=True).expand_as(size)
    chosen = torch.where(none, square, chosen)
    left_top = torch.where(none, (size - square).flip(-1) // 2, placed)
    return crop(x, left_top, chosen)
