"""ProtoGCN (Liu et al., CVPR 2025): a graph network that learns topologies and contrasts them by class.

This is the released code's reading: topologies of the last block are rebuilt from prototypes and enter a
contrastive loss, while class scores depend on the trunk alone; so that branch is absent from `net(x)`.
"""

from typing import Any

from torch import Tensor, nn

from model.distributed import SharedDropout
from model.layouts import Layout
from model.losses import ClassContrast
from model.nets.blocks import classification_loss
from model.nets.dgstgcn import DGSTGCN
from model.nets.fused import linear
from model.nets.norm import BatchNorm, norm_relu

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


class PrototypeReconstruction(nn.Module):
    """Rebuilds each joint pair's vector as a softmax-weighted sum of prototypes.

    Prototype i is column i of `memory_matrix.weight`.
    """

    def __init__(self, width: int, num_prototypes: int, dropout: float) -> None:
        super().__init__()
        self.query_matrix = nn.Linear(width, num_prototypes, bias=False)
        self.memory_matrix = nn.Linear(num_prototypes, width, bias=False)
        self.drop = SharedDropout(dropout)

    def forward(self, pairs: Tensor) -> Tensor:
        """(N, V*V, C) -> (N, V*V, C)."""
        shares = linear(pairs, self.query_matrix.weight).softmax(-1)
        return self.drop(linear(shares, self.memory_matrix.weight))


class ProtoGCN(DGSTGCN):
    """DG-STGCN's trunk, and the prototype branch that the loss adds; further options are DG-STGCN's."""

    def __init__(
        self,
        layout: Layout,
        num_classes: int,
        in_channels: int = 3,
        *,
        base_channels: int = 96,
        prototypes: bool = True,
        num_prototypes: int = 400,
        contrastive_weight: float = 0.2,
        dropout: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(layout, num_classes, in_channels, base_channels=base_channels, **options)
        self.contrastive_weight = contrastive_weight
        last: Any = self.gcn[-1].gcn
        # Without the loss, or without topologies to rebuild, the branch would be dead weight.
        self.has_branch = contrastive_weight > 0 and last.adapts
        if self.has_branch:
            width = last.width
            self.prn = PrototypeReconstruction(width, num_prototypes, dropout) if prototypes else None
            self.post = nn.Conv2d(width, width, 1)
            self.bn = BatchNorm(width)
            self.contrast = ClassContrast(layout.num_joints**2, num_classes)

    def features_and_graph(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features (N, C) and the graph vector (N, V*V) that the contrastive loss compares."""
        last: Any = self.gcn[-1]
        features, graphs = self.trunk(x, [*self.gcn[:-1], last.forward_with_graph])
        return features, self._graph_vector(graphs.mean(1))

    def _graph_vector(self, graph: Tensor) -> Tensor:
        """(N, C, V, V), the mean over persons -> (N, V*V)."""
        pairs = graph.flatten(2).transpose(1, 2)  # (N, V*V, C)
        if self.prn is not None:
            pairs = self.prn(pairs)
        mixed = linear(pairs, self.post.weight.flatten(1), self.post.bias)  # norm over clips and joint pairs
        return norm_relu(self.bn, mixed.transpose(1, 2)[..., None]).mean(1).flatten(1)

    def loss(self, x: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy + contrastive_weight * class-specific contrast; in training the bank moves on."""
        if not self.has_branch:
            return super().loss(x, labels, label_smoothing=label_smoothing)
        features, graph = self.features_and_graph(x)
        logits = self.fc(self.head_drop(features))
        ce, parts = classification_loss(logits, labels, label_smoothing)
        contrast = self.contrast(graph, logits, labels)
        return ce + self.contrastive_weight * contrast, {**parts, "contrast": contrast.detach()}
