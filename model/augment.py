"""Random changes to a batch of joints, made before the stream is taken.

Every function takes x (N, M, T, V, C) float32 and gives back a new tensor. One draw holds for a clip: all its
persons and frames move together, so a motion stream may stack this frame and the next along T and augment both at
once (`gaussian_noise` alone draws per frame). The numbers come from `generator`; `draws` replaces them. A recipe
lists the steps in order, as `[{"name": "rotate", "theta": 0.2}, {"name": "spatial_flip"}]`.

With `persons`, x is (P, 1, T, V, C): the persons of N clips that are really there. Draws are still made by clip, so the
numbers are those of clips with every slot.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.errors import UserError
from model.layouts import Layout
from model.streams import of_joints, score_channel

Generator = torch.Generator | None


@dataclass(frozen=True)
class Persons:
    """Persons of a batch who are there: entry p belongs to clip `owner[p]` (P,) int64 of `clips`."""

    owner: Tensor
    clips: int


def rotate(
    x: Tensor,
    *,
    channels: Sequence[str],
    generator: Generator = None,
    draws: Tensor | None = None,
    persons: "Persons | None" = None,
    theta: float = 0.3,
    upper: float | None = None,
) -> Tensor:
    """Rotate about the origin by angles uniform in [-theta, theta] radians (scores stay).

    draws: (N, 3) angles about x, y and z, or (N, 1) in the plane. The matrix is Rz Ry Rx, where each factor is the
    transpose of the right-handed rotation, as released. `upper` replaces the upper bound: PYSKL draws the angle in
    the plane from [-theta, 1], which a recipe that wants it says.
    """
    planar = "z" not in channels
    if draws is None:
        shape = (_count(x, persons), 1 if planar else 3)
        draws = _uniform(x, shape, generator, -theta, theta if upper is None else upper)
    cos, sin = draws.double().cos(), draws.double().sin()
    if planar:
        size = 2
        rows = [cos[:, 0], -sin[:, 0], sin[:, 0], cos[:, 0]]
        matrix = torch.stack(rows, dim=1).view(-1, 2, 2)
    else:
        size = 3
        (cx, cy, cz), (sx, sy, sz) = cos.unbind(1), sin.unbind(1)
        zero, one = torch.zeros_like(cx), torch.ones_like(cx)
        about_x = torch.stack([one, zero, zero, zero, cx, sx, zero, -sx, cx], dim=1).view(-1, 3, 3)
        about_y = torch.stack([cy, zero, -sy, zero, one, zero, sy, zero, cy], dim=1).view(-1, 3, 3)
        about_z = torch.stack([cz, sz, zero, -sz, cz, zero, zero, zero, one], dim=1).view(-1, 3, 3)
        matrix = about_z @ about_y @ about_x
    matrix = _of(persons, matrix.to(x.dtype))
    # Coordinate by coordinate a CPU multiplies several times as quickly as joint by joint; the bits are the same.
    points = x[..., :size].flatten(1, 3).transpose(1, 2).contiguous()
    turned = (matrix @ points).transpose(1, 2).contiguous().view(*x.shape[:-1], size)
    return turned if size == x.shape[-1] else torch.cat([turned, x[..., size:]], dim=-1)


def scale(
    x: Tensor,
    *,
    channels: Sequence[str],
    generator: Generator = None,
    draws: Tensor | None = None,
    persons: Persons | None = None,
    scale: float | Sequence[float] = 0.2,
) -> Tensor:
    """Stretch each coordinate by 1 + u * scale. draws: (N, coordinates) u, uniform in [-1, 1]."""
    size = _coordinates(channels)
    if draws is None:
        draws = _uniform(x, (_count(x, persons), size), generator, -1, 1)
    factor = torch.ones(len(draws), x.shape[-1], dtype=torch.float64, device=x.device)
    factor[:, :size] += draws.to(factor) * torch.as_tensor(scale).to(factor)
    # A row of all joints at once: three numbers at a time keep a CPU busy with counting.
    row = _of(persons, factor.to(x.dtype)).repeat(1, x.shape[-2])
    return (x.flatten(-2) * row[:, None, None]).view(x.shape)


def gaussian_noise(
    x: Tensor,
    *,
    channels: Sequence[str],
    generator: Generator = None,
    draws: tuple[Tensor, Tensor] | None = None,
    sigma: float = 0.01,
    base: str = "frame",
    shared: bool = False,
) -> Tensor:
    """Move each joint by a normal length in a uniformly drawn direction (scores stay, missing joints stay zero).

    The length's standard deviation is `sigma` times the diagonal of the box round the person in that frame
    (base "frame") or round everyone in the clip (base "video"). `shared` draws once per joint for all persons and
    frames. draws: lengths (N, M, T, V) and directions (N, M, T, V, coordinates); shared: M = T = 1.
    """
    if base not in ("frame", "video"):
        raise UserError(f"augmentation 'gaussian_noise': base '{base}' is unknown; choose frame or video")
    size = _coordinates(channels)
    points = x[..., :size]
    if draws is None:
        shape = (len(x), 1, 1, x.shape[3]) if shared else x.shape[:4]
        where = generator.device if generator is not None else x.device
        length = torch.randn(shape, generator=generator, device=where).to(x.device)
        direction = _uniform(x, (*shape, size), generator, -1, 1)
    else:
        length, direction = draws
    present = (points != 0).any(dim=-1, keepdim=True)
    over = (3,) if base == "frame" else (1, 2, 3)
    infinite = torch.tensor(torch.inf, dtype=x.dtype, device=x.device)
    high = torch.where(present, points, -infinite).amax(dim=over, keepdim=True)
    low = torch.where(present, points, infinite).amin(dim=over, keepdim=True)
    diagonal = (high - low).norm(dim=-1, keepdim=True)
    step = sigma * diagonal * length[..., None] * direction / direction.norm(dim=-1, keepdim=True)
    # An absent person's box is infinite; `where` also drops the NaN that comes of it.
    moved = torch.where(present, points + step.to(x.dtype), points)
    return torch.cat([moved, x[..., size:]], dim=-1)


def spatial_flip(
    x: Tensor,
    *,
    layout: Layout,
    generator: Generator = None,
    draws: Tensor | None = None,
    persons: Persons | None = None,
    p: float = 0.5,
) -> Tensor:
    """Exchange left and right joints with probability p; coordinates are not mirrored (ProtoGCN).

    draws: (N,) uniform in [0, 1); below p is flipped.
    """
    return _exchanged(x, _chosen(x, generator, draws, p, persons), layout)


def mirror_flip(
    x: Tensor,
    *,
    layout: Layout,
    width: Tensor | None,
    generator: Generator = None,
    draws: Tensor | None = None,
    persons: Persons | None = None,
    labels: Tensor | None = None,
    p: float = 0.5,
    label_map: dict[int, int] | None = None,
) -> Tensor:
    """Mirror an image with probability p: x becomes width - x where x is not 0, and left and right change places.

    width: (N,) pixels. draws: as `spatial_flip`. `label_map` says which class a mirrored clip of a class then shows
    (waving the left hand: waving the right); labels (N,) int64 are changed in place.
    """
    if width is None:
        raise UserError("augmentation 'mirror_flip' needs the image size of every clip; the store holds none")
    chosen = _uniform(x, (_count(x, persons),), generator, 0, 1) < p if draws is None else draws < p
    if label_map and labels is not None:
        shown = {int(own): other for own, other in label_map.items()}  # keys of JSON are text
        others = torch.tensor([shown.get(label, label) for label in labels.tolist()], device=labels.device)
        labels.copy_(torch.where(chosen.to(labels.device), others, labels))
    chosen = _of(persons, chosen.to(x.device)).view(-1, 1, 1, 1, 1)
    across = x[..., :1]
    span = _of(persons, width.to(x)).view(-1, 1, 1, 1, 1)
    mirrored = torch.cat([torch.where(chosen & (across != 0), span - across, across), x[..., 1:]], dim=-1)
    return _exchanged(mirrored, chosen, layout)


def part_drop(
    x: Tensor,
    *,
    layout: Layout,
    generator: Generator = None,
    draws: tuple[Tensor, Tensor] | None = None,
    persons: Persons | None = None,
    p: float = 0.2,
) -> Tensor:
    """Zero one limb of all persons in all frames with probability p (ProtoGCN).

    draws: (N,) uniform in [0, 1), below p drops; (N,) int64 number of the limb in `layout.parts`.
    """
    if not layout.parts:
        raise UserError(f"augmentation 'part_drop': layout '{layout.name}' names no limbs; add 'parts' to it")
    where = generator.device if generator is not None else x.device
    limbs = torch.zeros(len(layout.parts), layout.num_joints, dtype=torch.bool, device=x.device)
    for i, joints in enumerate(layout.parts.values()):
        limbs[i, list(joints)] = True
    share, limb = (None, None) if draws is None else draws
    chosen = _chosen(x, generator, share, p, persons)
    if limb is None:
        limb = torch.randint(len(limbs), (_count(x, persons),), generator=generator, device=where)
    dropped = chosen & _of(persons, limbs[limb.to(x.device)])[:, None, None, :, None]
    return x.masked_fill(dropped, 0)


AUGMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "rotate": rotate,
    "scale": scale,
    "gaussian_noise": gaussian_noise,
    "spatial_flip": spatial_flip,
    "mirror_flip": mirror_flip,
    "part_drop": part_drop,
}
_SURROUNDINGS = ("layout", "channels", "width", "labels", "generator", "draws", "persons")


def check_augmentations(steps: Sequence[dict[str, Any]], layout: Layout) -> None:
    """Raise UserError for an unknown step or option, or a step the layout cannot do."""
    for step in steps:
        name = step.get("name")
        if name not in AUGMENTATIONS:
            raise UserError(f"unknown augmentation {name!r}; augmentations: {', '.join(AUGMENTATIONS)}")
        known = list(inspect.signature(AUGMENTATIONS[name]).parameters)[1:]
        options = [key for key in known if key not in _SURROUNDINGS]
        for key in step:
            if key != "name" and key not in options:
                raise UserError(f"augmentation '{name}' has no option '{key}'; options: {', '.join(options)}")
        if name == "part_drop" and not layout.parts:
            raise UserError(f"augmentation 'part_drop': layout '{layout.name}' names no limbs; add 'parts' to it")


def augment(
    x: Tensor,
    steps: Sequence[dict[str, Any]],
    *,
    layout: Layout,
    channels: Sequence[str],
    generator: Generator = None,
    width: Tensor | None = None,
    labels: Tensor | None = None,
    persons: Persons | None = None,
) -> Tensor:
    """Apply a recipe's steps in order. x: (N, M, T, V, C); width: (N,) pixels and labels: (N,), for `mirror_flip`.

    `persons` may be given where `by_person` allows it.
    """
    given = {
        "layout": layout, "channels": channels, "generator": generator, "width": width, "labels": labels,
        "persons": persons,
    }  # fmt: skip
    for step in steps:
        function = AUGMENTATIONS[step["name"]]
        wanted = inspect.signature(function).parameters
        around = {key: value for key, value in given.items() if key in wanted}
        x = function(x, **around, **{key: value for key, value in step.items() if key != "name"})
    return x


def by_person(steps: Sequence[dict[str, Any]]) -> bool:
    """Whether each step treats a person alike whoever else is there, so that absent ones can be left out."""
    return all("persons" in inspect.signature(AUGMENTATIONS[step["name"]]).parameters for step in steps)


def _coordinates(channels: Sequence[str]) -> int:
    return len(channels) - (score_channel(channels) is not None)


def _uniform(x: Tensor, shape: Sequence[int], generator: Generator, low: float, high: float) -> Tensor:
    where = generator.device if generator is not None else x.device
    return low + (high - low) * torch.rand(tuple(shape), generator=generator, device=where).to(x.device)


def _count(x: Tensor, persons: Persons | None) -> int:
    return len(x) if persons is None else persons.clips


def _of(persons: Persons | None, values: Tensor) -> Tensor:
    """What is known by clip, by the entries of x."""
    return values if persons is None else values[persons.owner]


def _chosen(x: Tensor, generator: Generator, draws: Tensor | None, p: float, persons: Persons | None) -> Tensor:
    share = _uniform(x, (_count(x, persons),), generator, 0, 1) if draws is None else draws
    return _of(persons, (share < p).to(x.device)).view(-1, 1, 1, 1, 1)


def _exchanged(x: Tensor, chosen: Tensor, layout: Layout) -> Tensor:
    """Left and right joints exchanged where `chosen` (N, 1, 1, 1, 1)."""
    some = chosen.flatten().nonzero()[:, 0]
    rows = x.flatten(-2).clone()
    rows.index_copy_(0, some, of_joints(rows.index_select(0, some).view(-1, *x.shape[1:]), layout.mirror).flatten(-2))
    return rows.view(x.shape)
