"""Parts that the graph networks share: the trunk with its head, temporal units, residuals.

Inside the trunk a tensor is (N*M, C, T, V) with channels last in memory, which makes convolutions and norms two
to four times as fast on CPU. Module names are those of the released checkpoints, except where several small
convolutions or norms of one input are computed as one: such a module says in `reference_parts` how its tensors
are cut (see model.reference).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.distributed import SharedDropout
from model.errors import UserError
from model.layouts import Layout
from model.nets.norm import BatchNorm

Branch = Any  # (kernel, dilation), ("max", kernel) or "1x1"
BRANCHES: tuple[Branch, ...] = ((3, 1), (3, 2), (3, 3), (3, 4), ("max", 3), "1x1")
# What a graph convolution's `topologies(x)` answers for its input x (N, C, T, V): "base" (K, V, V) is A_0, which all
# clips share; where it differs, "enhanced" (N, K[, C], V, V) is what clips are aggregated with, "inter" and "intra" are
# its parts. Row: sender, column: receiver. model.explain looks through it; a new unit should have the method.
Topologies = dict[str, Tensor]
Parts = dict[str, list[tuple[str, int]]]  # own tensor -> (original name, rows), in order along dimension 0


def init_fan_out(conv: Any, parts: Sequence[int] = ()) -> None:
    """Kaiming-normal by fan-out and zero bias; `parts` are the widths of convolutions computed as one."""
    for rows in conv.weight.data.split(list(parts) or len(conv.weight)):
        nn.init.kaiming_normal_(rows, mode="fan_out")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def init_time_convs(net: nn.Module) -> None:
    """MMAction2's start of temporal and residual units: fan-out instead of torch's default."""
    for module in net.modules():
        if isinstance(module, TemporalUnit | TimeConv):
            init_fan_out(module.conv)


def joints_last(x: Tensor) -> Tensor:
    """(N, C, T, V) -> (N, T, V, C), a view that is contiguous when channels are last in memory."""
    return x.permute(0, 2, 3, 1)


def channels_first(x: Tensor) -> Tensor:
    """(N, T, V, C) -> (N, C, T, V), a view."""
    return x.permute(0, 3, 1, 2)


class _Relayout(torch.autograd.Function):
    """The same values in another memory format; the gradient returns in the former one.

    Without it a gradient would travel on in the foreign format and slow down every step that it meets.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, channels_outside: bool) -> Tensor:
        ctx.channels_outside = channels_outside
        return _in_format(x, channels_outside)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _in_format(grad, not ctx.channels_outside), None


def _in_format(x: Tensor, channels_outside: bool) -> Tensor:
    # A copy made outright: with one joint or one frame both formats look the same to torch.
    return x.contiguous() if channels_outside else channels_first(joints_last(x).contiguous())


def frames_together(x: Tensor) -> Tensor:
    """(N, C, T, V) with channels last in memory -> the same with frames x joints last, for products per channel."""
    return _Relayout.apply(x, True) if x.requires_grad else _in_format(x, True)


def channels_together(x: Tensor) -> Tensor:
    """The inverse of `frames_together`."""
    return _Relayout.apply(x, False) if x.requires_grad else _in_format(x, False)


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


def branch_widths(out_channels: int, branches: int) -> list[int]:
    """Equal shares of `out_channels`; the first branch takes the remainder."""
    share = out_channels // branches
    return [out_channels - share * (branches - 1)] + [share] * (branches - 1)


class TemporalUnit(nn.Module):
    """Convolution over time (kernel x 1) with batch norm and dropout; kernel 1 serves as residual."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 9, stride: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, (kernel, 1), (stride, 1), ((kernel - 1) // 2, 0))
        self.bn = BatchNorm(out_channels)
        self.drop = SharedDropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.bn(self.conv(x)))


class TimeConv(nn.Module):
    """Dilated convolution over time alone; a module of its own because checkpoints name it `conv`."""

    def __init__(self, channels: int, kernel: int, stride: int, dilation: int) -> None:
        super().__init__()
        padding = (kernel + (kernel - 1) * (dilation - 1) - 1) // 2
        self.conv = nn.Conv2d(channels, channels, (kernel, 1), (stride, 1), (padding, 0), (dilation, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class MultiScaleTemporal(nn.Module):
    """Multi-branch temporal unit of ST-GCN++ (Duan et al. 2022), with the global joint of DG-STGCN if asked.

    Each branch begins with a 1x1 convolution of the same input: those of all branches with a norm are computed
    as one, and so are the plain ones. The global joint is the mean over joints, carried as one more column
    through all branches, then added to every joint with a learned weight per joint.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        branches: Sequence[Branch] = BRANCHES,
        dropout: float = 0.0,
        global_joint: int | None = None,
    ) -> None:
        super().__init__()
        widths = branch_widths(out_channels, len(branches))
        self.normed = {str(i): widths[i] for i, branch in enumerate(branches) if branch != "1x1"}
        self.plain = {str(i): widths[i] for i, branch in enumerate(branches) if branch == "1x1"}
        self.num_branches = len(branches)
        if self.normed:
            self.squeeze = nn.Conv2d(in_channels, sum(self.normed.values()), 1)
            self.squeeze_bn = BatchNorm(sum(self.normed.values()))
        if self.plain:
            self.shortcut = nn.Conv2d(in_channels, sum(self.plain.values()), 1, (stride, 1))
        self.branches = nn.ModuleDict()
        for i, width in self.normed.items():
            kind, size = branches[int(i)]
            if kind == "max":
                self.branches[i] = nn.MaxPool2d((int(size), 1), (stride, 1), (1, 0))
            else:
                self.branches[i] = TimeConv(width, int(kind), stride, int(size))
        self.add_coeff = None if global_joint is None else nn.Parameter(torch.zeros(global_joint))
        self.transform_bn = BatchNorm(out_channels)
        self.transform = nn.Conv2d(out_channels, out_channels, 1)
        self.bn = BatchNorm(out_channels)
        self.drop = SharedDropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        num_joints = x.shape[3]
        if self.add_coeff is not None:
            x = joints_last(x)
            x = channels_first(torch.cat([x, x.mean(2, keepdim=True)], 2))
        outputs: dict[str, Tensor] = {}
        if self.normed:
            squeezed = F.relu(self.squeeze_bn(self.squeeze(x)), inplace=True)
            for i, part in zip(self.normed, squeezed.split(list(self.normed.values()), 1), strict=True):
                outputs[i] = self.branches[i](part)
        if self.plain:
            parts = self.shortcut(x).split(list(self.plain.values()), 1)
            outputs.update(zip(self.plain, parts, strict=True))
        y = torch.cat([outputs[str(i)] for i in range(self.num_branches)], 1)
        if self.add_coeff is not None:
            local, whole = joints_last(y).split([num_joints, 1], 2)
            y = channels_first(torch.addcmul(local, whole, self.add_coeff[:num_joints, None]))
        y = self.transform(F.relu(self.transform_bn(y), inplace=True))
        return self.drop(self.bn(y))

    def reference_parts(self) -> Parts:
        """How the tensors are cut into those of the released checkpoints."""
        parts: Parts = {}
        for kind in ("weight", "bias"):
            parts[f"squeeze.{kind}"] = [(f"branches.{i}.0.{kind}", w) for i, w in self.normed.items()]
            parts[f"shortcut.{kind}"] = [(f"branches.{i}.{kind}", w) for i, w in self.plain.items()]
            parts[f"transform.{kind}"] = [(f"transform.2.{kind}", -1)]
            for i in self.normed:
                parts[f"branches.{i}.conv.{kind}"] = [(f"branches.{i}.3.conv.{kind}", -1)]
        for kind in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            parts[f"squeeze_bn.{kind}"] = [(f"branches.{i}.1.{kind}", w) for i, w in self.normed.items()]
            parts[f"transform_bn.{kind}"] = [(f"transform.0.{kind}", -1)]
        return parts


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
        return self.join(self.tcn(self.gcn(x)), x)

    def join(self, y: Tensor, x: Tensor) -> Tensor:
        """Adds the residual of the block's input `x` to the output `y` of its temporal unit."""
        if self.residual is not None:
            return F.relu(y + self.residual(x), inplace=True)
        if self.keeps_input:
            return F.relu(y + x, inplace=True)
        return F.relu(y)


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
        y = self.enter(x)
        for block in self.gcn:
            y = block(y)
        return self.pool(y, x.shape[1])

    @staticmethod
    def pool(y: Tensor, persons: int) -> Tensor:
        """(N*M, C, T, V) -> (N, C)."""
        return joints_last(y).mean((1, 2)).unflatten(0, (-1, persons)).mean(1)

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
