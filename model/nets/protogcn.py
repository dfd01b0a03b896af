"""ProtoGCN (Liu et al., CVPR 2025): a graph network that learns topologies and contrasts them by class.

This is the released code's reading: topologies of the last block are rebuilt from prototypes and enter a
contrastive loss, while class scores depend on the trunk alone; so that branch is absent from `net(x)`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.graph import adjacency
from model.layouts import Layout
from model.losses import ClassContrast
from model.nets.blocks import BRANCHES, Block, Branch, GraphNetwork, MultiScaleTemporal, Stage, plan_stages
from model.nets.norm import BatchNorm

# Released settings per stream, the same for every data set.
STREAM_DEFAULTS: dict[str, dict[str, Any]] = {
    "joint": {"num_prototypes": 400, "contrastive_weight": 0.2},
    "bone": {"num_prototypes": 100, "contrastive_weight": 0.3},
    "kbone": {"num_prototypes": 100, "contrastive_weight": 0.1},
    "joint_motion": {"num_prototypes": 400, "contrastive_weight": 0.2},
    "bone_motion": {"num_prototypes": 100, "contrastive_weight": 0.3},
    "kbone_motion": {"num_prototypes": 100, "contrastive_weight": 0.1},
}
# The paper's single setting (Fig. 3); the released configurations differ from it.
PAPER: dict[str, Any] = {"num_prototypes": 100, "contrastive_weight": 0.3}

# The released checkpoints hold this many global-joint weights whatever the layout.
SMALLEST_GLOBAL_JOINT = 25


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
            nn.Sequential(
                nn.Conv2d(stage.in_channels, stage.out_channels, 1), BatchNorm(stage.out_channels)
            )
            if stage.in_channels != stage.out_channels
            else nn.Identity()
        )

    def forward(self, x: Tensor, want_graph: bool = False) -> tuple[Tensor, Tensor | None]:
        """x (N, C, T, V) -> (N, C', T, V), and the topologies without A (N, C'', V, V) if wanted."""
        # The product with a topology per channel wants frames x joints together in memory.
        value = self.pre(x).contiguous().unflatten(1, (self.subsets, -1))  # (N, K, C, T, V)
        graph = None
        if self.adapts:
            shared, tanh = self._compare_joints(x)
            topology = self._add_inter(shared + self.A[:, None], tanh)
            if want_graph:
                graph = self._add_inter(shared, tanh).expand(-1, -1, value.shape[2], -1, -1).flatten(1, 2)
            y = (value @ topology).flatten(1, 2)
        else:
            y = (value.flatten(2, 3) @ self.A).view_as(value).flatten(1, 2)
        y = y.contiguous(memory_format=torch.channels_last)
        y = self.bn(self.post(y)) + self.down(x)
        return F.relu(y, inplace=True), graph

    def _compare_joints(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(intra (N, K, 1, V, V) or zeros, tanh of inter (N, K, C, V, V) or None)."""
        # The projections are linear, so the mean over frames is taken before them instead of after.
        pooled = x.mean(2, keepdim=True)
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


class ProtoBlock(Block):
    """A block whose graph convolution can also give its topologies."""

    def forward_with_graph(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, graph = self.gcn(x, want_graph=True)
        return self.join(self.tcn(y), x), graph

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.tcn(self.gcn(x)[0]), x)


class PrototypeReconstruction(nn.Module):
    """Rebuilds each joint pair's vector as a softmax-weighted sum of prototypes.

    Prototype i is column i of `memory_matrix.weight`.
    """

    def __init__(self, width: int, num_prototypes: int, dropout: float) -> None:
        super().__init__()
        self.query_matrix = nn.Linear(width, num_prototypes, bias=False)
        self.memory_matrix = nn.Linear(num_prototypes, width, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, pairs: Tensor) -> Tensor:
        """(N, V*V, C) -> (N, V*V, C)."""
        return self.drop(self.memory_matrix(self.query_matrix(pairs).softmax(-1)))


class ProtoGCN(GraphNetwork):
    """The trunk with topology convolutions, and the prototype branch that its loss adds."""

    def __init__(
        self,
        layout: Layout,
        num_classes: int,
        in_channels: int = 3,
        *,
        base_channels: int = 96,
        num_stages: int = 10,
        inflate_stages: Iterable[int] = (5, 8),
        down_stages: Iterable[int] = (5, 8),
        ch_ratio: float = 2,
        num_subsets: int = 8,
        subset_ratio: float = 0.125,
        graph_mode: str = "random",
        init_off: float = 0.04,
        init_std: float = 0.02,
        branches: Sequence[Branch] = BRANCHES,
        inter: bool = True,
        intra: bool = True,
        prototypes: bool = True,
        num_prototypes: int = 400,
        contrastive_weight: float = 0.2,
        dropout: float = 0.1,
        temporal_dropout: float = 0.0,
        persons: int = 2,
        norm_per_person: bool = False,
        head_dropout: float = 0.0,
    ) -> None:
        if graph_mode == "random":
            # One draw serves all blocks, which then diverge; no skeleton edge enters.
            size = (num_subsets, layout.num_joints, layout.num_joints)
            topology = torch.empty(size).normal_(init_off, init_std)
        else:
            topology = torch.from_numpy(adjacency(layout, graph_mode)).float()

        def make_block(stage: Stage) -> ProtoBlock:
            gcn = TopologyConv(stage, topology, ratio=subset_ratio, inter=inter, intra=intra)
            tcn = MultiScaleTemporal(
                stage.out_channels,
                stage.out_channels,
                stage.stride,
                branches=branches,
                dropout=temporal_dropout,
                global_joint=max(SMALLEST_GLOBAL_JOINT, layout.num_joints),
            )
            return ProtoBlock(gcn, tcn, stage)

        stages = plan_stages(in_channels, base_channels, num_stages, inflate_stages, down_stages, ch_ratio)
        super().__init__(
            layout,
            num_classes,
            stages,
            make_block,
            persons=persons,
            norm_per_person=norm_per_person,
            head_dropout=head_dropout,
        )
        self.contrastive_weight = contrastive_weight
        # Without the loss, or without topologies to rebuild, the branch would be dead weight.
        self.has_branch = contrastive_weight > 0 and (inter or intra)
        if self.has_branch:
            width = len(topology) * int(subset_ratio * stages[-1].out_channels)
            self.prn = PrototypeReconstruction(width, num_prototypes, dropout) if prototypes else None
            self.post = nn.Conv2d(width, width, 1)
            self.bn = BatchNorm(width)
            self.contrast = ClassContrast(layout.num_joints**2, num_classes)

    def features_and_graph(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features (N, C) and the graph vector (N, V*V) that the contrastive loss compares."""
        persons = x.shape[1]
        y = self.enter(x)
        for block in self.gcn[:-1]:
            y = block(y)
        y, graph = self.gcn[-1].forward_with_graph(y)
        return self.pool(y, persons), self._graph_vector(graph, persons)

    def _graph_vector(self, graph: Tensor, persons: int) -> Tensor:
        pairs = graph.flatten(2).unflatten(0, (-1, persons)).mean(1).transpose(1, 2)  # (N, V*V, C)
        if self.prn is not None:
            pairs = self.prn(pairs)
        mixed = F.linear(pairs, self.post.weight.flatten(1), self.post.bias)
        # Norm over clips and joint pairs; a (N*V*V, C, 1, 1) view needs no transposed copy.
        normed = self.bn(mixed.flatten(0, 1)[..., None, None])
        return F.relu(normed).mean((1, 2, 3)).view(len(pairs), -1)

    def loss(
        self, x: Tensor, labels: Tensor, *, label_smoothing: float = 0.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy + contrastive_weight * class-specific contrast; in training the bank moves on."""
        if not self.has_branch:
            return super().loss(x, labels, label_smoothing=label_smoothing)
        features, graph = self.features_and_graph(x)
        logits = self.fc(self.head_drop(features))
        ce = self.cross_entropy(logits, labels, label_smoothing)
        contrast = self.contrast(graph, logits, labels)
        total = ce + self.contrastive_weight * contrast
        return total, {"ce": ce.detach(), "contrast": contrast.detach()}
