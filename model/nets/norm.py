"""Batch norm that stays exact with channels last in memory on CPU."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class BatchNorm(nn.BatchNorm2d):
    """torch's BatchNorm2d; in training on CPU with channels last its sums are ours.

    There torch adds up tens of thousands of float32 rows one after another, which leaves four correct digits
    (measured 8e-5 relative, against 7e-8 in its other layout, which takes four times as long). Here each clip is
    added up pairwise, as torch does along an axis that is not the last, and the clips in float64.
    """

    def forward(self, x: Tensor) -> Tensor:
        same_type = x.dtype == self.weight.dtype
        last = x.permute(0, 2, 3, 1).is_contiguous()
        if not (self.training and x.device.type == "cpu" and same_type and last):
            return super().forward(x)
        y, mean, variance = _Normalise.apply(x, self.weight, self.bias, self.eps)
        self._track(mean, variance, x.numel() // self.num_features)
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.momentum)


def _rows(x: Tensor) -> Tensor:
    """(N, C, H, W) with channels last in memory -> (N, H*W, C), a view."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _sum(rows: Tensor) -> Tensor:
    """(N, rows, C) -> float64 (C,)."""
    return rows.sum(1).double().sum(0)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        rows, dtype = _rows(x), x.dtype
        count = rows.shape[0] * rows.shape[1]
        mean = _sum(rows) / count
        centred = rows - mean.to(dtype)
        variance = _sum(centred * centred) / count
        inverse = (variance + eps).rsqrt()
        ctx.save_for_backward(centred, weight, inverse)
        scale = weight * inverse
        # Not a view: activations that follow work in place, which on views costs copies in the backward pass.
        y = torch.empty_like(x)
        torch.addcmul((bias - mean * scale).to(dtype), rows, scale.to(dtype), out=_rows(y))
        mean, variance = mean.to(dtype), variance.to(dtype)
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        centred, weight, inverse = ctx.saved_tensors
        dtype = centred.dtype
        last = grad.permute(0, 2, 3, 1).contiguous()
        rows = last.flatten(1, 2)
        total, along = _sum(rows), _sum(rows * centred)
        scale = weight * inverse
        per_row = scale / (rows.shape[0] * rows.shape[1])
        grad_rows = torch.addcmul((-per_row * total).to(dtype), rows, scale.to(dtype))
        grad_rows.addcmul_(centred, (-per_row * inverse.square() * along).to(dtype))
        grad_x = grad_rows.view(last.shape).permute(0, 3, 1, 2)
        return grad_x, (along * inverse).to(dtype), total.to(dtype), None
