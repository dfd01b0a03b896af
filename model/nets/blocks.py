"""Parts that the graph networks share: the trunk with its head, temporal units, residuals.

Inside the trunk a tensor is (N*M, C, T, V) with channels last in memory, which makes convolutions and norms two
to four times as fast on CPU. Module names are those of the released checkpoints, except where several small
convolutions or norms of one input are computed as one: such a module says in `reference_parts` how its tensors
are cut (see model.reference).
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.distributed import SharedDropout
from model.errors import UserError
from model.layouts import Layout
from model.nets import scoring
from model.nets.empty import distinct_persons
from model.nets.memory import channels_first, joints_last
from model.nets.moments import weighted
from model.nets.norm import BatchNorm
from model.nets.temporal import MultiScaleTemporal, TemporalUnit

# What a graph convolution's `topologies(x)` answers for its input x (N, C, T, V): "base" (K, V, V) is A_0, which all
# clips share; where it differs, "enhanced" (N, K[, C], V, V) is what clips are aggregated with, "inter" and "intra" are
# its parts. Row: sender, column: receiver. model.explain looks through it; a new unit should have the method.
Topologies = dict[str, Tensor]


@dataclass(frozen=True)
class Stage:
    """Widths and temporal stride of one block."""

    in_channels: int
    out_channels: int
    stride: int
    residual: bool


def plan_stages(
    in_channels: int,
    base_channels: int,
    num_stages: int,
    inflate_stages: Iterable[int],
    down_stages: Iterable[int],
    ch_ratio: float,
) -> list[Stage]:
    """The blocks of a trunk; stages count from 1, the first has no residual and always stride 1."""
    if num_stages < 1 or base_channels < 1:
        raise UserError(f"num_stages {num_stages} and base_channels {base_channels} must be at least 1")
    inflate, down = set(inflate_stages), set(down_stages)
    stages = [Stage(in_channels, base_channels, 1, residual=False)]
    inflations = 0
    for number in range(2, num_stages + 1):
        inflations += number in inflate
        # The small addition keeps a non-integer ratio from rounding a whole width down.
        width = int(base_channels * ch_ratio**inflations + 1e-4)
        stages.append(Stage(stages[-1].out_channels, width, 1 + (number in down), residual=True))
    return stages


class Block(nn.Module):
    """ReLU(temporal(spatial(x)) + residual(x)), the block of every graph network here."""

    def __init__(self, gcn: nn.Module, tcn: nn.Module, stage: Stage) -> None:
        super().__init__()
        self.gcn = gcn
        self.tcn = tcn
        same_shape = stage.in_channels == stage.out_channels and stage.stride == 1
        self.keeps_input = stage.residual and same_shape
        self.residual = (
            TemporalUnit(stage.in_channels, stage.out_channels, 1, stage.stride)
            if stage.residual and not same_shape
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.gcn(x), x)

    def join(self, y: Tensor, x: Tensor) -> Tensor:
        """The temporal unit of `y`, what the graph convolution made of the block's input `x`, and the residual."""
        residual = x if self.keeps_input else None if self.residual is None else self.residual(x)
        if isinstance(self.tcn, TemporalUnit | MultiScaleTemporal) and not self.tcn.drop.active:
            return self.tcn.joined(y, residual)
        y = self.tcn(y)
        return F.relu(y) if residual is None else F.relu(y + residual, inplace=True)

    def scoring(self) -> scoring.Step | None:
        """The block for `model.nets.scoring`, if both of its units have such a form. It may write over its input."""
        gcn, tcn = scoring.unit_step(self.gcn), scoring.unit_step(self.tcn)
        if gcn is None or tcn is None:
            return None
        residual = None if self.residual is None else scoring.convolution(self.residual.conv, self.residual.bn)

        def score(x: Tensor) -> Tensor:
            y = gcn(x)
            beside = None if residual is None else scoring.rows(residual(scoring.image(x)), len(x))
            return tcn(y, x if self.keeps_input else beside)

        return score


class GraphNetwork(nn.Module):
    """Trunk and head of a graph network: data norm, blocks, mean over frames, joints and persons, classifier.

    `make_block(stage)` builds one block. An empty second person counts in the mean, as in all released code.
    """

    # (pattern, replacement) pairs from our tensor names to the original's, where they differ.
    reference_renames: tuple[tuple[str, str], ...] = ()

    def __init__(
        self,
        layout: Layout,
        num_classes: int,
        in_channels: int,
        make_block: Callable[[Stage], nn.Module],
        *,
        base_channels: int = 64,
        num_stages: int = 10,
        inflate_stages: Iterable[int] = (5, 8),
        down_stages: Iterable[int] = (5, 8),
        ch_ratio: float = 2,
        persons: int = 2,
        norm_per_person: bool = False,
        head_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        stages = plan_stages(in_channels, base_channels, num_stages, inflate_stages, down_stages, ch_ratio)
        self.num_joints = layout.num_joints
        self.in_channels = in_channels
        self.persons = persons
        self.norm_per_person = norm_per_person
        features = layout.num_joints * in_channels
        self.data_bn = BatchNorm(features * (persons if norm_per_person else 1))
        self.gcn = nn.ModuleList(make_block(stage) for stage in stages)
        self.head_drop = SharedDropout(head_dropout)
        self.fc = nn.Linear(stages[-1].out_channels, num_classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def enter(self, x: Tensor) -> Tensor:
        """Checked and normalised input: (N, M, T, V, C) -> (N*M, C, T, V).

        The norm has a feature per joint and channel (v * C + c); persons share it, or with `norm_per_person` each
        person slot has its own.
        """
        if x.dim() != 5 or x.shape[3:] != (self.num_joints, self.in_channels):
            raise UserError(
                f"clips have shape {tuple(x.shape)}; this network takes (N, M, T, {self.num_joints} joints, "
                f"{self.in_channels} channels): check layout and stream"
            )
        clips, persons, frames = x.shape[:3]
        if self.norm_per_person:
            if persons != self.persons:
                raise UserError(f"clips hold {persons} persons, the network was made for {self.persons}: set 'persons'")
            y = self.data_bn(x.transpose(1, 2).reshape(clips * frames, -1, 1, 1))
            y = y.view(clips, frames, persons, *x.shape[3:]).transpose(1, 2)
        else:
            y = self.data_bn(x.reshape(clips * persons * frames, -1, 1, 1))
        return channels_first(y.reshape(clips * persons, frames, *x.shape[3:]))

    def features(self, x: Tensor) -> Tensor:
        """Pooled features (N, C) of clips (N, M, T, V, C)."""
        steps = scoring.steps(self.gcn, x)
        return self.trunk(x, self.gcn)[0] if steps is None else self._scored(x, steps)

    def _scored(self, x: Tensor, steps: list[scoring.Step]) -> Tensor:
        y = joints_last(self.enter(x))
        distinct = distinct_persons(x, self.per_person())
        if distinct is not None:
            y = y[distinct.rows]
        pooled = []
        for persons in y.split(scoring.persons_at_once()):
            z = persons.transpose(1, 2).contiguous()  # (n, V, T, C)
            for step in steps:
                z = step(z)
            pooled.append(z.mean((1, 2)))
        found = torch.cat(pooled)
        return (found if distinct is None else found[distinct.places]).unflatten(0, x.shape[:2]).mean(1)

    def per_person(self) -> nn.Module:
        """The modules that persons pass one by one."""
        return self.gcn

    def trunk(self, x: Tensor, blocks: Iterable[Callable[[Tensor], Any]]) -> tuple[Tensor, Any]:
        """Pooled features (N, C) after these blocks, and per person slot (N, M, ...) what the last gives beside."""
        y = self.enter(x)
        distinct = distinct_persons(x, self.per_person())
        places: Any = slice(None) if distinct is None else distinct.places
        beside = None
        with nullcontext() if distinct is None else weighted(distinct.counts):
            if distinct is not None:
                y = channels_first(joints_last(y)[distinct.rows])
            for block in blocks:
                found = block(y)
                y, beside = found if isinstance(found, tuple) else (found, None)
        # A sum, as the gradient of a mean is written out for every frame and joint.
        pooled = joints_last(y).sum((1, 2)) / (y.shape[2] * y.shape[3])
        per_slot = None if beside is None else beside[places].unflatten(0, x.shape[:2])
        return pooled[places].unflatten(0, x.shape[:2]).mean(1), per_slot

    def forward(self, x: Tensor) -> Tensor:
        """Class scores before softmax (N, classes) of clips (N, M, T, V, C)."""
        return self.fc(self.head_drop(self.features(x)))

    def loss(self, x: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
        """Training loss of clips (N, M, T, V, C) with labels (N,), and its parts by name (detached)."""
        return classification_loss(self(x), labels, label_smoothing)


def classification_loss(logits: Tensor, labels: Tensor, label_smoothing: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean cross entropy of scores (N, classes), in float32 at least whatever autocast made of them."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    total = F.cross_entropy(wide, labels, label_smoothing=label_smoothing)
    return total, {"ce": total.detach()}
