"""Convolutions and products by oneDNN, which torch brings along: with bias, residual and ReLU in one pass, on CPU.

torch's own `conv2d` takes a kernel of half the speed for few images, and its `mm` (MKL) reaches half of oneDNN's rate
on some processors. These are the operations that torch's compiler emits; where they are missing, or in other than
single precision, the ordinary ones give the same.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_OPS = torch.ops.mkldnn
_PRESENT = torch.backends.mkldnn.is_available() and all(
    hasattr(_OPS, name) for name in ("_convolution_pointwise", "_linear_pointwise", "_reorder_convolution_weight")
)


def usable(x: Tensor) -> bool:
    """Whether oneDNN takes this tensor."""
    return _PRESENT and x.device.type == "cpu" and x.dtype == torch.float32


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a (I, K) times b (J, K) transposed, plus bias (J,): (I, J). Either may be a transposed view."""
    if not usable(a):
        return F.linear(a, b, bias)
    return _OPS._linear_pointwise(_dense(a), _dense(b), bias, "none", [], "")


def _dense(a: Tensor) -> Tensor:
    # A part of wider rows would take oneDNN a thousand times as long.
    return a if a.is_contiguous() or a.T.is_contiguous() else a.contiguous()


class Convolution:
    """A convolution ready for many calls: `weight` (C', C, kernel of 2), one for the axes of an image each."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0),
        dilation: Sequence[int] = (1, 1),
    ) -> None:
        self.weight, self.bias = weight, bias
        self.spacing = list(padding), list(stride), list(dilation), 1
        self._ordered: dict[torch.Size, Tensor] = {}

    def __call__(self, x: Tensor, *, relu: bool = False) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W'), channels last in memory."""
        if not usable(x):
            y = self._plain(x)
            return y.relu_() if relu else y
        kind = "relu" if relu else "none"
        return _OPS._convolution_pointwise(x, self._ordered_for(x.shape), self.bias, *self.spacing, kind, [], "")

    def onto(self, target: Tensor, x: Tensor) -> Tensor:
        """ReLU(target + convolution of x), written over the target (N, C', H', W'), channels last in memory."""
        if not usable(x):
            return target.add_(self._plain(x)).relu_()
        weight = self._ordered_for(x.shape)
        return _OPS._convolution_pointwise_(target, x, weight, self.bias, *self.spacing, "add", 1.0, "relu", [], "")

    def _plain(self, x: Tensor) -> Tensor:
        padding, stride, dilation, groups = self.spacing
        return F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)

    def _ordered_for(self, shape: torch.Size) -> Tensor:
        """The weight in the order of the kernel that oneDNN chooses for inputs of this shape."""
        if shape not in self._ordered:
            self._ordered[shape] = _OPS._reorder_convolution_weight(self.weight, *self.spacing, list(shape))
        return self._ordered[shape]
