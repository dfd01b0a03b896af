"""AGCN, the adaptive graph network of two-stream AGCN (Shi et al. 2019), without attention."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.graph import adjacency
from model.layouts import Layout
from model.nets.blocks import (
    Block,
    GraphNetwork,
    Parts,
    Stage,
    TemporalUnit,
    Topologies,
    channels_first,
    init_fan_out,
    init_time_convs,
    joints_last,
)
from model.nets.norm import BatchNorm


class AdaptiveGraphConv(nn.Module):
    """Graph convolution with topology A + alpha * S, where S compares the joints of a clip by embeddings.

    S = tanh(theta^T phi / length), contracted over channels and frames together; the paper has a softmax.
    """

    def __init__(self, stage: Stage, topology: Tensor, reduction: int = 4) -> None:
        super().__init__()
        self.subsets = len(topology)
        self.width = stage.out_channels // reduction
        self.A = nn.Parameter(topology.clone())
        self.alpha = nn.Parameter(torch.zeros(1))
        self.conv_a = nn.Conv2d(stage.in_channels, self.subsets * self.width, 1)
        self.conv_b = nn.Conv2d(stage.in_channels, self.subsets * self.width, 1)
        self.conv_d = nn.ModuleList(nn.Conv2d(stage.in_channels, stage.out_channels, 1) for _ in range(self.subsets))
        self.bn = BatchNorm(stage.out_channels)
        self.down = (
            nn.Sequential(nn.Conv2d(stage.in_channels, stage.out_channels, 1), BatchNorm(stage.out_channels))
            if stage.in_channels != stage.out_channels
            else nn.Identity()
        )
        self._initialise()

    def _initialise(self) -> None:
        for embedding in (self.conv_a, self.conv_b):
            init_fan_out(embedding, [self.width] * self.subsets)
        conv: Any
        for conv in self.conv_d:
            nn.init.normal_(conv.weight, std=math.sqrt(2 / (conv.weight.numel() * self.subsets)))
            nn.init.zeros_(conv.bias)
        if isinstance(self.down, nn.Sequential):
            init_fan_out(self.down[0])
        # The block starts as its residual.
        nn.init.constant_(self.bn.weight, 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        source = joints_last(x)  # (N, T, V, C)
        clips, frames, joints, _ = source.shape
        topology = self.topologies(x)["enhanced"]  # (N, K, V, W)
        # All subsets at once: (W*K, V) times (V, C) for every frame, then one convolution of K*C channels.
        receivers = topology.permute(0, 3, 1, 2).reshape(clips, 1, joints * self.subsets, joints)
        gathered = (receivers @ source).view(clips, frames, joints, -1)
        convs: list[Any] = list(self.conv_d)
        weight = torch.cat([conv.weight for conv in convs], 1)
        bias = torch.stack([conv.bias for conv in convs]).sum(0)
        y = self.bn(F.conv2d(channels_first(gathered), weight, bias)) + self.down(x)
        return F.relu(y, inplace=True)

    def topologies(self, x: Tensor) -> Topologies:
        """base (K, V, V), enhanced (N, K, V, V)."""
        return {"base": self.A, "enhanced": self.A + self.alpha * self._similarity(x)}

    def _similarity(self, x: Tensor) -> Tensor:
        """(N, K, V, V) of x (N, C, T, V)."""
        theta, phi = (self._embed(conv, x) for conv in (self.conv_a, self.conv_b))
        return torch.tanh(theta @ phi.transpose(2, 3) / theta.shape[3])

    def _embed(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """(N, K, V, C*T)."""
        return conv(x).unflatten(1, (self.subsets, self.width)).permute(0, 1, 4, 2, 3).flatten(3)

    def reference_parts(self) -> Parts:
        """The embeddings of the subsets, which the original keeps apart."""
        return {
            f"{name}.{kind}": [(f"{name}.{k}.{kind}", self.width) for k in range(self.subsets)]
            for name in ("conv_a", "conv_b")
            for kind in ("weight", "bias")
        }


class AGCN(GraphNetwork):
    """AGCN; each person slot has its own statistics in the data norm, as released."""

    def __init__(
        self,
        layout: Layout,
        num_classes: int,
        in_channels: int = 3,
        *,
        graph_mode: str = "spatial",
        norm_per_person: bool = True,
        temporal_dropout: float = 0.0,
        **trunk: Any,
    ) -> None:
        topology = torch.from_numpy(adjacency(layout, graph_mode)).float()

        def make_block(stage: Stage) -> Block:
            width = stage.out_channels
            dropout = temporal_dropout if stage.residual else 0.0
            tcn = TemporalUnit(width, width, stride=stage.stride, dropout=dropout)
            return Block(AdaptiveGraphConv(stage, topology), tcn, stage)

        super().__init__(layout, num_classes, in_channels, make_block, norm_per_person=norm_per_person, **trunk)
        # Unused; released checkpoints hold it.
        self.register_buffer("A", topology)
        init_time_convs(self)
