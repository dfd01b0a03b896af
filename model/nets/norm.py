"""Batch norm that stays exact with channels last in memory on CPU."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class BatchNorm(nn.BatchNorm2d):
    """torch's BatchNorm2d; in training on CPU with channels last its sums are ours.

    There torch adds up tens of thousands of float32 rows one after another, which leaves four correct digits
    (measured 8e-5 relative, against 7e-8 in its other layout, which takes four times as long). Sums over the
    leading axis of a matrix are pairwise in torch, as fast, and keep seven.
    """

    def forward(self, x: Tensor) -> Tensor:
        last = x.permute(0, 2, 3, 1)
        if not (self.training and x.device.type == "cpu" and x.dtype == self.weight.dtype and last.is_contiguous()):
            return super().forward(x)
        rows = last.flatten(0, 2)
        y, mean, variance = _Normalise.apply(rows, self.weight, self.bias, self.eps)
        self._track(mean, variance, len(rows))
        return y.view(last.shape).permute(0, 3, 1, 2)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.momentum)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean = rows.sum(0) / len(rows)
        centred = rows - mean
        variance = (centred * centred).sum(0) / len(rows)
        inverse = (variance + eps).rsqrt()
        ctx.save_for_backward(centred, weight, inverse)
        ctx.mark_non_differentiable(mean, variance)
        return torch.addcmul(bias, centred, weight * inverse), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        centred, weight, inverse = ctx.saved_tensors
        total = grad.sum(0)
        along = (grad * centred).sum(0)
        scale = weight * inverse
        per_row = scale / len(grad)
        grad_rows = torch.addcmul(-per_row * total, grad, scale)
        grad_rows.addcmul_(centred, -per_row * inverse * inverse * along)
        return grad_rows, along * inverse, total, None
