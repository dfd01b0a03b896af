"""Units of the graph networks computed on CPU as one step each, forward and backward.

The same values as the modules give that call them, with fewer passes over memory; kept for the backward pass are
inputs and what stands before a norm, while activations, topologies and joined sources are made anew. Inside, a tensor
is (N, T, V, C); at the entrance and exit (N, C, T, V) with channels last in memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.nets.norm import (
    CACHED,
    Statistics,
    apply,
    as_rows,
    backward,
    channels_last,
    chunks,
    ready,
    running,
    statistics,
)


def fits(x: Tensor, *norms: nn.Module) -> bool:
    """Whether a unit with these norms can be computed here."""
    return all(ready(norm, x) for norm in norms)


def _last(x: Tensor) -> Tensor:
    """(N, C, T, V) -> (N, T, V, C)."""
    return x.permute(0, 2, 3, 1)


def _first(x: Tensor) -> Tensor:
    """(N, T, V, C) -> (N, C, T, V)."""
    return x.permute(0, 3, 1, 2)


def _flat(x: Tensor) -> Tensor:
    """(N, T, V, C) -> (N, T*V, C) without a copy."""
    return x.view(len(x), -1, x.shape[-1])


def _found(norm: Any, columns: slice, rows: Tensor) -> Statistics:
    """Those of the batch, or in eval mode the running ones."""
    return statistics(rows, norm.eps) if norm.training else running(norm, columns)


def _conv_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0, dilation: int = 1
) -> list[Tensor]:
    """Gradients of input, weight and bias of a convolution over time."""
    wanted = [True, True, True]
    return list(
        torch.ops.aten.convolution_backward(
            grad, x, weight, [len(weight)], [stride, 1], [padding, 0], [dilation, 1], False, [0, 0], 1, wanted
        )
    )


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The 1x1 convolution of x (N, T, V, C): (N, T, V, C')."""
    return _last(F.conv2d(_images(x), weight, bias)).reshape(*x.shape[:3], len(weight))


def pointwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The 1x1 convolution `conv` of x (N, C, T, V)."""
    if x.device.type != "cpu":
        return conv(x)
    return _first(project(_last(x), conv.weight, conv.bias))


def _project_gradients(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the input (N, T, V, C), weight and bias of `project`."""
    g_x, g_weight, g_bias = _conv_gradients(_images(grad), _images(x), weight)
    return _last(g_x).reshape(x.shape), g_weight, g_bias


def _images(x: Tensor) -> Tensor:
    """(N, T, V, C) -> (N*k, C, T/k, V), a view of 16 images or more if there are so many frames.

    For fewer and a single thread torch takes another kernel, which needs twice the time.
    """
    clips, frames, joints, channels = x.shape
    parts = next((k for k in range(1, frames + 1) if frames % k == 0 and clips * k >= 16), frames)
    return _first(x.reshape(clips * parts, frames // parts, joints, channels))


# --- The temporal unit of several branches ------------------------------------------------------------------


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
        u = project(_last(x), weight, bias)
        clips, frames, joints, _ = u.shape
        y = u.new_empty(clips, -(-frames // plan.stride), joints, plan.width)
        column = None if coefficients is None else coefficients[:joints, None]
        means = None if column is None else u.mean(2, keepdim=True)
        wholes: list[Tensor | None] = []
        found: list[Statistics] = []
        pairs = iter(zip(kernels[::2], kernels[1::2], strict=True))
        for branch in plan.branches:
            part = _with_mean(u[..., branch.inside], None if means is None else means[..., branch.inside])
            found.append(_found(norms[0], branch.inside, _flat(part)))
            scale, shift = found[-1].affine(gamma[branch.inside], beta[branch.inside], x.dtype)
            apply(_flat(part), scale, shift, _flat(part))
            if branch.dilation:
                kernel = next(pairs)
                end = F.conv2d(_first(part), *kernel, (plan.stride, 1), (branch.padding, 0), (branch.dilation, 1))
            else:
                end = F.max_pool2d(_first(part), (branch.kernel, 1), (plan.stride, 1), (branch.padding, 0))
            wholes.append(_spread(y[..., branch.outside], _last(end), column))
        for inside, outside in plan.plain:
            strided = u[:, :: plan.stride, :, inside]
            if means is None or column is None:
                y[..., outside] = strided
            else:
                wholes.append(means[:, :: plan.stride, :, inside])
                torch.addcmul(strided, wholes[-1], column, out=y[..., outside])
        second = _found(norms[1], slice(None), _flat(y))
        if norms[0].training:
            norms[0].track(_joined(found))
            norms[1].track(second)
        keep = norms[0].training
        active = torch.empty_like(y) if keep else y
        apply(_flat(y), *second.affine(gamma2, beta2, x.dtype), _flat(active))
        if keep:
            whole = None if column is None else _whole(wholes, plan)
            ctx.plan, ctx.found, ctx.second = plan, found, second
            ctx.save_for_backward(
                x, weight, gamma, beta, coefficients, gamma2, beta2, last_weight, u, y, whole, *kernels[::2]
            )
        return _first(project(active, last_weight, last_bias))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        plan, found = ctx.plan, ctx.found
        x, weight, gamma, beta, coefficients, gamma2, beta2, last_weight, u, y, whole, *kernels = ctx.saved_tensors
        joints = u.shape[2]
        active = apply(_flat(y), *ctx.second.affine(gamma2, beta2, y.dtype), torch.empty_like(_flat(y))).view_as(y)
        g_y, *g_last = _project_gradients(_last(channels_last(grad)), active, last_weight)
        del active
        g_second = backward(_flat(g_y), _flat(y), ctx.second, gamma2, beta2)[1:]
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
            active = apply(_flat(part), *statistic.affine(*own, u.dtype), torch.empty_like(_flat(part)))
            active = _first(active.view_as(part))
            if branch.dilation:
                kernel = kernels[len(g_kernels) // 2]
                g_part, *rest = _conv_gradients(
                    _first(g_end), active, kernel, plan.stride, branch.padding, branch.dilation
                )
                g_kernels += rest
            else:
                options = (branch.kernel, 1), (plan.stride, 1), (branch.padding, 0)
                _, places = F.max_pool2d(active, *options, return_indices=True)
                g_part = torch.ops.aten.max_pool2d_with_indices_backward(
                    _first(g_end), active, *options, (1, 1), False, places
                )
            g_part = _last(channels_last(g_part))
            g_norm = backward(_flat(g_part), _flat(part), statistic, *own)[1:]
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
        g_x, *rest = _project_gradients(g_u, _last(x), weight)
        return None, None, _first(g_x), *rest, g_gamma, g_beta, g_coefficients, *g_second, *g_last, *g_kernels


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


# --- A topology per clip and channel ------------------------------------------------------------------------


class Aggregate(torch.autograd.Function):
    """ReLU(norm(u)), its joints mixed by shared + scale * tanh(q - k), a matrix (V, V) per clip and channel.

    u (N, K*C, T, V), shared (N or 1, K, 1, V, V), q and k (N, K, C, V) with the scalar `scale`, or None. A few clips at
    a time, in the cache: topologies and the values in the order that the product wants never exist as a whole.
    """

    @staticmethod
    def forward(
        ctx: Any,
        norm: Any,
        u: Tensor,
        gamma: Tensor,
        beta: Tensor,
        shared: Tensor,
        q: Tensor | None,
        k: Tensor | None,
        scale: Tensor | None,
    ) -> Tensor:
        rows = as_rows(u)
        found = _found(norm, slice(None), rows)
        if norm.training:
            norm.track(found)
            ctx.found = found
            ctx.save_for_backward(u, gamma, beta, shared, q, k, scale)
        affine = found.affine(gamma, beta, u.dtype)
        y = torch.empty_like(u)
        for part in chunks(rows):
            tanh = _tanh(q, k, part)
            mixed = _values(u[part], affine, shared.shape[1]) @ _topology(shared, tanh, scale, part)
            y[part] = mixed.flatten(1, 2)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        u, gamma, beta, shared, q, k, scale = ctx.saved_tensors
        affine = ctx.found.affine(gamma, beta, u.dtype)
        g_u, g_shared = torch.empty_like(u), torch.zeros_like(shared)
        g_q, g_k = (None if each is None else torch.empty_like(each) for each in (q, k))
        g_scale = None if scale is None else torch.zeros_like(scale)
        for part in chunks(as_rows(u)):
            tanh = _tanh(q, k, part)
            g_y = grad[part].contiguous().unflatten(1, (shared.shape[1], -1))
            values = _values(u[part], affine, shared.shape[1])
            g_topology = values.transpose(3, 4) @ g_y
            g_values = g_y @ _topology(shared, tanh, scale, part).transpose(3, 4)
            g_u[part] = g_values.flatten(1, 2)
            total = g_topology.sum(2, keepdim=True)
            if len(shared) == 1:
                g_shared += total.sum(0, keepdim=True)
            else:
                g_shared[part] = total
            if tanh is not None and scale is not None and g_q is not None and g_k is not None:
                g_scale += torch.dot(g_topology.flatten(), tanh.flatten())
                steep = torch.ops.aten.tanh_backward(g_topology, tanh).mul_(scale)
                g_q[part] = steep.sum(4)
                g_k[part] = steep.sum(3).neg_()
        rest = backward(as_rows(g_u), as_rows(u), ctx.found, gamma, beta)[1:]
        return None, g_u, *rest, g_shared, g_q, g_k, g_scale


def _tanh(q: Tensor | None, k: Tensor | None, part: slice) -> Tensor | None:
    return None if q is None or k is None else joint_differences(q[part], k[part])


def joint_differences(q: Tensor, k: Tensor) -> Tensor:
    """tanh(q[v] - k[w]): (N, K, C, V) twice -> (N, K, C, V, V)."""
    return (q[..., :, None] - k[..., None, :]).tanh_()


def _topology(shared: Tensor, tanh: Tensor | None, scale: Tensor | None, part: slice) -> Tensor:
    own = shared if len(shared) == 1 else shared[part]
    return own if tanh is None or scale is None else torch.addcmul(own, tanh, scale)


def _values(u: Tensor, affine: tuple[Tensor, Tensor], subsets: int) -> Tensor:
    """ReLU(scale * u + shift) as (N, K, C/K, T, V)."""
    scale, shift = affine
    return _first(torch.addcmul(shift, _last(u), scale).relu_()).contiguous().unflatten(1, (subsets, -1))


# --- Topologies that all clips share ------------------------------------------------------------------------


class SharedTopology(torch.autograd.Function):
    """Joints mixed by each of K topologies, then projected and summed: x (N, C, T, V) -> (N, C', T, V).

    `receivers` (V*K, V) holds topology k of receiver w in row w*K + k, `weight` is (C', K*C, 1, 1), `bias` (V, C').
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, receivers: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x, receivers, weight)
        source = _last(x)
        y = source.new_empty(*source.shape[:3], len(weight))
        for part in _portions(source, receivers):
            torch.add(project(_mixed(source[part], receivers), weight), bias, out=y[part])
        return _first(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, receivers, weight = ctx.saved_tensors
        source, grad = _last(x), _last(channels_last(grad))
        g_x = torch.empty_like(source)
        g_receivers, g_weight = torch.zeros_like(receivers), torch.zeros_like(weight)
        for part in _portions(source, receivers):
            mixed = _mixed(source[part], receivers)
            g_mixed, g_part, _ = _project_gradients(grad[part], mixed, weight)
            g_weight += g_part
            g_mixed = g_mixed.reshape(-1, len(receivers), source.shape[3])
            flat = source[part].flatten(0, 1)
            torch.bmm(receivers.T.expand(len(flat), -1, -1), g_mixed, out=g_x[part].flatten(0, 1))
            g_receivers += torch.bmm(g_mixed, flat.transpose(1, 2)).sum(0)
        return _first(g_x), g_receivers, g_weight, grad.sum(1).sum(0)


def _portions(source: Tensor, receivers: Tensor) -> list[slice]:
    """Clips whose mixed joints fill a few megabytes."""
    mixed = source[0].numel() * len(receivers) // source.shape[2]
    size = max(1, 4 * CACHED // max(1, mixed))
    return [slice(start, start + size) for start in range(0, len(source), size)]


def _mixed(source: Tensor, receivers: Tensor) -> Tensor:
    """(N, T, V, C) -> (N, T, V, K*C)."""
    clips, frames, joints, channels = source.shape
    flat = source.reshape(clips * frames, joints, channels)
    return torch.bmm(receivers.expand(len(flat), -1, -1), flat).view(clips, frames, joints, -1)
