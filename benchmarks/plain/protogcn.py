"""ProtoGCN as the released code computes it (3D skeletons, two persons), step by step."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.plain.trunk import WIDTHS, Block, Head, data_norm, widening

SUBSETS = 8


class TopologyConv(nn.Module):
    """Topology A + tanh(q - k) + softmax(q k), projected on all frames before the mean over them."""

    def __init__(self, in_channels: int, out_channels: int, joints: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.zeros(SUBSETS, joints, joints))
        self.alpha = nn.Parameter(torch.zeros(SUBSETS))
        self.beta = nn.Parameter(torch.zeros(SUBSETS))
        self.pre = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1), nn.BatchNorm2d(out_channels), nn.ReLU())
        self.conv1 = nn.Conv2d(in_channels, out_channels, 1)
        self.conv2 = nn.Conv2d(in_channels, out_channels, 1)
        self.post = nn.Conv2d(out_channels, out_channels, 1)
        self.bn = nn.BatchNorm2d(out_channels)
        self.down = widening(in_channels, out_channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        n, _, t, v = x.shape
        value = self.pre(x).view(n, SUBSETS, -1, t, v)
        q = self.conv1(x).view(n, SUBSETS, -1, t, v).mean(3)
        k = self.conv2(x).view(n, SUBSETS, -1, t, v).mean(3)
        inter = self.alpha[0] * (q.unsqueeze(-1) - k.unsqueeze(-2)).tanh()
        intra = self.beta[0] * torch.einsum("nkcv,nkcw->nkvw", q, k)[:, :, None].softmax(-2)
        graph = inter + intra
        topology = self.A[None, :, None] + graph
        y = torch.einsum("nkctv,nkcvw->nkctw", value, topology).reshape(n, -1, t, v)
        y = self.bn(self.post(y)) + (x if self.down is None else self.down(x))
        return F.relu(y), graph.flatten(1, 2)


class Prototypes(nn.Module):
    """Every joint pair's vector as a softmax-weighted sum of prototypes, one clip at a time."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.query_matrix = nn.Linear(width, count, bias=False)
        self.memory_matrix = nn.Linear(count, width, bias=False)

    def forward(self, pairs: Tensor) -> Tensor:
        # As in our benchmark's ProtoGCN, nothing is dropped: draws would differ between the two.
        return torch.stack([self.memory_matrix(self.query_matrix(x).softmax(-1)) for x in pairs])


class Backbone(nn.Module):
    def __init__(self, joints: int, base: int, prototypes: int) -> None:
        super().__init__()
        self.data_bn = nn.BatchNorm1d(3 * joints)
        self.gcn = nn.ModuleList()
        width = 3
        for factor, stride in WIDTHS:
            gcn = TopologyConv(width, factor * base, joints)
            self.gcn.append(Block(gcn, width, factor * base, stride, global_joint=max(25, joints)))
            width = factor * base
        self.prn = Prototypes(width, prototypes)
        self.post = nn.Conv2d(width, width, 1)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, M, T, V, C) -> features (N, M, C', T', V) and a graph vector (N, V*V) a clip."""
        persons, joints = x.shape[1], x.shape[3]
        y = data_norm(self.data_bn, x)
        graphs = []  # kept of all blocks, as released
        for block in self.gcn:
            y, graph = block(y)
            graphs.append(graph)
        mean = graphs[-1].unflatten(0, (-1, persons)).mean(1)  # (N, C, V, V)
        rebuilt = self.prn(mean.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (joints, joints))
        vector = F.relu(self.bn(self.post(rebuilt))).mean(1).flatten(1)
        return y.unflatten(0, (-1, persons)), vector


class Contrast(nn.Module):
    """Class-specific contrast with a bank, class by class."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.cl_fc = nn.Linear(width, 256)
        self.register_buffer("bank", torch.zeros(256, num_classes), persistent=False)

    def forward(self, graph: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        f = self.cl_fc(graph)
        right = scores.detach().argmax(1) == labels
        columns = []
        for label in range(self.bank.shape[1]):
            chosen = f[right & (labels == label)]
            former = self.bank[:, label]
            columns.append(0.9 * former + 0.1 * chosen.mean(0) if len(chosen) else former)
        bank = torch.stack(columns, 1)
        self.bank = bank.detach()
        directions = bank / (bank.norm(dim=0, keepdim=True) + 1e-12)
        f = f / (f.norm(dim=1, keepdim=True) + 1e-12)
        return F.cross_entropy(f @ directions / 0.125, labels)


class ProtoHead(Head):
    def __init__(self, width: int, num_classes: int, joints: int) -> None:
        super().__init__(width, num_classes)
        self.csc_loss = Contrast(joints**2, num_classes)


class PlainProtoGCN(nn.Module):
    """Class scores (N, classes) of clips (N, M, T, V, 3), and the training loss."""

    def __init__(
        self, joints: int, num_classes: int, base: int = 96, prototypes: int = 400, weight: float = 0.2
    ) -> None:
        super().__init__()
        self.backbone = Backbone(joints, base, prototypes)
        self.cls_head = ProtoHead(4 * base, num_classes, joints)
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return self.cls_head(self.backbone(x)[0])

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        y, graph = self.backbone(x)
        scores = self.cls_head(y)
        return F.cross_entropy(scores, labels) + self.weight * self.cls_head.csc_loss(graph, scores, labels)
