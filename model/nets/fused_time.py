"""The temporal unit of several branches as one step on CPU, forward and backward; see `model.nets.fused`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.nets.fused import conv_gradients, first, flat, found_by, last, project, project_gradients
from model.nets.norm import Statistics, apply, backward, channels_last


@dataclass(frozen=True)
class Branch:
    """A branch that begins with a norm: `kernel` frames `dilation` apart, or, with dilation 0, their maximum.

    It reads the columns `inside` of the common projection and fills the columns `outside` of the output.
    """

    inside: slice
    outside: slice
    kernel: int
    dilation: int

    @property
    def padding(self) -> int:
        return (self.kernel + (self.kernel - 1) * (self.dilation - 1) - 1) // 2 if self.dilation else 1


@dataclass(frozen=True)
class Plan:
    """The branches of a temporal unit; `plain` are pairs of columns that are passed on as they are."""

    branches: tuple[Branch, ...]
    plain: tuple[tuple[slice, slice], ...]
    stride: int
    width: int


def _with_mean(x: Tensor, whole: Tensor | None) -> Tensor:
    return x.contiguous() if whole is None else torch.cat([x, whole], 2)


def _spread(out: Tensor, x: Tensor, coefficients: Tensor | None) -> Tensor | None:
    """Writes to `out` the joints of x, the last of which stands for all and is added to each; returns that one."""
    if coefficients is None:
        out.copy_(x)
        return None
    local, whole = x.split([x.shape[2] - 1, 1], 2)
    torch.addcmul(local, whole, coefficients, out=out)
    return whole


class MultiScale(torch.autograd.Function):
    """Projection, branches over time, joining, norm, ReLU, projection: all but the unit's last norm.

    x (N, C, T, V); `weight` (C', C, 1, 1) projects for all branches, those with a norm first; `last` is the
    projection after the second norm; `kernels` are weight and bias of each branch that convolves.
    """

    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan,
        norms: Sequence[Any],
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        gamma: Tensor,
        beta: Tensor,
        coefficients: Tensor | None,
        gamma2: Tensor,
        beta2: Tensor,
        last_weight: Tensor,
        last_bias: Tensor,
        *kernels: Tensor,
    ) -> Tensor:
        u = project(last(x), weight, bias)
        clips, frames, joints, _ = u.shape
        y = u.new_empty(clips, -(-frames // plan.stride), joints, plan.width)
        column = None if coefficients is None else coefficients[:joints, None]
        means = None if column is None else u.mean(2, keepdim=True)
        wholes: list[Tensor | None] = []
        found: list[Statistics] = []
        pairs = iter(zip(kernels[::2], kernels[1::2], strict=True))
        for branch in plan.branches:
            part = _with_mean(u[..., branch.inside], None if means is None else means[..., branch.inside])
            found.append(found_by(norms[0], branch.inside, flat(part)))
            affine = found[-1].affine(gamma[branch.inside], beta[branch.inside], x.dtype)
            apply(flat(part), affine, flat(part))
            if branch.dilation:
                kernel = next(pairs)
                end = F.conv2d(first(part), *kernel, (plan.stride, 1), (branch.padding, 0), (branch.dilation, 1))
            else:
                end = F.max_pool2d(first(part), (branch.kernel, 1), (plan.stride, 1), (branch.padding, 0))
            wholes.append(_spread(y[..., branch.outside], last(end), column))
        for inside, outside in plan.plain:
            strided = u[:, :: plan.stride, :, inside]
            if means is None or column is None:
                y[..., outside] = strided
            else:
                whole = means[:, :: plan.stride, :, inside]
                wholes.append(whole)
                torch.addcmul(strided, whole, column, out=y[..., outside])
        second = found_by(norms[1], slice(None), flat(y))
        if norms[0].training:
            norms[0].track(_joined(found))
            norms[1].track(second)
        keep = norms[0].training
        active = torch.empty_like(y) if keep else y
        apply(flat(y), second.affine(gamma2, beta2, x.dtype), flat(active))
        if keep:
            kept = None if column is None else _whole(wholes, plan)
            ctx.plan, ctx.found, ctx.second = plan, found, second
            ctx.save_for_backward(
                x, weight, gamma, beta, coefficients, gamma2, beta2, last_weight, u, y, kept, *kernels[::2]
            )
        return first(project(active, last_weight, last_bias))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        plan, found = ctx.plan, ctx.found
        x, weight, gamma, beta, coefficients, gamma2, beta2, last_weight, u, y, whole, *kernels = ctx.saved_tensors
        joints = u.shape[2]
        active = apply(flat(y), ctx.second.affine(gamma2, beta2, y.dtype), torch.empty_like(flat(y))).view_as(y)
        g_y, *g_last = project_gradients(last(channels_last(grad)), active, last_weight)
        del active
        g_second = backward(flat(g_y), flat(y), ctx.second, gamma2, beta2)[1:]
        g_coefficients = g_whole = means = None
        if coefficients is not None:
            means = u.mean(2, keepdim=True)
            g_coefficients = torch.zeros_like(coefficients)
            g_coefficients[:joints] = (g_y @ whole.transpose(2, 3)).sum((0, 1)).squeeze(1)
            g_whole = coefficients[:joints] @ g_y
            g_whole = g_whole.unsqueeze(2)

        g_u = torch.zeros_like(u) if plan.stride > 1 else torch.empty_like(u)
        g_gamma, g_beta = torch.empty_like(gamma), torch.empty_like(beta)
        g_kernels: list[Tensor] = []
        for branch, statistic in zip(plan.branches, found, strict=True):
            part = _with_mean(u[..., branch.inside], None if means is None else means[..., branch.inside])
            g_end = _with_mean(g_y[..., branch.outside], None if g_whole is None else g_whole[..., branch.outside])
            own = gamma[branch.inside], beta[branch.inside]
            active = apply(flat(part), statistic.affine(*own, u.dtype), torch.empty_like(flat(part)))
            active = first(active.view_as(part))
            if branch.dilation:
                kernel = kernels[len(g_kernels) // 2]
                g_part, *rest = conv_gradients(
                    first(g_end), active, kernel, plan.stride, branch.padding, branch.dilation
                )
                g_kernels += rest
            else:
                options = (branch.kernel, 1), (plan.stride, 1), (branch.padding, 0)
                _, places = F.max_pool2d(active, *options, return_indices=True)
                g_part = torch.ops.aten.max_pool2d_with_indices_backward(
                    first(g_end), active, *options, (1, 1), False, places
                )
            g_part = last(channels_last(g_part))
            g_norm = backward(flat(g_part), flat(part), statistic, *own)[1:]
            g_gamma[branch.inside], g_beta[branch.inside] = g_norm
            if means is None:
                g_u[..., branch.inside] = g_part
            else:
                local, mean = g_part.split([joints, 1], 2)
                torch.add(local, mean, alpha=1 / joints, out=g_u[..., branch.inside])
        for inside, outside in plan.plain:
            place = g_u[:, :: plan.stride, :, inside]
            if g_whole is None:
                place.copy_(g_y[..., outside])
            else:
                torch.add(g_y[..., outside], g_whole[..., outside], alpha=1 / joints, out=place)
        g_x, *rest = project_gradients(g_u, last(x), weight)
        return None, None, first(g_x), *rest, g_gamma, g_beta, g_coefficients, *g_second, *g_last, *g_kernels


def _whole(wholes: Sequence[Tensor | None], plan: Plan) -> Tensor:
    """The global joint's outputs of all branches, by their columns."""
    columns = [branch.outside for branch in plan.branches] + [outside for _, outside in plan.plain]
    order = sorted(range(len(columns)), key=lambda i: columns[i].start)
    return torch.cat([tensor for i in order if (tensor := wholes[i]) is not None], 3)


def _joined(found: Sequence[Statistics]) -> Statistics:
    """The statistics of columns that were found apart."""
    mean, variance, inverse = (
        torch.cat([getattr(each, name) for each in found]) for name in ("mean", "variance", "inverse")
    )
    return Statistics(mean, variance, inverse, found[0].rows, found[0].weights)
