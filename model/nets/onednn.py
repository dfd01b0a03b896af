"""Matrix products by oneDNN: torch takes it for convolutions, while its own products reach a third to half the rate."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_THERE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
ROWS = 2500  # of a product over many rows at a time: more leave the cache


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a (m, k) @ b (n, k).T + bias (n,): (m, n). Either may be transposed in memory; autograd does not see it."""
    if _THERE and a.dtype == torch.float32 and a.device.type == "cpu":
        return torch.ops.mkldnn._linear_pointwise(_dense(a), _dense(b), bias, "none", [], "")
    return F.linear(a, b, bias)


def _dense(a: Tensor) -> Tensor:
    # A part of wider rows would take oneDNN a thousand times as long.
    return a if a.is_contiguous() or a.t().is_contiguous() else a.contiguous()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, bias_counts: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias, ctx.bias_counts = bias is not None, bias_counts
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        g_x, g_weight, g_bias = None, torch.zeros_like(weight), None
        if ctx.needs_input_grad[0]:
            g_x = product(grad, weight.t())
        for start in range(0, len(x), ROWS):
            part = slice(start, start + ROWS)
            g_weight += product(grad[part].t(), x[part].t())
        if ctx.has_bias:
            g_bias = grad.sum(0) if ctx.bias_counts else grad.new_zeros(grad.shape[1])
        return g_x, g_weight, g_bias, None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, bias_counts: bool = True) -> Tensor:
    """x (..., C) -> x @ weight (C', C).T + bias (..., C').

    Before a norm over all rows in training the bias has no gradient, as the norm takes away what it adds:
    `bias_counts` False says so and saves the sum over all rows.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    return _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias, bias_counts).view(*x.shape[:-1], -1)
