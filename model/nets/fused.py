"""Units of the graph networks computed on CPU as one step each, forward and backward.

The same values as the modules give that call them, with fewer passes over memory; kept for the backward pass are
inputs and what stands before a norm, while activations, topologies and joined sources are made anew. Inside, a tensor
is (N, T, V, C); at the entrance and exit (N, C, T, V) with channels last in memory.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.nets.norm import (
    CACHED,
    Slope,
    Statistics,
    Sums,
    as_rows,
    backward,
    channels_last,
    chunks,
    ready,
    running,
    statistics,
)
from model.nets.onednn import linear


PORTION = 2 * CACHED


def fits(x: Tensor, *norms: nn.Module) -> bool:
    """Whether a unit with these norms can be computed here."""
    return all(ready(norm, x) for norm in norms)


def last(x: Tensor) -> Tensor:
    """(N, C, T, V) -> (N, T, V, C)."""
    return x.permute(0, 2, 3, 1)


def first(x: Tensor) -> Tensor:
    """(N, T, V, C) -> (N, C, T, V)."""
    return x.permute(0, 3, 1, 2)


def flat(x: Tensor) -> Tensor:
    """(N, T, V, C) -> (N, T*V, C) without a copy."""
    return x.view(len(x), -1, x.shape[-1])


def found_by(norm: Any, columns: slice, rows: Tensor) -> Statistics:
    """Those of the batch, or in eval mode the running ones."""
    return statistics(rows, norm.eps) if norm.training else running(norm, columns)


def conv_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0, dilation: int = 1
) -> list[Tensor]:
    """Gradients of input, weight and bias of a convolution over time."""
    wanted = [True, True, True]
    return list(
        torch.ops.aten.convolution_backward(
            grad, x, weight, [len(weight)], [stride, 1], [padding, 0], [dilation, 1], False, [0, 0], 1, wanted
        )
    )


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The 1x1 convolution of x (N, T, V, C): (N, T, V, C')."""
    return last(F.conv2d(_images(x), weight, bias)).reshape(*x.shape[:3], len(weight))


class Pointwise(nn.Conv2d):
    """A 1x1 convolution before a norm, every `stride` frames; on CPU a product of matrices."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        rows = last(x)[:, :: self.stride[0]]
        return first(linear(rows, self.weight.flatten(1), self.bias, bias_counts=not self.training))


def project_gradients(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the input (N, T, V, C), weight and bias of `project`."""
    g_x, g_weight, g_bias = conv_gradients(_images(grad), _images(x), weight)
    return last(g_x).reshape(x.shape), g_weight, g_bias


def _images(x: Tensor) -> Tensor:
    """(N, T, V, C) -> (N*k, C, T/k, V), a view of 16 images or more if there are so many frames.

    For fewer and a single thread torch takes another kernel, which needs twice the time.
    """
    clips, frames, joints, channels = x.shape
    parts = next((k for k in range(1, frames + 1) if frames % k == 0 and clips * k >= 16), frames)
    return first(x.reshape(clips * parts, frames // parts, joints, channels))


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
        added = [None] * len(sizes) if residual is None else last(channels_last(residual)).split(sizes)
        for clips, more, out in zip(self.clips, added, y.split(sizes), strict=True):
            torch.addcmul(shift, clips, scale, out=out)
            if more is not None:
                out += more
            if relu:
                out.relu_()
        return first(y)

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


def portions(x: Tensor) -> list[slice]:
    """Clips of x (N, C, T, V) that a unit works on at a time."""
    size = max(1, PORTION // max(1, x[0].numel()))
    return [slice(start, min(len(x), start + size)) for start in range(0, len(x), size)]
