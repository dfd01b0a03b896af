"""DG-STGCN (Duan et al. 2022): topologies learned per clip, subset and channel, and a global joint.

ProtoGCN is built of the same blocks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model.graph import adjacency
from model.layouts import Layout
from model.nets import fused, fused_space, scoring
from model.nets.blocks import Block, GraphNetwork, Stage, Topologies
from model.nets.linear import linear
from model.nets.memory import channels_together, frames_together, joints_last
from model.nets.norm import BatchNorm, norm_relu
from model.nets.onednn import product
from model.nets.temporal import BRANCHES, Branch, MultiScaleTemporal

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
        self.pre = nn.Sequential(fused.Pointwise(stage.in_channels, width, 1), BatchNorm(width), nn.ReLU(True))
        self.adapts = inter or intra
        if self.adapts:
            self.conv1 = nn.Conv2d(stage.in_channels, width, 1)
            self.conv2 = nn.Conv2d(stage.in_channels, width, 1)
        self.post = fused.Pointwise(width, stage.out_channels, 1)
        self.bn = BatchNorm(stage.out_channels)
        self.down = (
            nn.Sequential(fused.Pointwise(stage.in_channels, stage.out_channels, 1), BatchNorm(stage.out_channels))
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
        shared, q, k = self._compare_joints(x) if self.adapts else (None, None, None)
        topology = self.A[None, :, None] if shared is None else shared + self.A[:, None]  # (N or 1, K, 1, V, V)
        keeps = isinstance(self.down, nn.Identity)
        residual = None if keeps else self.down(x)
        graph = None
        if rebuild is None and fused.fits(x, self.pre[1], self.bn):
            y = self._fused(x, keeps, residual, topology, q, k)
        else:
            value = frames_together(self.pre(x)).unflatten(1, (self.subsets, -1))  # (N, K, C, T, V)
            topology = self._add_inter(topology, q, k)
            if rebuild is not None:
                graph = rebuild(topology.expand(len(x), -1, value.shape[2], -1, -1).flatten(1, 2))
                topology = graph.unflatten(1, (self.subsets, -1))
            mixed = channels_together((value @ topology).flatten(1, 2))
            y = norm_relu(self.bn, self.post(mixed), x if residual is None else residual)
        if want_graph and graph is None and shared is not None:
            graph = self._add_inter(shared, q, k).expand(-1, -1, self.width // self.subsets, -1, -1).flatten(1, 2)
        return y, graph

    def _fused(
        self, x: Tensor, keeps: bool, residual: Tensor | None, topology: Tensor, q: Tensor | None, k: Tensor | None
    ) -> Tensor:
        pre: Any = self.pre
        scale = None if self.alpha is None else self.alpha[0]
        return fused_space.LearnedTopology.apply(
            pre[1],
            self.bn,
            keeps,
            x,
            residual,
            pre[0].weight,
            pre[0].bias,
            pre[1].weight,
            pre[1].bias,
            topology,
            *((None, None) if scale is None else (q, k)),
            scale,
            self.post.weight,
            self.post.bias,
            self.bn.weight,
            self.bn.bias,
        )

    def scoring(self) -> scoring.Step:
        """The unit for `model.nets.scoring`. Topologies are (receivers, senders) here."""
        weight, shift = scoring.folded(self.pre[0], self.pre[1])
        weight, shift = weight.flatten(1), shift[:, None]
        post = scoring.convolution(self.post, self.bn)
        down = None if isinstance(self.down, nn.Identity) else scoring.convolution(*self.down)

        def score(x: Tensor) -> Tensor:
            persons, joints, frames, _ = x.shape
            values = product(weight, x.flatten(0, 2)).add_(shift).relu_()  # (K*C, n*V*T)
            mixed = torch.bmm(self._receivers(x.mean(2)), values.view(-1, joints, frames))
            target = x.clone() if down is None else scoring.rows(down(scoring.image(x)), persons)
            post.onto(scoring.image(target), mixed.view(1, self.width, -1, frames))
            return target

        return score

    def _receivers(self, pooled: Tensor) -> Tensor:
        """Topologies (K*C*n, receivers, senders) of x (n, V, T, C), averaged over frames."""
        base = self.A.transpose(1, 2)[:, None, None]
        if self.adapts:
            q, k = (self._compared(conv, pooled) for conv in (self.conv1, self.conv2))  # (K, C, n, V)
            if self.beta is not None:
                compared = k.permute(0, 2, 3, 1) @ q.permute(0, 2, 1, 3)
                base = base + self.beta[0] * compared.softmax(3)[:, None]
            if self.alpha is not None:
                # tanh(x) = 2 * sigmoid(2x) - 1; torch's sigmoid takes a tenth of the time of its tanh.
                twice = float(2 * self.alpha[0])
                steep = (q[..., None, :] - k[..., None]).mul_(2).sigmoid_()
                return torch.add(base - twice / 2, steep, alpha=twice, out=steep).flatten(0, 2)
        return base.expand(-1, self.width // self.subsets, len(pooled), -1, -1).flatten(0, 2)

    def _compared(self, conv: Any, pooled: Tensor) -> Tensor:
        """(n, V, C) -> (K, C, n, V)."""
        found = product(conv.weight.flatten(1), pooled.flatten(0, 1)) + conv.bias[:, None]
        return found.view(self.subsets, -1, *pooled.shape[:2])

    def topologies(self, x: Tensor) -> Topologies:
        """base (K, V, V); where the block has them inter (N, K, C, V, V), intra (N, K, 1, V, V) and their sum."""
        found: Topologies = {"base": self.A}
        if self.adapts:
            intra, q, k = self._compare_joints(x)
            found["enhanced"] = self._add_inter(intra + self.A[:, None], q, k)
            if self.alpha is not None:
                found["inter"] = self._add_inter(torch.zeros_like(intra), q, k)
            if self.beta is not None:
                found["intra"] = intra
        return found

    def _compare_joints(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Intra (N, K, 1, V, V) or zeros, and what inter compares, q and k (N, K, C, V)."""
        # The projections are linear, so the mean over frames is taken before them instead of after. A sum, as the
        # gradient of a mean is written out for every frame.
        pooled = joints_last(x).sum(1) / x.shape[2]  # (N, V, C)
        q, k = (
            linear(pooled, conv.weight.flatten(1), conv.bias)
            .transpose(1, 2)
            .contiguous()
            .unflatten(1, (self.subsets, -1))
            for conv in (self.conv1, self.conv2)
        )
        if self.beta is None:
            return q.new_zeros(len(q), self.subsets, 1, q.shape[-1], q.shape[-1]), q, k
        intra = self.beta[0] * (q.transpose(2, 3) @ k).softmax(2)
        return intra[:, :, None], q, k

    def _add_inter(self, shared: Tensor, q: Tensor | None, k: Tensor | None) -> Tensor:
        if self.alpha is None or q is None or k is None:
            return shared
        return torch.addcmul(shared, (q[..., :, None] - k[..., None, :]).tanh_(), self.alpha[0])


class TopologyBlock(Block):
    """A block whose graph convolution can also give its topologies."""

    def forward_with_graph(self, x: Tensor, rebuild: Rebuild | None = None) -> tuple[Tensor, Tensor]:
        y, graph = self.gcn(x, want_graph=True, rebuild=rebuild)
        return self.join(y, x), graph

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.gcn(x)[0], x)


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
