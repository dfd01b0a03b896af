"""Units over time, alone or in several branches, and how the originals start them."""

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.distributed import SharedDropout
from model.nets import fused, fused_time, scoring
from model.nets.memory import channels_first, joints_last
from model.nets.norm import BatchNorm, norm_relu
from model.nets.scoring_time import multi_scale

Branch = Any  # (kernel, dilation), ("max", kernel) or "1x1"
BRANCHES: tuple[Branch, ...] = ((3, 1), (3, 2), (3, 3), (3, 4), ("max", 3), "1x1")
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


def branch_widths(out_channels: int, branches: int) -> list[int]:
    """Equal shares of `out_channels`; the first branch takes the remainder."""
    share = out_channels // branches
    return [out_channels - share * (branches - 1)] + [share] * (branches - 1)


def _columns(widths: Iterable[int]) -> list[slice]:
    """Where parts of these widths lie when they are joined."""
    ends = list(accumulate(widths, initial=0))
    return [slice(start, end) for start, end in pairwise(ends)]


class TemporalUnit(nn.Module):
    """Convolution over time (kernel x 1) with batch norm and dropout; kernel 1 serves as residual."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 9, stride: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        kind = fused.Pointwise if kernel == 1 else nn.Conv2d
        self.conv = kind(in_channels, out_channels, (kernel, 1), (stride, 1), ((kernel - 1) // 2, 0))
        self.bn = BatchNorm(out_channels)
        self.drop = SharedDropout(dropout)

    def joined(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """ReLU(norm(convolution) + residual), without the dropout."""
        return norm_relu(self.bn, self.conv(x), residual)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.bn(self.conv(x)))

    def scoring(self) -> scoring.Joined:
        """ReLU(unit(x) + residual) for `model.nets.scoring`."""
        conv = scoring.convolution(self.conv, self.bn)
        return partial(scoring.ended, conv)


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
        planned = []
        columns = dict(zip(self.normed, _columns(self.normed.values()), strict=True))
        ends = _columns(widths)
        for i, width in self.normed.items():
            kind, size = branches[int(i)]
            if kind == "max":
                self.branches[i] = nn.MaxPool2d((int(size), 1), (stride, 1), (1, 0))
                planned.append(fused_time.Branch(columns[i], ends[int(i)], int(size), 0))
            else:
                self.branches[i] = TimeConv(width, int(kind), stride, int(size))
                planned.append(fused_time.Branch(columns[i], ends[int(i)], int(kind), int(size)))
        plain = _columns([*self.normed.values(), *self.plain.values()])[len(self.normed) :]
        pairs = tuple((inside, ends[int(i)]) for i, inside in zip(self.plain, plain, strict=True))
        self.plan = fused_time.Plan(tuple(planned), pairs, stride, out_channels)
        self.add_coeff = None if global_joint is None else nn.Parameter(torch.zeros(global_joint))
        self.transform_bn = BatchNorm(out_channels)
        self.transform = nn.Conv2d(out_channels, out_channels, 1)
        self.bn = BatchNorm(out_channels)
        self.drop = SharedDropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        if self._fits(x):
            return self.drop(self._fused(x, None, relu=False))
        return self.drop(self.bn(self._before_norm(x)))

    def joined(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """ReLU of the last norm plus residual, without the dropout."""
        if self._fits(x):
            return self._fused(x, residual)
        return norm_relu(self.bn, self._before_norm(x), residual)

    def _fits(self, x: Tensor) -> bool:
        return bool(self.normed) and fused.fits(x, self.squeeze_bn, self.transform_bn, self.bn)

    def _before_norm(self, x: Tensor) -> Tensor:
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
        return self.transform(F.relu(self.transform_bn(y), inplace=True))

    def _fused(self, x: Tensor, residual: Tensor | None, *, relu: bool = True) -> Tensor:
        projections: list[Any] = [self.squeeze, *([self.shortcut] if self.plain else [])]
        kernels = [p for branch in self.branches.values() for p in branch.parameters()]
        return fused_time.MultiScale.apply(
            self.plan,
            (self.squeeze_bn, self.transform_bn, self.bn),
            relu,
            x,
            residual,
            torch.cat([conv.weight for conv in projections]),
            torch.cat([conv.bias for conv in projections]),
            self.squeeze_bn.weight,
            self.squeeze_bn.bias,
            self.add_coeff,
            self.transform_bn.weight,
            self.transform_bn.bias,
            self.transform.weight,
            self.transform.bias,
            self.bn.weight,
            self.bn.bias,
            *kernels,
        )

    def scoring(self) -> scoring.Joined | None:
        """ReLU(unit(x) + residual) for `model.nets.scoring`."""
        return multi_scale(self) if self.normed else None

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
