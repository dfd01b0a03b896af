"""Batch norm in training on CPU by the arithmetic of `model.nets.moments`, of which nothing is kept but its input.

The backward pass makes activations anew from it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.nets.moments import Statistics, apply, as_rows, backward, running, statistics

_by_module: ContextVar[bool] = ContextVar("by_module", default=False)


@contextmanager
def by_module() -> Iterator[None]:
    """Meanwhile networks are computed module by module and person by person, as who hooks into them expects."""
    token = _by_module.set(True)
    try:
        yield
    finally:
        _by_module.reset(token)


def separate() -> bool:
    """Whether that was asked for."""
    return _by_module.get()


class BatchNorm(nn.BatchNorm2d):
    """torch's BatchNorm2d; on CPU the arithmetic is that of this file."""

    def forward(self, x: Tensor) -> Tensor:
        if not ready(self, x):
            return super().forward(x)
        x = channels_last(x)
        if self.training:
            return _Normalise.apply(x, self.weight, self.bias, self)
        y = torch.empty_like(x)
        apply(as_rows(x), running(self).affine(self.weight, self.bias, x.dtype), as_rows(y), relu=False)
        return y

    @torch.no_grad()
    def track(self, found: Statistics) -> None:
        """Moves the running statistics."""
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        unbiased = found.variance * (found.rows / max(found.rows - 1, 1))
        self.running_mean.lerp_(found.mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)


def written_out(x: Tensor) -> bool:
    """Whether steps on x are to be computed by our written-out forms: on CPU, in one precision, as nobody looks on."""
    # A compiler does better with modules than with steps that are written out.
    other = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or _by_module.get()
    return x.device.type == "cpu" and not other


def ready(norm: nn.Module, x: Tensor) -> bool:
    """Whether x can be normalised by the arithmetic of `model.nets.moments`: on CPU, in one precision, by our norm.

    In eval mode any norm will do, but that is for where no gradient is asked for.
    """
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or x.dtype != norm.weight.dtype or not written_out(x):
        return False
    return type(norm) is BatchNorm if norm.training else not torch.is_grad_enabled()


def channels_last(x: Tensor) -> Tensor:
    """The same values with channels last in memory, whatever torch makes of axes of length 1."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def norm_relu(norm: Any, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """ReLU(norm(x) + residual); x, which nothing else may need, can be overwritten."""
    if not ready(norm, x):
        y = norm(x)
        return F.relu(y, inplace=True) if residual is None else F.relu(y + residual, inplace=True)
    x = channels_last(x)
    residual = None if residual is None else channels_last(residual)
    if norm.training:
        return _NormRelu.apply(x, norm.weight, norm.bias, residual, norm)
    affine = running(norm).affine(norm.weight, norm.bias, x.dtype)
    apply(as_rows(x), affine, as_rows(x), residual=None if residual is None else as_rows(residual))
    return x


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: BatchNorm) -> Tensor:
        rows = as_rows(x)
        ctx.found = statistics(rows, norm.eps)
        norm.track(ctx.found)
        ctx.save_for_backward(x, weight)
        y = torch.empty_like(x)
        apply(rows, ctx.found.affine(weight, bias, x.dtype), as_rows(y), relu=False)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        g_x = torch.empty_like(x)
        rest = backward(as_rows(channels_last(grad)), as_rows(x), ctx.found, weight, as_rows(g_x))
        return g_x, *rest, None


class _NormRelu(torch.autograd.Function):
    """Keeps its input and its output, which the next step keeps anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, norm: BatchNorm) -> Tensor:
        rows = as_rows(x)
        ctx.found = statistics(rows, norm.eps)
        norm.track(ctx.found)
        y = torch.empty_like(x)
        added = None if residual is None else as_rows(residual)
        apply(rows, ctx.found.affine(weight, bias, x.dtype), as_rows(y), residual=added)
        ctx.has_residual = residual is not None
        ctx.save_for_backward(x, weight, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        behind, g_x = torch.empty_like(x), torch.empty_like(x)
        torch.ops.aten.threshold_backward.grad_input(channels_last(grad), y, 0, grad_input=behind)
        rest = backward(as_rows(behind), as_rows(x), ctx.found, weight, as_rows(g_x))
        return g_x, *rest, behind if ctx.has_residual else None, None
