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
        last = x.permute(0, 2, 3, 1)
        same_type = x.dtype == self.weight.dtype
        if not (self.training and x.device.type == "cpu" and same_type and last.is_contiguous()):
            return super().forward(x)
        clips = last.flatten(1, 2)
        y, mean, variance = _Normalise.apply(clips, self.weight, self.bias, self.eps)
        self._track(mean, variance, clips.shape[0] * clips.shape[1])
        return y.view(last.shape).permute(0, 3, 1, 2)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.momentum)


def _sum(clips: Tensor) -> Tensor:
    """(N, rows, C) -> float64 (C,)."""
    return clips.sum(1).double().sum(0)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, clips: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = clips.dtype
        count = clips.shape[0] * clips.shape[1]
        mean = _sum(clips) / count
        centred = clips - mean.to(dtype)
        variance = _sum(centred * centred) / count
        inverse = (variance + eps).rsqrt()
        ctx.save_for_backward(centred, weight, inverse)
        scale = weight * inverse
        y = torch.addcmul((bias - mean * scale).to(dtype), clips, scale.to(dtype))
        mean, variance = mean.to(dtype), variance.to(dtype)
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        centred, weight, inverse = ctx.saved_tensors
        dtype = centred.dtype
        total, along = _sum(grad), _sum(grad * centred)
        scale = weight * inverse
        per_row = scale / (grad.shape[0] * grad.shape[1])
        grad_clips = torch.addcmul((-per_row * total).to(dtype), grad, scale.to(dtype))
        grad_clips.addcmul_(centred, (-per_row * inverse.square() * along).to(dtype))
        return grad_clips, (along * inverse).to(dtype), total.to(dtype), None
