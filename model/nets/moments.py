"""What a batch norm in training computes on CPU: exact sums, few passes over memory.

There torch adds up tens of thousands of float32 rows one after another, which leaves four correct digits (measured
8e-5 relative, against 7e-8 in its other layout, which takes four times as long). Here each clip is added up pairwise,
as torch does along an axis that is not the last, and the clips in float64. The work goes a few clips at a time through
the processor's cache. Rows are (N, rows, C); "turned" is (C, N, rows).

A clip may stand for several equal ones (`weighted`): the statistics then are those of all of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

CACHED = 2**18  # numbers worked on at a time: a megabyte of float32
BESIDE = 512  # numbers that are added up side by side

_weights: ContextVar[Tensor | None] = ContextVar("weights", default=None)


@contextmanager
def weighted(weights: Tensor | None) -> Iterator[None]:
    """Meanwhile clip n counts `weights[n]` times in the statistics of norms; its gradient is that of all its copies.

    Only for networks of which `ready` holds for every norm.
    """
    token = _weights.set(weights)
    try:
        yield
    finally:
        _weights.reset(token)


@dataclass(frozen=True)
class Statistics:
    """What a norm found in a batch; all float64 (C,) but `rows`, the number of rows, and the weights (N,) of clips."""

    mean: Tensor
    variance: Tensor
    inverse: Tensor  # 1 / sqrt(variance + eps)
    rows: float
    weights: Tensor | None

    def affine(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(scale, shift) of the norm."""
        scale = weight * self.inverse
        return scale.to(dtype), (bias - self.mean * scale).to(dtype)

    def columns(self, chosen: slice) -> "Statistics":
        """Those of some columns."""
        return replace(self, mean=self.mean[chosen], variance=self.variance[chosen], inverse=self.inverse[chosen])

    def moved(self, by: Tensor) -> "Statistics":
        """Those of rows to which this is added."""
        return replace(self, mean=self.mean + by)

    def extended(self, columns: int) -> "Statistics":
        """With further columns, up to so many, of mean 0 and variance 1."""
        more = self.mean.new_zeros(columns - len(self.mean))
        mean, (variance, inverse) = (
            torch.cat([self.mean, more]),
            (torch.cat([each, more + 1]) for each in (self.variance, self.inverse)),
        )
        return replace(self, mean=mean, variance=variance, inverse=inverse)


def as_rows(x: Tensor) -> Tensor:
    """(N, C, T, V) with channels last in memory -> (N, T*V, C), a view."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def chunks(rows: Tensor) -> list[slice]:
    """Clips that fit in the cache together."""
    size = max(1, CACHED // max(1, rows[0].numel()))
    return [slice(start, start + size) for start in range(0, len(rows), size)]


class Sums:
    """Of each clip the sums and centred squares of its rows, gathered as clips are made: `merged` are the batch's."""

    def __init__(self) -> None:
        self.sums: list[Tensor] = []
        self.squares: list[Tensor] = []
        self.per_clip = 0
        self.room = Room()

    def add(self, rows: Tensor) -> None:
        """rows (..., rows, C) of the next clip or clips."""
        self.per_clip = rows.shape[-2]
        sums = rows.sum(-2, keepdim=True)
        centred = torch.sub(rows, sums, alpha=1 / self.per_clip, out=self.room.like(rows))
        self.sums.append(sums)
        self.squares.append(centred.mul_(centred).sum(-2))

    def add_turned(self, columns: Tensor) -> None:
        """columns (C, N, rows) of the next clips."""
        channels, clips, self.per_clip = columns.shape
        # Centred by the mean of a few: subtracting the exact one would take a pass of its own.
        near = columns[:, 0, :64].mean(1)
        centred = scaled(columns, torch.ones_like(near), -near).view(1, channels * clips, -1)
        found = _norm_sums(centred, centred, near.new_zeros(channels * clips))
        sums, squares = (each.double().view(channels, clips).t() for each in found)
        self.sums.append(sums + near.double() * self.per_clip)
        self.squares.append(squares - sums.square() / self.per_clip)

    def merged(self, eps: float) -> Statistics:
        """Mean and variance over clips and rows, merged from those of each clip (Chan et al. 1979)."""
        columns = self.sums[0].shape[-1]
        sums, squares = (
            torch.cat([each.reshape(-1, columns) for each in of]).double() for of in (self.sums, self.squares)
        )
        per_clip, weights = self.per_clip, _weights.get()
        means = sums / per_clip
        counts = means.new_ones(len(means)) if weights is None else weights.to(means)
        count = float(counts.sum()) * per_clip
        mean = counts @ sums / count
        variance = counts @ (squares + per_clip * (means - mean).square()) / count
        return Statistics(mean, variance, (variance + eps).rsqrt(), count, None if weights is None else counts)


class Room:
    """Memory for what is needed only until the next clip: the same each time, so that it stays in the cache."""

    def __init__(self) -> None:
        self.tensor: Tensor | None = None

    def like(self, x: Tensor) -> Tensor:
        """A contiguous tensor of the shape of x with any values; what an earlier call gave is overwritten."""
        if self.tensor is None or self.tensor.shape != x.shape:
            self.tensor = x.new_empty(x.shape)
        return self.tensor


def statistics(rows: Tensor, eps: float) -> Statistics:
    """Mean and variance of rows (N, rows, C) over clips and rows."""
    sums = Sums()
    for part in chunks(rows):
        sums.add(rows[part])
    return sums.merged(eps)


def scaled(columns: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """scale * columns + shift of columns (C, N, rows); torch's broadcasting takes three times as long."""
    zero, one = torch.zeros_like(scale), torch.ones_like(scale)
    return torch.native_batch_norm(columns[None], scale, shift, zero, one, False, 0.0, 0.0)[0][0]


def _norm_sums(grad: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    # What torch's norm sums in its backward pass, for an inverse deviation of 1.
    wanted = [False, True, True]
    found = torch.ops.aten.native_batch_norm_backward(
        grad, x, None, None, None, mean, torch.ones_like(mean), True, 0.0, wanted
    )
    return found[2], found[1]


def running(norm: Any, columns: slice = slice(None)) -> Statistics:
    """The running statistics of some columns of a norm."""
    mean, variance = norm.running_mean[columns].double(), norm.running_var[columns].double()
    return Statistics(mean, variance, (variance + norm.eps).rsqrt(), 0.0, None)


def apply(
    rows: Tensor, affine: tuple[Tensor, Tensor], out: Tensor, *, residual: Tensor | None = None, relu: bool = True
) -> Tensor:
    """Writes scale * rows + shift (+ residual), rectified if asked, to `out`, which may be `rows`."""
    scale, shift = affine
    for part in chunks(rows):
        torch.addcmul(shift, rows[part], scale, out=out[part])
        if residual is not None:
            out[part].add_(residual[part])
        if relu:
            out[part].relu_()
    return out


class Slope:
    """The gradient of a norm's input: gathered as the gradient of its output is made, clip by clip; then `through`."""

    def __init__(self, found: Statistics, weight: Tensor) -> None:
        self.found, self.weight = found, weight
        self.means = {1: found.mean.to(weight.dtype)}
        self.sums: list[tuple[Tensor, Tensor]] = []
        self.room = Room()

    def add(self, grad: Tensor, rows: Tensor) -> None:
        """grad and the norm's input, (..., rows, C), of one or several clips."""
        columns = rows.shape[-1]
        number, most = rows.numel() // columns, max(1, BESIDE // columns)
        # Torch adds rows up one after another; several side by side shorten that sum, which leaves a digit more.
        beside = next(k for k in range(min(number, most), 0, -1) if number % k == 0)
        if beside not in self.means:
            self.means[beside] = self.means[1].repeat(beside)
        mean = self.means[beside]
        self.sums.append(_norm_sums(grad.reshape(-1, len(mean)), rows.reshape(-1, len(mean)), mean))

    def add_turned(self, grad: Tensor, columns: Tensor) -> None:
        """The same as (C, N, rows)."""
        self.sums.append(_norm_sums(grad[None], columns[None], self.means[1]))

    def solve(self) -> tuple[Tensor, Tensor]:
        """Gradients of weight and bias, after the last clip; `through` is ready then."""
        found, dtype, columns = self.found, self.weight.dtype, len(self.weight)
        total, along = (
            torch.cat([each.view(-1, columns) for each in of]).double().sum(0) for of in zip(*self.sums, strict=True)
        )
        wide = self.weight * found.inverse / found.rows
        slope = -wide * found.inverse.square() * along
        start = -wide * total - slope * found.mean
        self.scale = (self.weight * found.inverse).to(dtype)
        self.slope, self.start = slope.to(dtype), start.to(dtype)
        if found.weights is not None:
            # A clip that stands for several takes its part of the common terms as often.
            self.slope, self.start = ((found.weights[:, None] * each).to(dtype) for each in (slope, start))
        return (along * found.inverse).to(dtype), total.to(dtype)

    def pass_on(self, columns: slice) -> None:
        """In these columns there is no norm: `through` gives what it gets."""
        self.scale[columns] = 1
        self.slope[..., columns] = self.start[..., columns] = 0

    def through(self, part: slice, grad: Tensor, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """The gradient of the input (N, rows, C) of some clips; without `out` the next call overwrites it."""
        start, slope = self.start, self.slope
        if slope.dim() == 2:
            start, slope = start[part, None], slope[part, None]
        out = self.room.like(rows) if out is None else out
        return torch.addcmul(start, rows, slope, out=out).addcmul_(grad, self.scale)

    def through_turned(self, part: slice, grad: Tensor, columns: Tensor) -> Tensor:
        """The same as (C, N, rows), a tensor of its own."""
        if self.slope.dim() == 1:
            common = scaled(columns, self.slope, self.start)
        else:
            slope, start = (each[part].t().flatten() for each in (self.slope, self.start))
            common = scaled(columns.flatten(0, 1)[:, None], slope, start).view_as(columns)
        return common.addcmul_(grad, self.scale[:, None, None])


def backward(grad: Tensor, rows: Tensor, found: Statistics, weight: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the norm's weight and bias; that of its input is written to `out`, which is not `grad`."""
    slope, parts = Slope(found, weight), chunks(rows)
    for part in parts:
        slope.add(grad[part], rows[part])
    rest = slope.solve()
    for part in parts:
        slope.through(part, grad[part], rows[part], out[part])
    return rest
