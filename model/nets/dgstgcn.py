"""DG-STGCN (Duan et al. 2022): topologies learned per clip, subset and channel, and a global joint.

ProtoGCN is built of the same blocks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.graph import adjacency
from model.layouts import Layout
from model.nets.blocks import (
    BRANCHES,
    Block,
    Branch,
    GraphNetwork,
    MultiScaleTemporal,
    Stage,
    Topologies,
    channels_first,
    channels_together,
    frames_together,
    joints_last,
)
from model.nets.norm import BatchNorm

# The released checkpoints hold this many global-joint weights whatever the layout.
SMALLEST_GLOBAL_JOINT = 25

Rebuild = Callable[[Tensor], Tensor]


class TopologyConv(nn.Module):
    """Graph convolution with a topology per clip, subset and channel (motion topology enhancement).

    topology = A + inter + intra: A is learned and shared by all clips, `inter` compares joints by
    tanh(q[v] - k[w]) per channel, `intra` by a softmax over the sources v of sum_c q[v] k[w].
    """

    def __init__(self, stage: Stage, topology: Tensor, *, ratio: float, inter: bool, intra: bool) -> None:
        super().__init__()
        subsets = len(topology)
        width = subsets * int(ratio * stage.out_channels)
        self.subsets = subsets
        self.width = width
        self.A = nn.Parameter(topology.clone())
        # As released, of the `subsets` scales only the first is ever used; the others stay zero.
        self.alpha = nn.Parameter(torch.zeros(subsets)) if inter else None
        self.beta = nn.Parameter(torch.zeros(subsets)) if intra else None
        self.pre = nn.Sequential(nn.Conv2d(stage.in_channels, width, 1), BatchNorm(width), nn.ReLU(True))
        self.adapts = inter or intra
        if self.adapts:
            self.conv1 = nn.Conv2d(stage.in_channels, width, 1)
            self.conv2 = nn.Conv2d(stage.in_channels, width, 1)
        self.post = nn.Conv2d(width, stage.out_channels, 1)
        self.bn = BatchNorm(stage.out_channels)
        self.down = (
            nn.Sequential(nn.Conv2d(stage.in_channels, stage.out_channels, 1), BatchNorm(stage.out_channels))
            if stage.in_channels != stage.out_channels
            else nn.Identity()
        )

    def forward(
        self, x: Tensor, want_graph: bool = False, rebuild: Rebuild | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """x (N, C, T, V) -> (N, C', T, V), and the topologies without A (N, C'', V, V) if wanted.

        With `rebuild` the whole topologies, A included, go through it; its answer, of the same shape, is aggregated
        with and given back.
        """
        value = frames_together(self.pre(x)).unflatten(1, (self.subsets, -1))  # (N, K, C, T, V)
        graph = None
        if rebuild is not None:
            whole = self.A[:, None]
            if self.adapts:
                shared, tanh = self._compare_joints(x)
                whole = self._add_inter(shared + whole, tanh)
            graph = rebuild(whole.expand(len(x), -1, value.shape[2], -1, -1).flatten(1, 2))
            y = (value @ graph.unflatten(1, (self.subsets, -1))).flatten(1, 2)
        elif self.adapts:
            shared, tanh = self._compare_joints(x)
            topology = self._add_inter(shared + self.A[:, None], tanh)
            if want_graph:
                graph = self._add_inter(shared, tanh).expand(-1, -1, value.shape[2], -1, -1).flatten(1, 2)
            y = (value @ topology).flatten(1, 2)
        else:
            y = (value.flatten(2, 3) @ self.A).view_as(value).flatten(1, 2)
        y = self.bn(self.post(channels_together(y))) + self.down(x)
        return F.relu(y, inplace=True), graph

    def topologies(self, x: Tensor) -> Topologies:
        """base (K, V, V); where the block has them inter (N, K, C, V, V), intra (N, K, 1, V, V) and their sum."""
        found: Topologies = {"base": self.A}
        if self.adapts:
            intra, tanh = self._compare_joints(x)
            found["enhanced"] = self._add_inter(intra + self.A[:, None], tanh)
            if tanh is not None and self.alpha is not None:
                found["inter"] = self.alpha[0] * tanh
            if self.beta is not None:
                found["intra"] = intra
        return found

    def _compare_joints(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(intra (N, K, 1, V, V) or zeros, tanh of inter (N, K, C, V, V) or None)."""
        # The projections are linear, so the mean over frames is taken before them instead of after.
        pooled = channels_first(joints_last(x).mean(1, keepdim=True))
        q = self.conv1(pooled).flatten(2).contiguous().unflatten(1, (self.subsets, -1))  # (N, K, C, V)
        k = self.conv2(pooled).flatten(2).contiguous().unflatten(1, (self.subsets, -1))
        tanh = None if self.alpha is None else (q[..., :, None] - k[..., None, :]).tanh_()
        if self.beta is None:
            return q.new_zeros(len(q), self.subsets, 1, q.shape[-1], q.shape[-1]), tanh
        intra = self.beta[0] * (q.transpose(2, 3) @ k).softmax(2)
        return intra[:, :, None], tanh

    def _add_inter(self, shared: Tensor, tanh: Tensor | None) -> Tensor:
        if self.alpha is None or tanh is None:
            return shared
        return torch.addcmul(shared, tanh, self.alpha[0])


class TopologyBlock(Block):
    """A block whose graph convolution can also give its topologies."""

    def forward_with_graph(self, x: Tensor, rebuild: Rebuild | None = None) -> tuple[Tensor, Tensor]:
        y, graph = self.gcn(x, want_graph=True, rebuild=rebuild)
        return self.join(self.tcn(y), x), graph

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.tcn(self.gcn(x)[0]), x)


def initial_topology(layout: Layout, graph_mode: str, num_subsets: int, init_off: float, init_std: float) -> Tensor:
    """(K, V, V), from which every block's topology starts: one random draw serves all, or a graph's matrices."""
    if graph_mode != "random":
        return torch.from_numpy(adjacency(layout, graph_mode)).float()
    # No skeleton edge enters; blocks start alike and diverge.
    return torch.empty(num_subsets, layout.num_joints, layout.num_joints).normal_(init_off, init_std)


class DGSTGCN(GraphNetwork):
    """A trunk of topology blocks.

    `subset_ratio` is the width of a subset relative to the block's; `inter` and `intra` switch the two learned parts
    of the topology off for ablations.
    """

    def __init__(
        self,
        layout: Layout,
        num_classes: int,
        in_channels: int = 3,
        *,
        num_subsets: int = 8,
        subset_ratio: float = 0.125,
        graph_mode: str = "random",
        init_off: float = 0.04,
        init_std: float = 0.02,
        branches: Sequence[Branch] = BRANCHES,
        inter: bool = True,
        intra: bool = True,
        temporal_dropout: float = 0.0,
        **trunk: Any,
    ) -> None:
        topology = initial_topology(layout, graph_mode, num_subsets, init_off, init_std)

        def make_block(stage: Stage) -> TopologyBlock:
            gcn = TopologyConv(stage, topology, ratio=subset_ratio, inter=inter, intra=intra)
            tcn = MultiScaleTemporal(
                stage.out_channels,
                stage.out_channels,
                stage.stride,
                branches=branches,
                dropout=temporal_dropout if stage.residual else 0.0,
                global_joint=max(SMALLEST_GLOBAL_JOINT, layout.num_joints),
            )
            return TopologyBlock(gcn, tcn, stage)

        super().__init__(layout, num_classes, in_channels, make_block, **trunk)
