"""The temporal unit of several branches for `model.nets.scoring`."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.nets import scoring
from model.nets.scoring import Images, ended, image, rows


def multi_scale(unit: Any) -> scoring.Joined:
    """ReLU(unit(x) + residual) of a `MultiScaleTemporal` some of whose branches begin with a norm.

    The norm that all branches pass together is folded into what ends each of them.
    """
    squeeze = scoring.convolution(unit.squeeze, unit.squeeze_bn)
    transform = scoring.convolution(unit.transform, unit.bn)
    scale, shift = scoring.affine(unit.transform_bn, unit.transform.weight.dtype)
    coefficients = unit.add_coeff
    relu = coefficients is None  # else it comes after what the global joint adds
    squeezed_branches, plain_branches = [], []  # with the first column of their output, by which they are joined
    for branch, module in zip(unit.plan.branches, unit.branches.values(), strict=True):
        own = scale[branch.outside], shift[branch.outside]
        end = _convolved(module.conv, *own, relu) if branch.dilation else _highest(branch, unit.plan.stride, *own, relu)
        squeezed_branches.append((branch.outside.start, branch.inside, end))
    width = len(unit.squeeze.weight)
    for inside, outside in unit.plan.plain:
        part = slice(inside.start - width, inside.stop - width)
        end = _convolved(unit.shortcut, scale[outside], shift[outside], relu, part)
        plain_branches.append((outside.start, end))

    def score(x: Tensor, residual: Tensor | None) -> Tensor:
        if coefficients is not None:
            x = torch.cat([x, x.mean(1, keepdim=True)], 1)
        whole = image(x)
        squeezed = squeeze(whole, relu=True)
        ends = {start: end(squeezed[:, inside]) for start, inside, end in squeezed_branches}
        ends |= {start: end(whole) for start, end in plain_branches}
        y = torch.cat([rows(ends[start], len(x)) for start in sorted(ends)], 3)
        if coefficients is not None:
            # Both parts have passed the norm, whose shift must count once.
            added = y[:, -1:] - shift
            y = torch.addcmul(y[:, :-1], added, coefficients[: y.shape[1] - 1, None, None]).relu_()
        return ended(transform, y, residual)

    return score


def _convolved(conv: Any, scale: Tensor, shift: Tensor, relu: bool, part: slice = slice(None)) -> Images:
    """scale * conv(x) + shift of these rows of the convolution."""
    weight, bias = (tensor[part] for tensor in scoring.folded(conv))
    ready = scoring.over_time(conv, weight * scale[:, None, None, None], bias * scale + shift)
    return lambda x: ready(x, relu=relu)


def _highest(branch: Any, stride: int, scale: Tensor, shift: Tensor, relu: bool) -> Images:
    """scale * max + shift of neighbouring frames."""

    def step(x: Tensor) -> Tensor:
        y = F.max_pool2d(x, (1, branch.kernel), (1, stride), (0, branch.padding))
        y = y.mul_(scale[:, None, None]).add_(shift[:, None, None])
        return y.relu_() if relu else y

    return step
