"""Graph convolutions as one step on CPU, forward and backward; see `model.nets.fused`."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.nets.fused import Ending, backwards, flat, portions
from model.nets.memory import channels_first, joints_last
from model.nets.moments import Slope, Sums, as_rows, running, scaled
from model.nets.norm import channels_last
from model.nets.onednn import product


class LearnedTopology(torch.autograd.Function):
    """Projection, norm, ReLU, joints mixed, projection, and the ending: norm, residual, ReLU.

    Joints are mixed by shared + scale * tanh(q - k), a matrix (V, V) per clip and channel: shared (N or 1, K, 1, V, V),
    q and k (N, K, C, V) with the scalar `scale`, or None. The residual is x itself if `keeps` is set. A few clips at a
    time: topologies and mixed values never exist as a whole. Products write values with joints last, (C, N*T*V), as the
    mixing wants them, and take them from there.
    """

    @staticmethod
    def forward(
        ctx: Any,
        norm: Any,
        end: Any,
        keeps: bool,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        gamma: Tensor,
        beta: Tensor,
        shared: Tensor,
        q: Tensor | None,
        k: Tensor | None,
        scale: Tensor | None,
        last_weight: Tensor,
        last_bias: Tensor,
        gamma2: Tensor,
        beta2: Tensor,
    ) -> Tensor:
        x = channels_last(x)
        frames, joints = x.shape[2:]
        u, sums, rows = [], Sums(), as_rows(x)
        for part in portions(x, 2 * len(weight)):
            u.append(product(weight.flatten(1), rows[part].flatten(0, 1)).view(len(weight), -1, frames * joints))
            if norm.training:
                sums.add_turned(u[-1])
        # The projection's bias would take a pass of its own, and only moves the mean.
        found = sums.merged(norm.eps) if norm.training else running(norm).moved(-bias)
        affine = found.affine(gamma, beta, x.dtype)
        ending = Ending(end, gamma2, beta2)
        for part, each in zip(portions(x, 2 * len(weight)), u, strict=True):
            values = scaled(each, *affine).relu_().view(-1, frames, joints)
            mixed = torch.bmm(values, _topology(shared, _compared(q, k, part), scale, part, len(values)))
            projected = product(mixed.view(len(each), -1).t(), last_weight.flatten(1), last_bias)
            ending.add(projected.view(-1, frames, joints, len(last_weight)))
        out = ending.out(x if keeps else residual)
        if norm.training:
            norm.track(found.moved(bias))
            ctx.found, ctx.ending, ctx.keeps, ctx.has_residual = found, ending.found, keeps, residual is not None
            kept = x, out, weight, gamma, beta, shared, q, k, scale, last_weight, gamma2
            ctx.save_for_backward(*kept, *u, *ending.clips)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, out, weight, gamma, beta, shared, q, k, scale, last_weight, gamma2, *rest = ctx.saved_tensors
        frames, joints = x.shape[2:]
        parts = portions(x, 2 * len(weight))
        u, z = rest[: len(parts)], rest[len(parts) :]
        g_end, slope2 = Ending.gather(grad, out, z, ctx.ending, gamma2, relu=True)
        g_end_norm = slope2.solve()

        affine = ctx.found.affine(gamma, beta, x.dtype)
        slope, g_u = Slope(ctx.found, gamma), [grad] * len(parts)
        g_shared, g_last = torch.zeros_like(shared), torch.zeros_like(last_weight).flatten(1).t().contiguous()
        g_q, g_k = (None if each is None else torch.empty_like(each) for each in (q, k))
        g_scale: Any = None if scale is None else torch.zeros_like(scale)
        for i, part in backwards(parts):
            g_z = slope2.through(part, g_end[part], flat(z[i])).flatten(0, 1)
            compared = _compared(q, k, part)
            values = scaled(u[i], *affine).relu_().view(-1, frames, joints)
            topology = _topology(shared, compared, scale, part, len(values))
            g_last += product(torch.bmm(values, topology).view(len(u[i]), -1), g_z.t())
            g_mixed = product(last_weight.flatten(1).t(), g_z).view_as(values)
            g_topology = torch.bmm(values.transpose(1, 2), g_mixed)
            g_values = torch.bmm(g_mixed, topology.transpose(1, 2))
            torch.ops.aten.threshold_backward.grad_input(g_values, values, 0, grad_input=g_values)
            g_u[i] = g_values.view_as(u[i])
            slope.add_turned(g_u[i], u[i])

            clips = u[i].shape[1]
            g_topology = g_topology.view(shared.shape[1], -1, clips, joints, joints)
            total = g_topology.sum(1).transpose(0, 1)[:, :, None]
            if len(shared) == 1:
                g_shared += total.sum(0, keepdim=True)
            else:
                g_shared[part] = total
            if compared is not None and scale is not None and g_q is not None and g_k is not None:
                g_scale += 2 * torch.dot(g_topology.flatten(), compared.flatten()) - total.sum()
                steep = torch.ops.aten.sigmoid_backward(g_topology, compared)
                g_q[part] = steep.sum(4).permute(2, 0, 1, 3)
                g_k[part] = steep.sum(3).permute(2, 0, 1, 3)
        if scale is not None and g_q is not None and g_k is not None:
            g_q *= 4 * scale
            g_k *= -4 * scale
        g_norm = slope.solve()

        rows = as_rows(x)
        g_x = g_end if ctx.keeps else torch.empty_like(rows)
        g_weight = torch.zeros_like(weight).flatten(1)
        for i, part in enumerate(parts):
            own = slope.through_turned(part, g_u[i], u[i]).flatten(1)
            g_weight += product(own, rows[part].flatten(0, 1).t())
            g_rows = product(own.t(), weight.flatten(1).t()).view_as(rows[part])
            if ctx.keeps:
                g_x[part] += g_rows
            else:
                g_x[part] = g_rows
        # Norms take away what the biases before them add, so these have no gradient.
        g_first = g_weight.view_as(weight), torch.zeros_like(weight[:, 0, 0, 0]), *g_norm
        g_rest = g_last.t().reshape(last_weight.shape), torch.zeros_like(last_weight[:, 0, 0, 0]), *g_end_norm
        g_x, g_residual = (channels_first(each.view(len(x), frames, joints, -1)) for each in (g_x, g_end))
        return (
            *(None, None, None, g_x, g_residual if ctx.has_residual else None),
            *(*g_first, g_shared, g_q, g_k, g_scale, *g_rest),
        )


def _compared(q: Tensor | None, k: Tensor | None, part: slice) -> Tensor | None:
    """(1 + tanh(q[v] - k[w])) / 2 of some clips, (K, C, N, V, V)."""
    if q is None or k is None:
        return None
    # That is a sigmoid, for which torch takes a tenth of the time of its tanh.
    q, k = (2 * each[part].permute(1, 2, 0, 3).contiguous() for each in (q, k))
    return (q[..., :, None] - k[..., None, :]).sigmoid_()


def _topology(shared: Tensor, compared: Tensor | None, scale: Tensor | None, part: slice, matrices: int) -> Tensor:
    """That of some clips for each channel, (K*C*N, V, V)."""
    own = (shared if len(shared) == 1 else shared[part]).permute(1, 2, 0, 3, 4)  # (K, 1, N or 1, V, V)
    if compared is not None and scale is not None:
        return torch.addcmul(own - scale, compared, 2 * scale).flatten(0, 2)
    subsets, clips, joints = len(own), part.stop - part.start, own.shape[-1]
    return own.expand(-1, matrices // subsets // clips, clips, -1, -1).reshape(matrices, joints, joints)


class SharedTopology(torch.autograd.Function):
    """Joints mixed by each of K topologies, projected and summed, and the ending: norm, residual, ReLU.

    `receivers` (V*K, V) holds topology k of receiver w in row w*K + k, `weight` is (C', K*C, 1, 1), `bias` (V, C'). The
    residual is x itself if `keeps` is set. A few clips at a time with joints before frames, (V, N, T, C): then
    one product mixes the joints of all frames, and a kernel over the K topologies projects and sums.
    """

    @staticmethod
    def forward(
        ctx: Any,
        end: Any,
        keeps: bool,
        x: Tensor,
        residual: Tensor | None,
        receivers: Tensor,
        weight: Tensor,
        bias: Tensor,
        gamma: Tensor,
        beta: Tensor,
    ) -> Tensor:
        x = channels_last(x)
        channels, frames, joints = x.shape[1:]
        kernel = _over_topologies(weight, channels)
        ending, clips = Ending(end, gamma, beta), joints_last(x)
        for part in portions(x, weight.shape[1]):
            source = clips[part].permute(2, 0, 1, 3)  # (V, N, T, C)
            mixed = _mixed(source.reshape(joints, -1), receivers, channels)
            projected = joints_last(F.conv2d(mixed, kernel)).view(joints, -1, frames, len(weight))
            before = projected.permute(1, 2, 0, 3)
            ending.add(torch.add(before, bias, out=x.new_empty(before.shape)))
        out = ending.out(x if keeps else residual)
        if end.training:
            ctx.ending, ctx.keeps, ctx.has_residual = ending.found, keeps, residual is not None
            ctx.save_for_backward(x, out, receivers, weight, bias, gamma, *ending.clips)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, out, receivers, weight, bias, gamma, *z = ctx.saved_tensors
        channels, frames, joints = x.shape[1:]
        matrix = weight.flatten(1)
        g_end, slope = Ending.gather(grad, out, z, ctx.ending, gamma, relu=True)
        g_norm = slope.solve()
        g_receivers, g_matrix, g_bias = (torch.zeros_like(each) for each in (receivers, matrix, bias))
        clips = joints_last(x)
        g_x = g_end.view_as(clips) if ctx.keeps else torch.empty_like(clips)
        for i, part in backwards(portions(x, weight.shape[1])):
            g_z = slope.through(part, g_end[part], flat(z[i])).view_as(z[i])
            g_bias += g_z.sum((0, 1))
            g_z = g_z.permute(2, 0, 1, 3).reshape(-1, len(weight))
            source = clips[part].permute(2, 0, 1, 3)
            shape, source = source.shape, source.reshape(joints, -1)
            # For products of single rows the topologies move next to the channels, (V, N*T, K, C).
            mixed = joints_last(_mixed(source, receivers, channels)).transpose(1, 2).reshape(len(g_z), -1)
            g_matrix += product(g_z.t(), mixed.t())
            g_mixed = product(g_z, matrix.t()).view(joints, len(g_z) // joints, -1, channels).transpose(1, 2)
            g_mixed = g_mixed.reshape(len(receivers), -1)
            g_receivers += product(g_mixed, source)
            g_source = product(receivers.t(), g_mixed.t()).view(shape).permute(1, 2, 0, 3)
            if ctx.keeps:
                g_x[part] += g_source
            else:
                g_x[part] = g_source
        g_residual = channels_first(g_end.view(len(x), frames, joints, -1)) if ctx.has_residual else None
        return None, None, channels_first(g_x), g_residual, g_receivers, g_matrix.view_as(weight), g_bias, *g_norm


def _over_topologies(weight: Tensor, channels: int) -> Tensor:
    """(C', K*C, 1, 1) -> (C', C, K, 1), with C last in memory."""
    return weight.view(len(weight), -1, channels, 1).transpose(1, 2)


def _mixed(source: Tensor, receivers: Tensor, channels: int) -> Tensor:
    """(V, T*C) -> (V, C, K, T) with C last in memory."""
    joints = receivers.shape[1]
    subsets = len(receivers) // joints
    return channels_first(product(receivers, source.t()).view(joints, subsets, -1, channels))
