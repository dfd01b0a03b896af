"""CTR-GCN (Chen et al. 2021): topologies refined per channel."""

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
    TimeConv,
    Topologies,
    branch_widths,
    channels_first,
    channels_together,
    init_fan_out,
    init_time_convs,
    joints_last,
)
from model.nets.norm import BatchNorm


class RefinedGraphConv(nn.Module):
    """Sum over subsets of values times (A + alpha * mix(tanh(q[u] - k[v]))), the latter per channel.

    The convolutions of the subsets are computed as one.
    """

    def __init__(self, stage: Stage, topology: Tensor) -> None:
        super().__init__()
        self.subsets = subsets = len(topology)
        self.in_channels, self.out_channels = stage.in_channels, stage.out_channels
        self.width = 8 if stage.in_channels <= 16 else stage.in_channels // 8
        self.A = nn.Parameter(topology.clone())
        self.alpha = nn.Parameter(torch.zeros(1))
        self.query = nn.Conv2d(stage.in_channels, subsets * self.width, 1)
        self.key = nn.Conv2d(stage.in_channels, subsets * self.width, 1)
        self.value = nn.Conv2d(stage.in_channels, subsets * stage.out_channels, 1)
        self.mix = nn.Conv2d(subsets * self.width, subsets * stage.out_channels, 1, groups=subsets)
        self.bn = BatchNorm(stage.out_channels)
        self.down = (
            nn.Sequential(nn.Conv2d(stage.in_channels, stage.out_channels, 1), BatchNorm(stage.out_channels))
            if stage.in_channels != stage.out_channels
            else nn.Identity()
        )
        for conv in (self.query, self.key, self.value, self.mix):
            init_fan_out(conv, [conv.out_channels // subsets] * subsets)
        if isinstance(self.down, nn.Sequential):
            init_fan_out(self.down[0])
        # The block starts as its residual.
        nn.init.constant_(self.bn.weight, 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        clips, _, frames, joints = x.shape
        # Per clip and channel one product over sources of all subsets: (T, K*V) times (K*V, W).
        values = self.value(x).unflatten(1, (self.subsets, -1)).permute(0, 2, 3, 1, 4)  # (N, C, T, K, V)
        y = values.reshape(clips, self.out_channels, frames, -1) @ self._refined(x).transpose(1, 2).flatten(2, 3)
        y = self.bn(channels_together(y)) + self.down(x)
        return F.relu(y, inplace=True)

    def topologies(self, x: Tensor) -> Topologies:
        """base (K, V, V), enhanced (N, K, C, V, V)."""
        return {"base": self.A, "enhanced": self._refined(x)}

    def _refined(self, x: Tensor) -> Tensor:
        """(N, K, C, V, W)."""
        # The projections are linear, so the mean over frames is taken before them.
        pooled = channels_first(joints_last(x).mean(1, keepdim=True))
        q, k = self.query(pooled).squeeze(2).contiguous(), self.key(pooled).squeeze(2).contiguous()
        refined = self.mix((q[..., :, None] - k[..., None, :]).tanh_()).unflatten(1, (self.subsets, -1))
        return torch.addcmul(self.A[:, None], refined, self.alpha)

    def reference_parts(self) -> Parts:
        """The convolutions of the subsets, which the original keeps apart and numbers."""
        widths = {"query": self.width, "key": self.width, "value": self.out_channels, "mix": self.out_channels}
        return {
            f"{own}.{kind}": [(f"convs.{k}.conv{number}.{kind}", rows) for k in range(self.subsets)]
            for number, (own, rows) in enumerate(widths.items(), start=1)
            for kind in ("weight", "bias")
        }


class RefinedTemporal(nn.Module):
    """Four branches over time: kernel 5 with dilations 1 and 2, maximum, plain; each ends with a norm.

    The branches begin with 1x1 convolutions and end with norms, computed as one where they share an input.
    """

    def __init__(self, channels: int, stride: int, kernel: int = 5, dilations: tuple[int, ...] = (1, 2)) -> None:
        super().__init__()
        self.widths = widths = branch_widths(channels, len(dilations) + 2)
        inner = sum(widths[:-1])
        self.squeeze = nn.Conv2d(channels, inner, 1)
        self.squeeze_bn = BatchNorm(inner)
        self.times = nn.ModuleList(
            TimeConv(width, kernel, stride, dilation) for width, dilation in zip(widths, dilations, strict=False)
        )
        self.pool = nn.MaxPool2d((3, 1), (stride, 1), (1, 0))
        self.shortcut = nn.Conv2d(channels, widths[-1], 1, (stride, 1))
        self.bn = BatchNorm(channels)
        init_fan_out(self.squeeze, widths[:-1])
        init_fan_out(self.shortcut)

    def forward(self, x: Tensor) -> Tensor:
        parts = F.relu(self.squeeze_bn(self.squeeze(x)), inplace=True).split(self.widths[:-1], 1)
        outputs = [branch(part) for branch, part in zip([*self.times, self.pool], parts, strict=True)]
        return F.relu(self.bn(torch.cat([*outputs, self.shortcut(x)], 1)), inplace=True)

    def reference_parts(self) -> Parts:
        """How the tensors are cut into those of the released checkpoints."""
        last = len(self.widths) - 1
        ends = [f"branches.{i}.3.bn" for i in range(last - 1)]
        ends += [f"branches.{last - 1}.4", f"branches.{last}.1"]
        parts: Parts = {}
        for kind in ("weight", "bias"):
            parts[f"squeeze.{kind}"] = [(f"branches.{i}.0.{kind}", self.widths[i]) for i in range(last)]
            parts[f"shortcut.{kind}"] = [(f"branches.{last}.0.{kind}", -1)]
            for i in range(last - 1):
                parts[f"times.{i}.conv.{kind}"] = [(f"branches.{i}.3.conv.{kind}", -1)]
        for kind in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            parts[f"squeeze_bn.{kind}"] = [(f"branches.{i}.1.{kind}", self.widths[i]) for i in range(last)]
            parts[f"bn.{kind}"] = [(f"{end}.{kind}", rows) for end, rows in zip(ends, self.widths, strict=True)]
        return parts


class CTRGCN(GraphNetwork):
    """CTR-GCN; each person slot has its own statistics in the data norm, as released."""

    reference_renames = (
        (r"^gcn\.(\d+)\.gcn\.", r"net.\1.gcn1."),
        (r"^gcn\.(\d+)\.tcn\.", r"net.\1.tcn1."),
        (r"^gcn\.", "net."),
    )

    def __init__(
        self,
        layout: Layout,
        num_classes: int,
        in_channels: int = 3,
        *,
        graph_mode: str = "spatial",
        norm_per_person: bool = True,
        **trunk: Any,
    ) -> None:
        topology = torch.from_numpy(adjacency(layout, graph_mode)).float()

        def make_block(stage: Stage) -> Block:
            tcn = RefinedTemporal(stage.out_channels, stage.stride)
            return Block(RefinedGraphConv(stage, topology), tcn, stage)

        super().__init__(layout, num_classes, in_channels, make_block, norm_per_person=norm_per_person, **trunk)
        # Unused; released checkpoints hold it.
        self.register_buffer("A", topology)
        init_time_convs(self)
