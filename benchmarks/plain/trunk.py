"""What the plain graph networks share: data norm, temporal unit, block, head. Arrays are (N*M, C, T, V) inside."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = ((1, 1), (1, 1), (1, 1), (1, 1), (2, 2), (2, 1), (2, 1), (4, 2), (4, 1), (4, 1))  # (factor, stride) a block


class DilatedConv(nn.Module):
    """Convolution over 3 frames."""

    def __init__(self, channels: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, (3, 1), (stride, 1), (dilation, 0), (dilation, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class TemporalUnit(nn.Module):
    """Six branches, one after the other; `global_joint` appends the mean over joints as one more joint."""

    def __init__(self, channels: int, stride: int, global_joint: int) -> None:
        super().__init__()
        share = channels // 6
        widths = [channels - 5 * share] + [share] * 5
        self.branches = nn.ModuleList()
        for number, width in enumerate(widths):
            if number == 5:
                self.branches.append(nn.Conv2d(channels, width, 1, (stride, 1)))
                continue
            pool = nn.MaxPool2d((3, 1), (stride, 1), (1, 0))
            last = DilatedConv(width, stride, number + 1) if number < 4 else pool
            self.branches.append(nn.Sequential(nn.Conv2d(channels, width, 1), nn.BatchNorm2d(width), nn.ReLU(), last))
        self.transform = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 1))
        self.bn = nn.BatchNorm2d(channels)
        self.add_coeff = nn.Parameter(torch.zeros(global_joint)) if global_joint else None

    def forward(self, x: Tensor) -> Tensor:
        joints = x.shape[3]
        if self.add_coeff is not None:
            x = torch.cat([x, x.mean(3, keepdim=True)], 3)
        y = torch.cat([branch(x) for branch in self.branches], 1)
        if self.add_coeff is not None:
            y = y[..., :joints] + torch.einsum("nct,v->nctv", y[..., joints], self.add_coeff[:joints])
        return self.bn(self.transform(y))


class Residual(nn.Module):
    """1x1 convolution and norm."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, (stride, 1))
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Block(nn.Module):
    """ReLU(temporal(spatial(x)) + residual(x)); also what the spatial part returns beside its features."""

    def __init__(self, gcn: nn.Module, in_channels: int, out_channels: int, stride: int, *, global_joint: int) -> None:
        super().__init__()
        self.gcn = gcn
        self.tcn = TemporalUnit(out_channels, stride, global_joint)
        self.first = in_channels == 3
        changes = in_channels != out_channels or stride != 1
        self.residual = Residual(in_channels, out_channels, stride) if changes and not self.first else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        y, graph = self.gcn(x)
        y = self.tcn(y)
        if self.residual is not None:
            y = y + self.residual(x)
        elif not self.first:
            y = y + x
        return F.relu(y), graph


def widening(in_channels: int, out_channels: int) -> nn.Sequential | None:
    """What takes a graph convolution's input to its output's width; nothing where they are equal."""
    if in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1), nn.BatchNorm2d(out_channels))


class Head(nn.Module):
    """Mean over frames and joints, then persons; a linear classifier."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.fc_cls = nn.Linear(width, num_classes)

    def forward(self, y: Tensor) -> Tensor:
        """(N, M, C, T, V) -> (N, classes)."""
        return self.fc_cls(y.mean((3, 4)).mean(1))


def data_norm(bn: nn.BatchNorm1d, x: Tensor) -> Tensor:
    """(N, M, T, V, C) -> (N*M, C, T, V), a feature of the norm per joint and channel."""
    n, m, t, v, c = x.shape
    x = x.permute(0, 1, 3, 4, 2).reshape(n * m, v * c, t)
    return bn(x).view(n * m, v, c, t).permute(0, 2, 3, 1).contiguous()
