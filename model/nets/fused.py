"""What units of the graph networks share that are computed on CPU as one step each, forward and backward.

The same values as the modules give that call them, with fewer passes over memory: a few clips at a time, so that what
one step leaves the next finds in the cache. Kept for the backward pass are inputs and what stands before a norm, while
activations, topologies and joined sources are made anew. Inside, a tensor is (N, T, V, C); at the entrance and exit
(N, C, T, V) with channels last in memory.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model.nets.linear import linear
from model.nets.memory import channels_first, joints_last
from model.nets.moments import CACHED, Slope, Statistics, Sums, as_rows, running
from model.nets.norm import channels_last, ready, written_out

PORTION = 2 * CACHED  # numbers of an activation worked on at a time


def fits(x: Tensor, *norms: nn.Module) -> bool:
    """Whether a unit with these norms can be computed here."""
    return all(ready(norm, x) for norm in norms)


def flat(x: Tensor) -> Tensor:
    """(N, T, V, C) -> (N, T*V, C) without a copy."""
    return x.view(len(x), -1, x.shape[-1])


class Pointwise(nn.Conv2d):
    """A 1x1 convolution before a norm of the same mode, every `stride` frames; on CPU a product of matrices."""

    def forward(self, x: Tensor) -> Tensor:
        if not written_out(x):
            return super().forward(x)
        rows = joints_last(x)[:, :: self.stride[0]]
        return channels_first(linear(rows, self.weight.flatten(1), self.bias))


class Ending:
    """The end of a unit: norm, residual and ReLU of what comes a few clips at a time; that is kept."""

    def __init__(self, norm: Any, weight: Tensor, bias: Tensor) -> None:
        self.norm, self.weight, self.bias = norm, weight, bias
        self.clips: list[Tensor] = []
        self.sums = Sums()

    def add(self, clips: Tensor) -> None:
        """(N, T, V, C) of the next clips."""
        self.clips.append(clips)
        if self.norm.training:
            self.sums.add(flat(clips))

    def out(self, residual: Tensor | None, *, relu: bool = True) -> Tensor:
        """(N, C, T, V) of all clips; the running statistics move."""
        if self.norm.training:
            self.found = self.sums.merged(self.norm.eps)
            self.norm.track(self.found)
        else:
            self.found = running(self.norm)
        scale, shift = self.found.affine(self.weight, self.bias, self.clips[0].dtype)
        y = scale.new_empty(sum(map(len, self.clips)), *self.clips[0].shape[1:])
        sizes = [len(clips) for clips in self.clips]
        added = [None] * len(sizes) if residual is None else joints_last(channels_last(residual)).split(sizes)
        for clips, more, out in zip(self.clips, added, y.split(sizes), strict=True):
            torch.addcmul(shift, clips, scale, out=out)
            if more is not None:
                out += more
            if relu:
                out.relu_()
        return channels_first(y)

    @staticmethod
    def gather(
        grad: Tensor, out: Tensor, clips: Sequence[Tensor], found: Statistics, weight: Tensor, *, relu: bool
    ) -> tuple[Tensor, Slope]:
        """The gradient behind the ReLU, which is the residual's, as rows (N, T*V, C), and the norm's slope."""
        slope = Slope(found, weight)
        grad = as_rows(channels_last(grad))
        behind = torch.empty_like(grad) if relu else grad
        sizes = [len(each) for each in clips]
        rows = (tensor.split(sizes) for tensor in (grad, as_rows(out), behind))
        for each, before, y, after in zip(clips, *rows, strict=True):
            if relu:
                torch.ops.aten.threshold_backward.grad_input(before, y, 0, grad_input=after)
            slope.add(after, each)
        return behind, slope


def portions(x: Tensor, width: int) -> list[slice]:
    """Clips of x (N, C, T, V) that a unit of this width works on at a time."""
    size = max(1, PORTION // (max(width, x.shape[1]) * x.shape[2] * x.shape[3]))
    return [slice(start, min(len(x), start + size)) for start in range(0, len(x), size)]


def backwards(parts: list[slice]) -> list[tuple[int, slice]]:
    """Numbered, the last first: after a walk from the first to the last those are still in the cache."""
    return list(enumerate(parts))[::-1]
