"""Graph convolutions as one step on CPU, forward and backward; see `model.nets.fused`."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.nets.fused import Ending, first
from model.nets.norm import Slope, Sums, as_rows, channels_last, running, scaled
from model.nets.onednn import product


class LearnedTopology(torch.autograd.Function):
    """Projection, norm, ReLU, joints mixed, projection, and the ending: norm, residual, ReLU.

    Joints are mixed by shared + scale * tanh(q - k), a matrix (V, V) per clip and channel: shared (N or 1, K, 1, V, V),
    q and k (N, K, C, V) with the scalar `scale`, or None. The residual is x itself if `keeps` is set. Clip by clip:
    topologies and mixed values never exist as a whole. Products write values with joints last, (C, T*V), as the mixing
    wants them, and take them from there, so that nothing is copied into another order.
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
        clips, _, frames, joints = x.shape
        u, sums = [], Sums()
        for rows in as_rows(x):
            u.append(product(weight.flatten(1), rows))
            if norm.training:
                sums.add_turned(u[-1])
        # The projection's bias would take a pass of its own, and only moves the mean.
        found = sums.merged(norm.eps) if norm.training else running(norm).moved(-bias)
        affine = found.affine(gamma, beta, x.dtype)
        ending = Ending(end, gamma2, beta2)
        for clip in range(clips):
            values = scaled(u[clip], *affine).relu_().view(-1, frames, joints)
            mixed = torch.bmm(values, _topology(shared, _tanh(q, k, clip), scale, clip, len(values)))
            ending.add(product(mixed.view(len(values), -1).t(), last_weight.flatten(1), last_bias))
        out = ending.out((clips, frames, joints), x if keeps else residual)
        if norm.training:
            norm.track(found.moved(bias))
            ctx.found, ctx.ending, ctx.keeps, ctx.has_residual = found, ending.found, keeps, residual is not None
            kept = x, out, weight, gamma, beta, shared, q, k, scale, last_weight, gamma2
            ctx.save_for_backward(*kept, *u, *ending.rows)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, out, weight, gamma, beta, shared, q, k, scale, last_weight, gamma2, *rest = ctx.saved_tensors
        clips, _, frames, joints = x.shape
        u, z = rest[:clips], rest[clips:]
        g_end, slope2 = Ending.gather(grad, out, z, ctx.ending, gamma2, relu=True)
        g_end_norm = slope2.solve()

        affine = ctx.found.affine(gamma, beta, x.dtype)
        slope, g_u = Slope(ctx.found, gamma), []
        g_shared, g_last = torch.zeros_like(shared), torch.zeros_like(last_weight).flatten(1).t().contiguous()
        g_q, g_k = (None if each is None else torch.empty_like(each) for each in (q, k))
        g_scale: Any = None if scale is None else torch.zeros_like(scale)
        for clip in range(clips):
            g_z = slope2.through(clip, g_end[clip], z[clip])
            tanh = _tanh(q, k, clip)
            values = scaled(u[clip], *affine).relu_().view(-1, frames, joints)
            topology = _topology(shared, tanh, scale, clip, len(values))
            g_last += product(torch.bmm(values, topology).view(len(values), -1), g_z.t())
            g_mixed = product(last_weight.flatten(1).t(), g_z).view_as(values)
            g_topology = torch.bmm(values.transpose(1, 2), g_mixed)
            g_values = torch.bmm(g_mixed, topology.transpose(1, 2))
            torch.ops.aten.threshold_backward.grad_input(g_values, values, 0, grad_input=g_values)
            g_u.append(g_values.view_as(u[clip]))
            slope.add_turned(g_u[-1], u[clip])

            g_topology = g_topology.unflatten(0, (shared.shape[1], -1))  # (K, C, V, V)
            g_shared[clip if len(shared) > 1 else 0] += g_topology.sum(1, keepdim=True)
            if tanh is not None and scale is not None and g_q is not None and g_k is not None:
                g_scale += torch.dot(g_topology.flatten(), tanh.flatten())
                steep = torch.ops.aten.tanh_backward(g_topology, tanh).mul_(scale)
                g_q[clip] = steep.sum(3)
                g_k[clip] = steep.sum(2).neg_()
        g_norm = slope.solve()

        g_x = g_end if ctx.keeps else x.new_empty(clips, frames * joints, x.shape[1])
        g_weight = torch.zeros_like(weight).flatten(1)
        for clip, rows in enumerate(as_rows(x)):
            own = slope.through_turned(clip, g_u[clip], u[clip])
            g_weight += product(own, rows.t())
            g_rows = product(own.t(), weight.flatten(1).t())
            if ctx.keeps:
                g_x[clip] += g_rows
            else:
                g_x[clip] = g_rows
        # Norms take away what the biases before them add, so these have no gradient.
        g_first = g_weight.view_as(weight), torch.zeros_like(weight[:, 0, 0, 0]), *g_norm
        g_rest = g_last.t().reshape(last_weight.shape), torch.zeros_like(last_weight[:, 0, 0, 0]), *g_end_norm
        g_x, g_residual = (first(each.view(clips, frames, joints, -1)) for each in (g_x, g_end))
        return (
            *(None, None, None, g_x, g_residual if ctx.has_residual else None),
            *(*g_first, g_shared, g_q, g_k, g_scale, *g_rest),
        )


def _tanh(q: Tensor | None, k: Tensor | None, clip: int) -> Tensor | None:
    """tanh(q[v] - k[w]) of a clip, (K, C, V, V)."""
    if q is None or k is None:
        return None
    # tanh(x) = 2 * sigmoid(2x) - 1; torch's sigmoid takes a tenth of the time of its tanh.
    return (2 * q[clip, ..., :, None] - 2 * k[clip, ..., None, :]).sigmoid_().mul_(2).sub_(1)


def _topology(shared: Tensor, tanh: Tensor | None, scale: Tensor | None, clip: int, channels: int) -> Tensor:
    """That of a clip for each channel, (K*C, V, V)."""
    own = shared[clip if len(shared) > 1 else 0]
    if tanh is not None and scale is not None:
        own = torch.addcmul(own, tanh, scale)
    return own.expand(-1, channels // len(own), -1, -1).flatten(0, 1)


class SharedTopology(torch.autograd.Function):
    """Joints mixed by each of K topologies, projected and summed, and the ending: norm, residual, ReLU.

    `receivers` (V*K, V) holds topology k of receiver w in row w*K + k, `weight` is (C', K*C, 1, 1), `bias` (V, C'). The
    residual is x itself if `keeps` is set. Clip by clip with joints before frames, (V, T, C): then one product mixes
    the joints of all frames, and a kernel over the K topologies projects and sums.
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
        clips, channels, frames, joints = x.shape
        kernel = _over_topologies(weight, channels)
        ending = Ending(end, gamma, beta)
        for source in x.permute(0, 2, 3, 1):
            mixed = _mixed(source.transpose(0, 1).reshape(joints, -1), receivers, frames)
            projected = F.conv2d(mixed, kernel).permute(0, 2, 3, 1).squeeze(1)  # (V, T, C')
            rows = torch.add(projected.transpose(0, 1), bias, out=x.new_empty(frames, joints, len(weight)))
            ending.add(rows.flatten(0, 1))
        out = ending.out((clips, frames, joints), x if keeps else residual)
        if end.training:
            ctx.ending, ctx.keeps, ctx.has_residual = ending.found, keeps, residual is not None
            ctx.save_for_backward(x, out, receivers, weight, bias, gamma, *ending.rows)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, out, receivers, weight, bias, gamma, *z = ctx.saved_tensors
        clips, channels, frames, joints = x.shape
        matrix = weight.flatten(1)
        g_end, slope = Ending.gather(grad, out, z, ctx.ending, gamma, relu=True)
        g_norm = slope.solve()
        g_receivers, g_matrix, g_bias = (torch.zeros_like(each) for each in (receivers, matrix, bias))
        g_x = g_end if ctx.keeps else x.new_empty(clips, frames * joints, channels)
        for clip, frames_first in enumerate(x.permute(0, 2, 3, 1)):
            g_z = slope.through(clip, g_end[clip], z[clip]).view(frames, joints, -1)
            g_bias += g_z.sum(0)
            g_z = g_z.transpose(0, 1).flatten(0, 1)
            source = frames_first.transpose(0, 1).reshape(joints, -1)
            # For products of single rows the topologies move next to the channels, (V, T, K, C).
            mixed = _mixed(source, receivers, frames).permute(0, 3, 2, 1).reshape(len(g_z), -1)
            g_matrix += product(g_z.t(), mixed.t())
            g_mixed = product(g_z, matrix.t()).view(joints, frames, -1, channels).transpose(1, 2)
            g_mixed = g_mixed.reshape(len(receivers), -1)
            g_receivers += product(g_mixed, source)
            g_source = product(receivers.t(), g_mixed.t()).view(joints, frames, -1).transpose(0, 1)
            own = g_x[clip].view(frames, joints, -1)
            if ctx.keeps:
                own += g_source
            else:
                own.copy_(g_source)
        g_x, g_residual = (first(each.view(clips, frames, joints, -1)) for each in (g_x, g_end))
        g_residual = g_residual if ctx.has_residual else None
        return None, None, g_x, g_residual, g_receivers, g_matrix.view_as(weight), g_bias, *g_norm


def _over_topologies(weight: Tensor, channels: int) -> Tensor:
    """(C', K*C, 1, 1) -> (C', C, K, 1), with C last in memory."""
    return weight.view(len(weight), -1, channels, 1).transpose(1, 2)


def _mixed(source: Tensor, receivers: Tensor, frames: int) -> Tensor:
    """(V, T*C) -> (V, C, K, T) with C last in memory."""
    joints = receivers.shape[1]
    return product(receivers, source.t()).view(joints, -1, frames, source.shape[1] // frames).permute(0, 3, 1, 2)
