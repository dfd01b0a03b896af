"""The temporal unit of several branches as one step on CPU, forward and backward; see `model.nets.fused`.

A few clips at a time, so that what is made for the next step is still in the cache: (N, T, J, C), where J counts the
joints and, last, the global one if there is one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.nets.fused import Ending, backwards, flat, portions
from model.nets.memory import channels_first
from model.nets.moments import Room, Slope, Sums, as_rows, running
from model.nets.norm import channels_last
from model.nets.onednn import product


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

    @property
    def normed(self) -> int:
        """Columns of the projection that pass the norm; they come first."""
        return self.branches[-1].inside.stop

    @property
    def margin(self) -> int:
        """Frames of zeros that the branches need before and after a clip."""
        return max(branch.padding for branch in self.branches)


class MultiScale(torch.autograd.Function):
    """Projection, branches over time, joining, norm, ReLU, projection, and the ending: norm, residual, ReLU.

    x (N, C, T, V); `weight` (C', C, 1, 1) projects for all branches, those with a norm first; `last_weight` is the
    projection after the second norm; `kernels` are weight and bias of each branch that convolves. The norms are those
    after the first projection, of the joined branches, and of the ending.
    """

    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan,
        norms: Sequence[Any],
        relu: bool,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        gamma: Tensor,
        beta: Tensor,
        coefficients: Tensor | None,
        gamma2: Tensor,
        beta2: Tensor,
        last_weight: Tensor,
        last_bias: Tensor,
        gamma3: Tensor,
        beta3: Tensor,
        *kernels: Tensor,
    ) -> Tensor:
        x = channels_last(x)
        clips, _, frames, joints = x.shape
        column = None if coefficients is None else coefficients[:joints, None]
        matrices = _matrices(plan, kernels)
        training = norms[0].training

        u, sums, rows = [], Sums(), as_rows(x)
        for part in portions(x, plan.width):
            projected = product(rows[part].flatten(0, 1), weight.flatten(1), bias).view(-1, frames, joints, len(weight))
            u.append(projected if column is None else torch.cat([projected, projected.mean(2, keepdim=True)], 2))
            if training:
                sums.add(flat(u[-1]))
        found = sums.merged(norms[0].eps).columns(slice(plan.normed)) if training else running(norms[0])
        affine = _extended(found.affine(gamma, beta, x.dtype), len(weight))

        y, wholes, sums, padded = [], [], Sums(), Padded(plan)
        for each in u:
            padded.activate(each, affine)
            ends = [_end(taps, matrix) for taps, (_, matrix) in zip(padded.taps, matrices, strict=True)] + padded.plain
            joined = torch.cat([ends[i] for i in _order(plan)], 3)
            if column is not None:
                local, whole = joined.split([joints, 1], 2)
                wholes.append(whole.clone())
                joined = torch.addcmul(local, whole, column)
            y.append(joined)
            if norms[1].training:
                sums.add(flat(joined))
        second = sums.merged(norms[1].eps) if norms[1].training else running(norms[1])
        affine2 = second.affine(gamma2, beta2, x.dtype)

        ending, room = Ending(norms[2], gamma3, beta3), Room()
        for each in y:
            active = torch.addcmul(affine2[1], each, affine2[0], out=room.like(each)).relu_()
            ending.add(product(active.flatten(0, 2), last_weight.flatten(1), last_bias).view(*each.shape[:3], -1))
        out = ending.out(residual, relu=relu)
        if training:
            norms[0].track(found)
            norms[1].track(second)
            ctx.plan, ctx.found, ctx.second, ctx.ending, ctx.relu = plan, found, second, ending.found, relu
            ctx.has_residual = residual is not None
            shared = x, out, weight, gamma, beta, coefficients, gamma2, beta2, last_weight, gamma3, *kernels[::2]
            ctx.save_for_backward(*shared, *u, *y, *ending.clips, *wholes)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        plan: Plan = ctx.plan
        x, out, weight, gamma, beta, coefficients, gamma2, beta2, last_weight, gamma3, *rest = ctx.saved_tensors
        clips, _, frames, joints = x.shape
        shapes = sum(bool(branch.dilation) for branch in plan.branches)
        kernels, rest, parts = rest[:shapes], rest[shapes:], portions(x, plan.width)
        u, y, z, wholes = (rest[start : start + len(parts)] for start in range(0, 4 * len(parts), len(parts)))
        column = None if coefficients is None else coefficients[:joints, None]

        g_end, slope3 = Ending.gather(grad, out, z, ctx.ending, gamma3, relu=ctx.relu)
        g_end_norm = slope3.solve()
        affine2 = ctx.second.affine(gamma2, beta2, x.dtype)
        slope2, room = Slope(ctx.second, gamma2), Room()
        g_y: list[Tensor] = [grad] * len(parts)
        g_last = torch.zeros_like(last_weight).flatten(1)
        for i, part in backwards(parts):
            g_z = slope3.through(part, g_end[part], flat(z[i])).flatten(0, 1)
            active = torch.addcmul(affine2[1], y[i], affine2[0], out=room.like(y[i])).relu_().flatten(0, 2)
            g_last += product(g_z.t(), active.t())
            g_active = product(g_z, last_weight.flatten(1).t())
            torch.ops.aten.threshold_backward.grad_input(g_active, active, 0, grad_input=g_active)
            g_y[i] = g_active.view_as(y[i])
            slope2.add(g_y[i], y[i])
        g_second = slope2.solve()

        affine = _extended(ctx.found.affine(gamma, beta, x.dtype), len(weight))
        slope = Slope(ctx.found.extended(len(weight)), torch.cat([gamma, gamma.new_ones(len(weight) - len(gamma))]))
        g_coefficients = None if coefficients is None else torch.zeros_like(coefficients)
        g_wholes = gamma2.new_zeros(plan.width)
        matrices = _matrices(plan, kernels, every=1)
        g_matrices = [None if matrix is None else torch.zeros_like(matrix[0]) for _, matrix in matrices]
        g_u, padded, g_padded = [grad] * len(parts), Padded(plan), Padded(plan)
        for i, part in enumerate(parts):
            own = slope2.through(part, flat(g_y[i]), flat(y[i])).view_as(y[i])
            if column is not None and g_coefficients is not None:
                g_coefficients[:joints] += (own @ wholes[i].transpose(2, 3)).sum((0, 1, 3))
                whole = column.t() @ own
                g_wholes += whole.sum((0, 1, 2))
                own = torch.cat([own, whole], 2)
            padded.activate(u[i], affine)
            g_padded.clear(u[i])
            for b, (branch, matrix) in enumerate(matrices):
                _end_gradients(padded.taps[b], own[..., branch.outside], matrix, g_matrices[b], g_padded.taps[b])
            g_u[i] = torch.ops.aten.threshold_backward(g_padded.inner, padded.inner, 0)
            for inside, outside in plan.plain:
                g_u[i][..., inside] = 0
                g_u[i][:, :: plan.stride, :, inside] = own[..., outside]
            slope.add(g_u[i], u[i])
        g_gamma, g_beta = (each[: plan.normed] for each in slope.solve())
        slope.pass_on(slice(plan.normed, None))

        rows = as_rows(x)
        g_x, g_weight = torch.empty_like(rows), torch.zeros_like(weight).flatten(1)
        for i, part in backwards(parts):
            own = slope.through(part, flat(g_u[i]), flat(u[i])).view_as(u[i])
            if column is not None:
                local, mean = own.split([joints, 1], 2)
                own = torch.add(local, mean, alpha=1 / joints)
            own = own.flatten(0, 2)
            g_weight += product(own.t(), rows[part].flatten(0, 1).t())
            g_x[part] = product(own, weight.flatten(1).t()).view_as(g_x[part])
        # A norm takes away what a bias before it adds, so its gradient is zero; but the global joint's share of it
        # differs from joint to joint.
        g_bias = torch.zeros_like(weight[:, 0, 0, 0])
        for inside, outside in plan.plain:
            g_bias[inside] = g_wholes[outside]
        g_kernels = []
        for (branch, _), g_matrix in zip(matrices, g_matrices, strict=True):
            if g_matrix is not None:
                shape = len(g_matrix), branch.kernel, -1
                g_kernels += [g_matrix.view(shape).transpose(1, 2)[..., None], g_wholes[branch.outside]]
        g_first = g_weight.view_as(weight), g_bias, g_gamma, g_beta, g_coefficients
        g_rest = *g_second, g_last.view_as(last_weight), torch.zeros_like(last_weight[:, 0, 0, 0]), *g_end_norm
        g_residual = channels_first(g_end.view_as(out.permute(0, 2, 3, 1))) if ctx.has_residual else None
        return (
            None,
            None,
            None,
            channels_first(g_x.view(clips, frames, joints, -1)),
            g_residual,
            *g_first,
            *g_rest,
            *g_kernels,
        )


def _extended(affine: tuple[Tensor, Tensor], columns: int) -> tuple[Tensor, Tensor]:
    """Scale and shift of a norm, and of further columns that pass as they are."""
    scale, shift = affine
    more = columns - len(scale)
    return torch.cat([scale, scale.new_ones(more)]), torch.cat([shift, shift.new_zeros(more)])


def _matrices(
    plan: Plan, kernels: Sequence[Tensor], every: int = 2
) -> list[tuple[Branch, tuple[Tensor, Tensor | None] | None]]:
    """Each branch and, if it convolves, its kernel as a matrix (C, kernel * C) and its bias."""
    groups = iter(kernels[i : i + every] for i in range(0, len(kernels), every))
    found: list[tuple[Branch, tuple[Tensor, Tensor | None] | None]] = []
    for branch in plan.branches:
        if branch.dilation:
            kernel, *bias = next(groups)
            matrix = kernel.squeeze(3).transpose(1, 2).flatten(1).contiguous()
            found.append((branch, (matrix, bias[0] if bias else None)))
        else:
            found.append((branch, None))
    return found


def _order(plan: Plan) -> list[int]:
    """The ends, branches before plain ones, by their columns."""
    starts = [branch.outside.start for branch in plan.branches] + [outside.start for _, outside in plan.plain]
    return sorted(range(len(starts)), key=starts.__getitem__)


class Padded:
    """Room for clips (N, T, J, C) between margins of zeros, and the views of it that the branches take."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.shape: Any = None

    def _fit(self, u: Tensor) -> None:
        if self.shape == u.shape:
            return
        plan, self.shape = self.plan, u.shape
        clips, frames, *rest = u.shape
        whole = u.new_zeros(clips, frames + 2 * plan.margin, *rest)
        self.inner = whole[:, plan.margin : plan.margin + frames]
        self.plain = [self.inner[:, :: plan.stride, :, inside] for inside, _ in plan.plain]
        # Of each branch the frames (N, T', J, C) that meet each frame of its kernel.
        self.taps: list[list[Tensor]] = []
        for branch in plan.branches:
            begins = [plan.margin - branch.padding + i * max(1, branch.dilation) for i in range(branch.kernel)]
            spans = [slice(begin, begin + frames, plan.stride) for begin in begins]
            self.taps.append([whole[:, span, :, branch.inside] for span in spans])

    def activate(self, u: Tensor, affine: tuple[Tensor, Tensor]) -> None:
        """Writes norm and ReLU of u; plain columns as they are."""
        self._fit(u)
        scale, shift = affine
        torch.addcmul(shift, u, scale, out=self.inner)
        self.inner[..., : self.plan.normed].relu_()

    def clear(self, u: Tensor) -> None:
        """Zeros for gradients of u; the margins gather what nobody reads."""
        self._fit(u)
        self.inner.zero_()


def _end(taps: Sequence[Tensor], matrix: tuple[Tensor, Tensor | None] | None) -> Tensor:
    """What a branch makes of clips: (N, T', J, C)."""
    if matrix is None:
        return _largest(taps)
    together = torch.cat(list(taps), 3)
    return product(together.flatten(0, 2), *matrix).view(*together.shape[:3], -1)


def _largest(taps: Sequence[Tensor]) -> Tensor:
    # Margins are zero, and so is the least that a rectifier leaves.
    largest = taps[0]
    for tap in taps[1:]:
        largest = torch.maximum(largest, tap)
    return largest


def _end_gradients(
    taps: Sequence[Tensor],
    grad: Tensor,
    matrix: tuple[Tensor, Tensor | None] | None,
    g_matrix: Tensor | None,
    places: Sequence[Tensor],
) -> None:
    """Adds the gradients of `_end` to those of the matrix and of the padded clip, of which `places` are the taps."""
    if matrix is None or g_matrix is None:
        largest = _largest(taps)
        # Of equal frames the first gets the gradient, as in torch.
        below = -torch.finfo(grad.dtype).tiny
        for tap, place in zip(taps, places, strict=True):
            own = torch.ops.aten.threshold_backward(grad, tap - largest, below)
            place += own
            grad = grad - own
        return
    rows, together = grad.flatten(0, 2).contiguous(), torch.cat(list(taps), 3).flatten(0, 2)
    g_matrix += product(rows.t(), together.t())
    parts = product(rows, matrix[0].t()).view(*grad.shape[:3], -1)
    for place, part in zip(places, parts.split(grad.shape[3], 3), strict=True):
        place += part
