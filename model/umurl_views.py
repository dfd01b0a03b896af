"""What UmURL makes of raw clips: its pre-normalisation, and random views for pre-training, vectorised over clips.

Whole clips are (N, M, T, V, C), of different lengths with zeros at the end; views are (N, C, T, V, M), the network's
form. Random draws come from a generator, or are given as `ViewDraws` to repeat recorded ones.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.layouts import Layout

SHOULDERS = ("right_shoulder", "left_shoulder")
CROP = (0.1, 1.0)  # share of a clip that a view shows
CORRUPTED = 0.6  # share of the joints that corruption touches: 15 of 25


def pre_normalise(x: Tensor, layout: Layout) -> Tensor:
    """Fill gaps, centre every frame, turn every clip to the front: UmURL's gendata. x (N, M, T, V, C), as above.

    (a) A body that is missing at first is moved forward to its frames; the empty frames after a body's last are
    filled with its frames from the start, again and again, up to T. (b) Joint `layout.origin` of body 0 in that frame
    is subtracted from every body; missing joints and bodies stay zero. (c) In three dimensions the clip is turned so
    that from left to right shoulder in body 0's first frame is along +x; parallel or opposite means no turn. A layout
    without joints named so is not turned. The original has T = 300; only frames beyond a clip's own depend on T.
    """
    x = _filled(x)
    there = (x != 0).any(-1, keepdim=True)
    x = (x - x[:, :1, :, layout.origin, None]) * there
    right, left = (layout.joints.index(name) if name in layout.joints else -1 for name in SHOULDERS)
    if x.shape[-1] != 3 or right < 0 or left < 0:
        return x
    first = x[:, 0, 0].double()
    matrix = turns_to_x(first[:, right] - first[:, left])
    return torch.einsum("nmtvc,ndc->nmtvd", x, matrix.to(x.dtype))


def _filled(x: Tensor) -> Tensor:
    """Step (a): every body's frames from its first on, repeated from the start after its last."""
    length = x.shape[2]
    seen = (x != 0).any(-1).any(-1)  # (N, M, T)
    late = seen.any(-1) & ~seen[..., 0]
    # A stable sort moves the seen frames of a late body to the front, in order, and leaves the others alone.
    order = torch.where(late[..., None], ~seen, torch.zeros_like(seen)).byte().argsort(dim=-1, stable=True)
    seen = seen.gather(-1, order)
    steps = torch.arange(length, device=x.device)
    period = torch.where(seen, steps + 1, 0).amax(-1, keepdim=True).clamp(min=1)
    order = order.gather(-1, steps % period)
    return x.gather(2, order[..., None, None].expand_as(x))


def turns_to_x(vectors: Tensor) -> Tensor:
    """Smallest rotations (N, 3, 3) float64 that take vectors (N, 3) to +x; identity if parallel, opposite or zero."""
    vectors = vectors.double()
    unit = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-300)
    cosine = unit[:, 0]
    # cross(unit, x axis)
    axis = torch.stack([torch.zeros_like(cosine), unit[:, 2], -unit[:, 1]], 1)
    sine = axis.norm(dim=1)
    turns = ((vectors[:, 1:].abs().sum(1) >= 1e-6) & (vectors.abs().sum(1) >= 1e-6)).double()
    a, b, c = (axis / sine.clamp(min=1e-300)[:, None]).unbind(1)
    zero = torch.zeros_like(a)
    cross = torch.stack([zero, -c, b, c, zero, -a, -b, a, zero], 1).view(-1, 3, 3)
    about = sine[:, None, None] * cross + (1 - cosine)[:, None, None] * cross @ cross
    return torch.eye(3, dtype=torch.float64, device=vectors.device) + turns[:, None, None] * about


def resampling(start: Tensor, length: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Linear interpolation of `length` frames from `start` (N,) to `size`: frame before, frame after, weight of it.

    As torch's `interpolate` with align_corners False. Each (N, size).
    """
    span = length[:, None].double()
    place = ((torch.arange(size, device=start.device) + 0.5) * (span / size) - 0.5).clamp(min=0)
    before = place.floor().minimum(span - 1)
    weight = (place - before).clamp(max=1)
    before = before.long()
    after = (before + 1).minimum(length[:, None] - 1)
    return start[:, None] + before, start[:, None] + after, weight.float()


def whole_clip(frames: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor]:
    """Start and length (N,) of the middle `share` of clips with `frames` (N,) frames; nothing random."""
    margin = ((1 - share) * frames.double() / 2).long()
    return margin, frames - 2 * margin


@dataclass(frozen=True)
class ViewDraws:
    """The random numbers of N views: uniform in [0, 1) unless said otherwise; those not needed are ignored.

    scale, start (N,); corrupts (N,): below one half the view is corrupted, else sheared; zeroes (N,): below one half
    corruption zeroes the joints, else it multiplies them; joints (N, V): the lowest are corrupted; matrix (N, C, C)
    uniform in [-1, 1]; shear (N, C, C) likewise, the diagonal is not used.
    """

    scale: Tensor
    start: Tensor
    corrupts: Tensor
    zeroes: Tensor
    joints: Tensor
    matrix: Tensor
    shear: Tensor


def draw_views(clips: int, layout: Layout, channels: int, generator: torch.Generator | None) -> ViewDraws:
    """Draws for one view each of `clips` clips, in double precision as the original's."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(clips, *shape, generator=generator, dtype=torch.float64)

    return ViewDraws(
        scale=uniform(),
        start=uniform(),
        corrupts=uniform(),
        zeroes=uniform(),
        joints=uniform(layout.num_joints),
        matrix=2 * uniform(channels, channels) - 1,
        shear=2 * uniform(channels, channels) - 1,
    )


def random_crop(frames: Tensor, draws: ViewDraws, size: int, crop: tuple[float, float] = CROP) -> tuple[Tensor, Tensor]:
    """Start and length (N,) of random parts: a share uniform in `crop`, but at least `size` frames or all of them."""
    low, high = crop
    scale = draws.scale.to(frames.device) * (high - low) + low
    length = (frames * scale).floor().long().clamp(min=size).minimum(frames)
    start = (draws.start.to(frames.device) * (frames - length + 1)).long()
    return start, length


def distort(x: Tensor, draws: ViewDraws, corrupted: float = CORRUPTED) -> Tensor:
    """Corrupt joints or shear, as the draws say; views x (N, C, T, V, M) -> the same shape.

    Corruption takes the same joints in all frames and bodies: they are zeroed or multiplied by a matrix, y = x C.
    A shear has ones on its diagonal: y = x S^T. Each is one matrix per clip and joint.
    """
    channels, joints = x.shape[1], x.shape[3]
    unit = torch.eye(channels, dtype=torch.float64)
    shear = torch.where(unit.bool(), unit, draws.shear)
    damage = torch.where((draws.zeroes < 0.5)[:, None, None], 0.0, draws.matrix.transpose(1, 2))
    chosen = draws.joints.argsort(1).argsort(1) < round(corrupted * joints)
    corrupt = torch.where(chosen[..., None, None], damage[:, None], unit)
    # (N, V, C, C), acting on columns
    matrix = torch.where((draws.corrupts < 0.5)[:, None, None, None], corrupt, shear[:, None])
    return torch.einsum("nvdc,nctvm->ndtvm", matrix.to(x), x)
