"""ProtoGCN (Liu et al., CVPR 2025): a graph network that learns topologies and contrasts them by class.

The default is the released code's reading: topologies of the last block are rebuilt from prototypes and enter a
contrastive loss, while class scores depend on the trunk alone; so that branch is absent from `net(x)`. The paper's
prose (Eqs. 1, 3-7, 10) reads otherwise; `variant="paper"` is our version of that, for which there is no original code.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from model.distributed import SharedDropout
from model.errors import UserError
from model.layouts import Layout
from model.losses import ClassContrast
from model.nets.blocks import classification_loss
from model.nets.dgstgcn import DGSTGCN
from model.nets.linear import Linear, linear
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
        self.query_matrix = Linear(width, num_prototypes, bias=False)
        self.memory_matrix = Linear(num_prototypes, width, bias=False)
        self.drop = SharedDropout(dropout)

    def forward(self, pairs: Tensor) -> Tensor:
        """(N, V*V, C) -> (N, V*V, C)."""
        return self.drop(self.memory_matrix(self.query_matrix(pairs).softmax(-1)))


class ProtoGCN(DGSTGCN):
    """DG-STGCN's trunk, and the prototype branch that the loss adds; further options are DG-STGCN's.

    Switches for ablations: `inter` and `intra` (together the paper's MTE), `prototypes` (PRN) and
    `contrastive_weight`, 0 for none (CSCL). `variant`:

    - released: as the released code. X = inter + intra of the last block, averaged over persons, is rebuilt to Z,
      which only the contrastive loss sees. Without that loss, or without inter and intra, the branch has no effect.
    - paper (ours): X = A + inter + intra of each person, and the last block aggregates with the rebuilt Z; the
      contrastive loss compares Z averaged over persons.
    """

    def __init__(
        self,
        layout: Layout,
        num_classes: int,
        in_channels: int = 3,
        *,
        base_channels: int = 96,
        variant: str = "released",
        prototypes: bool = True,
        num_prototypes: int = 400,
        contrastive_weight: float = 0.2,
        dropout: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(layout, num_classes, in_channels, base_channels=base_channels, **options)
        if variant not in ("released", "paper"):
            raise UserError(f"variant: {variant!r} is neither released nor paper")
        self.contrastive_weight = contrastive_weight
        last: Any = self.gcn[-1].gcn
        paper = variant == "paper"
        # As released, without the loss or without topologies to rebuild the branch would be dead weight.
        self.contrasts = contrastive_weight > 0 and (last.adapts or paper)
        keeps_memory = prototypes and (self.contrasts or paper)
        self.prn = PrototypeReconstruction(last.width, num_prototypes, dropout) if keeps_memory else None
        self.feeds_back = paper and (self.contrasts or self.prn is not None)
        if self.contrasts:
            self.post = nn.Conv2d(last.width, last.width, 1)
            self.bn = BatchNorm(last.width)
            self.contrast = ClassContrast(layout.num_joints**2, num_classes)

    @staticmethod
    def decisive(options: Mapping[str, Any]) -> dict[str, Any]:
        """Of all options those that have an effect: networks for which they agree are the same, to the bit."""
        found = dict(options)
        paper = found["variant"] == "paper"
        contrasts = found["contrastive_weight"] > 0 and (paper or found["inter"] or found["intra"])
        if not contrasts:
            found["contrastive_weight"] = 0
            found["prototypes"] = found["prototypes"] and paper
        if not found["prototypes"]:
            del found["num_prototypes"], found["dropout"]
            found["variant"] = "paper" if paper and contrasts else "released"
        return found

    def features(self, x: Tensor) -> Tensor:
        """Pooled features (N, C) of clips (N, M, T, V, C)."""
        return self._features_and_topologies(x)[0] if self.feeds_back else super().features(x)

    def features_and_graph(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features (N, C) and the graph vector (N, V*V) that the contrastive loss compares."""
        features, graph = self._features_and_topologies(x)
        return features, self._graph_vector(graph, x.shape[1])

    def _features_and_topologies(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features (N, C) and the topologies (N*M, C'', V, V) of the last block that the loss looks at."""
        last: Any = self.gcn[-1]
        rebuild = self._rebuilt if self.feeds_back else None
        features, graphs = self.trunk(x, [*self.gcn[:-1], partial(last.forward_with_graph, rebuild=rebuild)])
        return features, graphs.flatten(0, 1)

    def per_person(self) -> nn.Module:
        """As released persons do not pass the prototypes."""
        return nn.ModuleList([self.gcn, self.prn]) if self.feeds_back and self.prn is not None else self.gcn

    def _rebuilt(self, topology: Tensor) -> Tensor:
        """(N*M, C, V, V) -> the same from prototypes; itself without them."""
        if self.prn is None:
            return topology
        return self.prn(topology.flatten(2).transpose(1, 2)).transpose(1, 2).view_as(topology)

    def _graph_vector(self, graph: Tensor, persons: int) -> Tensor:
        pairs = graph.flatten(2).unflatten(0, (-1, persons)).mean(1).transpose(1, 2)  # (N, V*V, C)
        if self.prn is not None and not self.feeds_back:
            pairs = self.prn(pairs)
        # The norm is over clips and joint pairs.
        mixed = linear(pairs, self.post.weight.flatten(1), self.post.bias, normed=self.bn.training)
        return norm_relu(self.bn, mixed.transpose(1, 2)[..., None]).mean(1).flatten(1)

    def loss(self, x: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy + contrastive_weight * class-specific contrast; in training the bank moves on."""
        if not self.contrasts:
            return super().loss(x, labels, label_smoothing=label_smoothing)
        features, graph = self.features_and_graph(x)
        logits = self.fc(self.head_drop(features))
        ce, parts = classification_loss(logits, labels, label_smoothing)
        contrast = self.contrast(graph, logits, labels)
        return ce + self.contrastive_weight * contrast, {**parts, "contrast": contrast.detach()}
