"""A linear map with oneDNN's products, forward and backward."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.nets.norm import written_out
from model.nets.onednn import product

ROWS = 2500  # of a product over many rows at a time: more leave the cache


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, normed: bool = False) -> Tensor:
    """x (..., C) -> x @ weight (C', C).T + bias (..., C').

    `normed` says that all rows pass a norm in training next, which takes away what the bias adds: its gradient is zero,
    and no sum over all rows is needed to find that.
    """
    if not written_out(x):
        return F.linear(x, weight, bias)
    return _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias, normed).view(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """torch's Linear by these products."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, normed: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias, ctx.normed = bias is not None, normed
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        g_weight = torch.zeros_like(weight)
        for rows, own in zip(x.split(ROWS), grad.split(ROWS), strict=True):
            g_weight += product(own.t(), rows.t())
        g_x = product(grad, weight.t()) if ctx.needs_input_grad[0] else None
        g_bias = None
        if ctx.has_bias:
            g_bias = grad.new_zeros(grad.shape[1]) if ctx.normed else grad.sum(0)
        return g_x, g_weight, g_bias, None
