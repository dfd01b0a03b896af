"""Graph networks that only score, on CPU: norms folded into convolutions, a few persons at a time in the cache.

The values are those of the modules but for rounding. Every convolution is one pass with its bias, residual and ReLU.
Inside, activations are (n, V, T, C), n persons joint by joint: mixing joints is then one product for all frames and
channels, and what a graph convolution aggregates per channel comes from its projection as (C, n, V, T) without a copy.
Weights are folded anew for every batch, which costs less than a clip and so cannot be out of date.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from model.nets.moments import running
from model.nets.norm import written_out
from model.nets.onednn import Convolution

Step = Callable[[Tensor], Tensor]  # of (n, V, T, C)
Joined = Callable[[Tensor, Tensor | None], Tensor]  # with a residual of the result's shape, which is written over
Images = Callable[[Tensor], Tensor]


def image(x: Tensor) -> Tensor:
    """(n, V, T, C) -> (1, C, n*V, T), a view with channels last in memory."""
    return x.flatten(0, 1)[None].permute(0, 3, 1, 2)


def rows(x: Tensor, persons: int) -> Tensor:
    """The inverse of `image`."""
    return x[0].permute(1, 2, 0).unflatten(0, (persons, -1))


def ended(conv: Convolution, x: Tensor, residual: Tensor | None) -> Tensor:
    """ReLU(conv(x) + residual) of rows."""
    y = conv(image(x), relu=True) if residual is None else conv.onto(image(residual), image(x))
    return rows(y, len(x))


def affine(norm: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(scale, shift) of a norm by its running statistics."""
    return running(norm).affine(norm.weight, norm.bias, dtype)


def folded(conv: Any, norm: Any = None) -> tuple[Tensor, Tensor]:
    """Weight (C', C, 1, frames) and bias of a convolution over time and the norm after it."""
    weight, bias = conv.weight.transpose(2, 3), conv.bias
    if norm is None:
        return weight, bias
    scale, shift = affine(norm, weight.dtype)
    return weight * scale[:, None, None, None], bias * scale + shift


def over_time(conv: Any, weight: Tensor, bias: Tensor) -> Convolution:
    """The module's stride, padding and dilation, whose first axis is time; in an image here that is the second."""
    return Convolution(weight, bias, (1, conv.stride[0]), (0, conv.padding[0]), (1, conv.dilation[0]))


def convolution(conv: Any, norm: Any = None) -> Convolution:
    """A convolution over time with the norm after it."""
    return over_time(conv, *folded(conv, norm))


def steps(blocks: nn.Module, x: Tensor) -> list[Step] | None:
    """The steps of these blocks for input x, or None where they must be computed as modules.

    That is with gradients, in training, on other devices, under autocast, compiled, with hooks that want to see what
    passes, or with units that have no such form.
    """
    parameter = next(blocks.parameters())
    by_module = (
        torch.is_grad_enabled()
        or not written_out(x)
        or parameter.dtype != x.dtype
        or any(unit.training or unit._forward_hooks or unit._forward_pre_hooks for unit in blocks.modules())
    )
    if by_module:
        return None
    found = [unit_step(block) for block in blocks.children()]
    return None if None in found else found


def unit_step(unit: nn.Module) -> Any:
    """What `unit.scoring()` makes of a unit, or None for one that has no such form."""
    make: Any = getattr(unit, "scoring", None)
    return None if make is None else make()


def persons_at_once() -> int:
    """One per thread: each then keeps about one person's activations, a megabyte, in its own cache."""
    return max(1, torch.get_num_threads())
