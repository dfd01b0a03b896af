"""Parameters and multiply-accumulates of a network, as published and as executed here.

Published figures of the field are fvcore's: convolutions and matrix products, two per output of a batch norm, one
per input of a two-dimensional mean pool, nothing else. Where our form computes less than the released one (a mean
over frames taken before a projection instead of after), the published figure counts the released form.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.nets.blocks import GraphNetwork
from model.nets.ctrgcn import RefinedGraphConv
from model.nets.dgstgcn import TopologyConv
from model.nets.posec3d import PoseC3D
from model.nets.protogcn import ProtoGCN
from model.nets.umurl import UmURL


@dataclass(frozen=True)
class Complexity:
    """Trainable parameters; multiply-accumulates for one clip, published convention and really executed."""

    parameters: int
    published: int
    executed: int


def usual_input(net: nn.Module, persons: int = 2, frames: int | None = None, size: int = 64) -> tuple[int, ...]:
    """The shape of one clip at which figures are published: 2 x 100 frames, or 48 heat maps of 64 x 64.

    UmURL's follows from the network; no figure of its work was published.
    """
    if isinstance(net, UmURL):
        return (1, *net.shape)
    if isinstance(net, PoseC3D):
        return (1, net.in_channels, frames or 48, size, size)
    assert isinstance(net, GraphNetwork)
    return (1, persons, frames or 100, net.num_joints, net.in_channels)


def clip_complexity(net: nn.Module, recipe: dict[str, Any]) -> Complexity:
    """Counts `net` on one test clip of the `recipe` of its checkpoint, by a copy that computes nothing."""
    side = (recipe.get("heatmap") or {}).get("test_size", 0)
    shape = usual_input(net, recipe["persons"] or 2, recipe["clip_length"], side)
    return complexity(copy.deepcopy(net).to("meta"), shape)


def complexity(net: nn.Module, shape: tuple[int, ...], *, with_loss: bool = False) -> Complexity:
    """Counts `net` on an input of `shape` (first axis: clips).

    `with_loss` counts the path of training instead: the loss, with ProtoGCN's prototype branch.
    """
    extra = 0

    def count_norm(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal extra
        extra += 2 * output.numel()

    def count_released_form(module: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
        nonlocal extra
        extra += _saved(net, module, inputs[0])

    def count_pool(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal extra
        extra += output.numel()

    hooks = []
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            hooks.append(module.register_forward_hook(count_norm))
        elif isinstance(module, TopologyConv | RefinedGraphConv):
            hooks.append(module.register_forward_hook(count_released_form))
    # ProtoGCN's head and three-dimensional pools take their mean by other operations.
    if isinstance(net, GraphNetwork) and not isinstance(net, ProtoGCN):
        hooks.append(net.gcn[-1].register_forward_hook(count_pool))
    was_training = net.training
    x = torch.zeros(shape, device=next(net.parameters()).device)
    try:
        # The counter does not know every fused attention kernel.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            if with_loss:
                net.eval().loss(x, torch.zeros(shape[0], dtype=torch.long, device=x.device))  # type: ignore[operator]
            else:
                net.eval()(x)
    finally:
        net.train(was_training)
        for hook in hooks:
            hook.remove()
    executed = counter.get_total_flops() // 2
    return Complexity(sum(p.numel() for p in net.parameters()), executed + extra, executed)


def _saved(net: nn.Module, module: TopologyConv | RefinedGraphConv, x: Tensor) -> int:
    """Multiply-accumulates of the released form of `module` that ours does not execute."""
    clips, channels, frames, joints = x.shape
    other_frames = clips * channels * joints * (frames - 1)
    if isinstance(module, RefinedGraphConv):
        return 2 * other_frames * module.query.out_channels
    if not module.adapts:
        return 0
    # The published figures of both networks come out if the product of queries and keys is counted twice.
    twice = clips * module.width * joints * joints
    # DG-STGCN's released code takes the mean first, as we do.
    return twice + (2 * other_frames * module.width if isinstance(net, ProtoGCN) else 0)
