"""PoseC3D (Duan et al. 2022): SlowOnly, a 3D ResNet-50, on heat maps of key points or limbs.

Tensors are (N, C, T, H, W); C is the number of key points or limbs at the entrance.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from model.distributed import SharedDropout
from model.errors import UserError
from model.layouts import Layout
from model.nets.blocks import classification_loss
from model.nets.temporal import init_fan_out

EXPANSION = 4
Triple = tuple[int, int, int]


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Triple, stride: Triple = (1, 1, 1)) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm3d(out_channels)
        init_fan_out(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Bottleneck(nn.Module):
    """1x1x1 (3x1x1 if inflated), 1x3x3 with the strides, 1x1x1; starts as its shortcut."""

    def __init__(self, in_channels: int, width: int, stride: Triple, inflate: bool, downsample: bool) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.conv1 = ConvNorm(in_channels, width, (3, 1, 1) if inflate else (1, 1, 1))
        self.conv2 = ConvNorm(width, width, (1, 3, 3), stride)
        self.conv3 = ConvNorm(width, out_channels, (1, 1, 1))
        nn.init.zeros_(self.conv3.bn.weight)
        self.downsample = ConvNorm(in_channels, out_channels, (1, 1, 1), stride) if downsample else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(x), inplace=True)
        y = F.relu(self.conv2(y), inplace=True)
        return F.relu(self.conv3(y) + self.downsample(x), inplace=True)


class PoseC3D(nn.Module):
    """SlowOnly with one stage per entry of `stage_blocks`; widths double from stage to stage.

    `inflate` says per stage whether its bottlenecks convolve over time. `in_channels` is the number of joints unless
    given (limb heat maps have one channel per limb).
    """

    takes_heatmaps = True
    reference_renames: tuple[tuple[str, str], ...] = ()

    def __init__(
        self,
        layout: Layout,
        num_classes: int,
        in_channels: int | None = None,
        *,
        base_channels: int = 32,
        stage_blocks: Sequence[int] = (4, 6, 3),
        inflate: Sequence[int] = (0, 1, 1),
        spatial_strides: Sequence[int] = (2, 2, 2),
        temporal_strides: Sequence[int] = (1, 1, 2),
        stem_kernel: Triple = (1, 7, 7),
        stem_stride: int = 1,
        pool_stride: int = 1,
        head_dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels or layout.num_joints
        self.stages = len(stage_blocks)
        for name, values in (
            ("inflate", inflate),
            ("spatial_strides", spatial_strides),
            ("temporal_strides", temporal_strides),
        ):
            if len(values) != self.stages:
                raise UserError(f"{name} has {len(values)} entries for {self.stages} stages: give one per stage")
        self.conv1 = ConvNorm(self.in_channels, base_channels, stem_kernel, (1, stem_stride, stem_stride))
        self.pool = nn.MaxPool3d((1, 3, 3), (1, pool_stride, pool_stride), (0, 1, 1))
        channels = base_channels
        for i, blocks in enumerate(stage_blocks):
            width = base_channels * 2**i
            strides = (temporal_strides[i], spatial_strides[i], spatial_strides[i])
            layer = nn.Sequential()
            for block in range(blocks):
                stride = strides if block == 0 else (1, 1, 1)
                changes = stride != (1, 1, 1) or channels != EXPANSION * width
                layer.append(Bottleneck(channels, width, stride, bool(inflate[i]), changes))
                channels = EXPANSION * width
            self.add_module(f"layer{i + 1}", layer)
        self.head_drop = SharedDropout(head_dropout)
        self.fc = nn.Linear(channels, num_classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def features(self, x: Tensor) -> Tensor:
        """Pooled features (N, C) of heat maps (N, channels, T, H, W)."""
        if x.dim() != 5 or x.shape[1] != self.in_channels:
            raise UserError(
                f"heat maps have shape {tuple(x.shape)}; this network takes (N, {self.in_channels} key points or "
                f"limbs, T, H, W)"
            )
        y = self.pool(F.relu(self.conv1(x), inplace=True))
        for i in range(self.stages):
            y = self.get_submodule(f"layer{i + 1}")(y)
        return y.mean((2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Class scores before softmax (N, classes) of heat maps (N, channels, T, H, W)."""
        return self.fc(self.head_drop(self.features(x)))

    def loss(self, x: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
        """Training loss of heat maps with labels (N,), and its parts by name (detached)."""
        return classification_loss(self(x), labels, label_smoothing)
