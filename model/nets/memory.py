"""Channels last in memory: views of the axes, and copies in the other order."""

from typing import Any

import torch
from torch import Tensor


def joints_last(x: Tensor) -> Tensor:
    """(N, C, T, V) -> (N, T, V, C), a view that is contiguous when channels are last in memory."""
    return x.permute(0, 2, 3, 1)


def channels_first(x: Tensor) -> Tensor:
    """(N, T, V, C) -> (N, C, T, V), a view."""
    return x.permute(0, 3, 1, 2)


class _Relayout(torch.autograd.Function):
    """The same values in another memory format; the gradient returns in the former one.

    Without it a gradient would travel on in the foreign format and slow down every step that it meets.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, channels_outside: bool) -> Tensor:
        ctx.channels_outside = channels_outside
        return _in_format(x, channels_outside)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _in_format(grad, not ctx.channels_outside), None


def _in_format(x: Tensor, channels_outside: bool) -> Tensor:
    # A copy made outright: with one joint or one frame both formats look the same to torch.
    return x.contiguous() if channels_outside else channels_first(joints_last(x).contiguous())


def frames_together(x: Tensor) -> Tensor:
    """(N, C, T, V) with channels last in memory -> the same with frames x joints last, for products per channel."""
    return _Relayout.apply(x, True) if x.requires_grad else _in_format(x, True)


def channels_together(x: Tensor) -> Tensor:
    """The inverse of `frames_together`."""
    return _Relayout.apply(x, False) if x.requires_grad else _in_format(x, False)
