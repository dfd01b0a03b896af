"""ST-GCN++ as its equations say (3D skeletons, two persons)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.plain.trunk import WIDTHS, Block, Head, data_norm, widening


class GraphConv(nn.Module):
    """sum_k A_k of a 1x1 convolution per subset k, norm, residual, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, joints: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.zeros(3, joints, joints))
        self.conv = nn.Conv2d(in_channels, 3 * out_channels, 1)
        self.bn = nn.BatchNorm2d(out_channels)
        self.down = widening(in_channels, out_channels)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        n, _, t, v = x.shape
        value = self.conv(x).view(n, 3, -1, t, v)
        y = torch.einsum("nkctv,kvw->nctw", value, self.A).contiguous()
        return F.relu(self.bn(y) + (x if self.down is None else self.down(x))), None


class Backbone(nn.Module):
    def __init__(self, joints: int, base: int) -> None:
        super().__init__()
        self.data_bn = nn.BatchNorm1d(3 * joints)
        self.gcn = nn.ModuleList()
        width = 3
        for factor, stride in WIDTHS:
            gcn = GraphConv(width, factor * base, joints)
            self.gcn.append(Block(gcn, width, factor * base, stride, global_joint=0))
            width = factor * base


class PlainSTGCNPP(nn.Module):
    """Class scores (N, classes) of clips (N, M, T, V, 3), and the training loss."""

    def __init__(self, joints: int, num_classes: int, base: int = 64) -> None:
        super().__init__()
        self.backbone = Backbone(joints, base)
        self.cls_head = Head(4 * base, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        persons = x.shape[1]
        y = data_norm(self.backbone.data_bn, x)
        for block in self.backbone.gcn:
            y, _ = block(y)
        return self.cls_head(y.unflatten(0, (-1, persons)))

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self(x), labels)
