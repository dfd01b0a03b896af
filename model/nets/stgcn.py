"""ST-GCN (Yan et al. 2018) and ST-GCN++ (Duan et al. 2022), which is the first with four options changed."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.errors import UserError
from model.graph import adjacency
from model.layouts import Layout
from model.nets import fused, fused_space, scoring
from model.nets.blocks import Block, GraphNetwork, Stage, Topologies
from model.nets.memory import channels_first, joints_last
from model.nets.norm import BatchNorm, norm_relu
from model.nets.onednn import Convolution, product
from model.nets.temporal import BRANCHES, Branch, MultiScaleTemporal, TemporalUnit, init_time_convs

# What makes ST-GCN++ of ST-GCN.
PLUS_PLUS: dict[str, Any] = {
    "graph_mode": "spatial",
    "adaptive": "init",
    "with_residual": True,
    "temporal": "multi_scale",
}


class SharedGraphConv(nn.Module):
    """Graph convolution with topologies (K, V, V) that all clips and channels share.

    `adaptive` "importance": fixed A times a learned weight per edge, "init": A itself is learned.
    """

    PA: nn.Parameter | None
    A: Tensor

    def __init__(self, stage: Stage, topology: Tensor, adaptive: str, with_residual: bool) -> None:
        super().__init__()
        if adaptive == "importance":
            self.PA = nn.Parameter(torch.ones_like(topology))
            self.register_buffer("A", topology.clone())
        elif adaptive == "init":
            self.PA = None
            self.A = nn.Parameter(topology.clone())
        else:
            raise UserError(f"adaptive {adaptive!r} is unknown: choose 'importance' or 'init'")
        self.subsets = len(topology)
        self.conv = nn.Conv2d(stage.in_channels, self.subsets * stage.out_channels, 1)
        self.bn = BatchNorm(stage.out_channels)
        self.with_residual = with_residual
        self.down = (
            nn.Sequential(fused.Pointwise(stage.in_channels, stage.out_channels, 1), BatchNorm(stage.out_channels))
            if with_residual and stage.in_channels != stage.out_channels
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        weights = self.A if self.PA is None else self.A * self.PA
        # Joints are mixed before the projection: where a block widens that is less work.
        receivers = weights.permute(2, 0, 1).flatten(0, 1)  # (W*K, V)
        kernel = self.conv.weight.unflatten(0, (self.subsets, -1)).transpose(0, 1).flatten(1, 2)
        offsets: Any = self.conv.bias
        bias = weights.sum(1).T @ offsets.view(self.subsets, -1)  # (W, C')
        keeps = self.with_residual and isinstance(self.down, nn.Identity)
        residual = self.down(x) if self.with_residual and not keeps else None
        if fused.fits(x, self.bn):
            own = self.bn.weight, self.bn.bias
            return fused_space.SharedTopology.apply(self.bn, keeps, x, residual, receivers, kernel, bias, *own)
        source = joints_last(x)  # (N, T, V, C)
        mixed = (receivers.to(source.dtype) @ source).view(*source.shape[:3], -1)
        y = F.conv2d(channels_first(mixed), kernel) + bias.T[:, None]
        return norm_relu(self.bn, y, x if keeps else residual)

    def scoring(self) -> scoring.Step:
        """The unit for `model.nets.scoring`: one product that mixes joints, then the subsets as frames of a kernel."""
        weights = self.A if self.PA is None else self.A * self.PA
        receivers = weights.permute(2, 0, 1).flatten(0, 1)  # (W*K, V)
        weight, shift = scoring.folded(self.conv)
        scale, constant = scoring.affine(self.bn, weight.dtype)
        kernel = weight.unflatten(0, (self.subsets, -1)).permute(1, 2, 0, 3, 4).flatten(3)  # (C', C, K, 1)
        project = Convolution(kernel * scale[:, None, None, None], constant)
        # Receivers gather the biases of their senders.
        bias = (weights.sum(1).T @ shift.view(self.subsets, -1) * scale)[:, None]  # (W, 1, C')
        down = None if isinstance(self.down, nn.Identity) else scoring.convolution(*self.down)

        def score(x: Tensor) -> Tensor:
            persons, joints, frames, channels = x.shape
            if down is not None:
                target = scoring.rows(down(scoring.image(x)), persons).add_(bias)
            else:
                target = x + bias if self.with_residual else bias.repeat(persons, 1, frames, 1)
            for person, own in zip(x, target, strict=True):
                mixed = product(receivers, person.flatten(1).T).view(joints, self.subsets, frames, channels)
                project.onto(own[:, None].permute(0, 3, 1, 2), mixed.permute(0, 3, 1, 2))
            return target

        return score

    def topologies(self, x: Tensor) -> Topologies:
        """The learned A, or the fixed A and, as "enhanced", A times the learned weights; the same for all clips."""
        if self.PA is None:
            return {"base": self.A}
        return {"base": self.A, "enhanced": (self.A * self.PA).expand(len(x), -1, -1, -1)}


class STGCN(GraphNetwork):
    """ST-GCN; with the options `PLUS_PLUS`, ST-GCN++.

    `initialisation` "mmaction2" starts temporal and residual convolutions by fan-out, "pyskl" leaves torch's defaults.
    """

    def __init__(
        self,
        layout: Layout,
        num_classes: int,
        in_channels: int = 3,
        *,
        graph_mode: str = "stgcn_spatial",
        max_hop: int = 1,
        adaptive: str = "importance",
        with_residual: bool = False,
        temporal: str = "single",
        branches: Sequence[Branch] = BRANCHES,
        temporal_dropout: float = 0.0,
        initialisation: str = "mmaction2",
        **trunk: Any,
    ) -> None:
        if temporal not in ("single", "multi_scale"):
            raise UserError(f"temporal {temporal!r} is unknown: choose 'single' or 'multi_scale'")
        if initialisation not in ("mmaction2", "pyskl"):
            raise UserError(f"initialisation {initialisation!r} is unknown: choose 'mmaction2' or 'pyskl'")
        hops = {"max_hop": max_hop} if graph_mode == "stgcn_spatial" else {}
        topology = torch.from_numpy(adjacency(layout, graph_mode, **hops)).float()

        def make_block(stage: Stage) -> Block:
            gcn = SharedGraphConv(stage, topology, adaptive, with_residual)
            # The first block drops nothing, as released.
            dropout = temporal_dropout if stage.residual else 0.0
            width = stage.out_channels
            tcn: nn.Module
            if temporal == "single":
                tcn = TemporalUnit(width, width, stride=stage.stride, dropout=dropout)
            else:
                tcn = MultiScaleTemporal(width, width, stage.stride, branches=branches, dropout=dropout)
            return Block(gcn, tcn, stage)

        super().__init__(layout, num_classes, in_channels, make_block, **trunk)
        if initialisation == "mmaction2":
            init_time_convs(self)
