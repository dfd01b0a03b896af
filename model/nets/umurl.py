"""UmURL (Sun et al. 2023): one transformer encoder for joints, bones and motions, alone or fused early.

Tensors are (N, C, T, V, M), as its data are. Every modality is read twice: as T temporal tokens of M*V*C numbers and
as M*V spatial tokens of T*C numbers. Modules are named as in the released checkpoints.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.errors import UserError
from model.layouts import Layout
from model.nets.blocks import classification_loss
from model.umurl_loss import consistency_loss, fusion_loss

MODALITIES = ("joint", "bone", "motion")
VIEWS = 4  # joint, bone and motion come from a view of their own, the fused feature from a fourth
POSITIONS = 200  # rows of the released position table
HEADS = ("projectors", "fused_projector", "classifier")

Pair = tuple[Tensor, Tensor]  # temporal and spatial tokens


def modality_tokens(x: Tensor, modality: str, bones: Sequence[int]) -> Pair:
    """A modality of clips x (N, C, T, V, M): tokens (N, T, M*V*C) by body, joint, xyz and (N, M*V, T*C) by frame, xyz.

    bone: joint minus its parent (`bones`); motion: next frame minus this one, zero in the last.
    """
    x = x.permute(0, 2, 4, 3, 1)
    if modality == "bone":
        x = x - x[..., list(bones), :]
    elif modality == "motion":
        x = F.pad(x[:, 1:] - x[:, :-1], (0, 0, 0, 0, 0, 0, 0, 1))
    return x.flatten(2), x.permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2)


class Embedding(nn.Module):
    """One modality's tokens to vectors: Linear, LayerNorm, ReLU, Linear on each axis."""

    def __init__(self, temporal: int, spatial: int, hidden: int) -> None:
        super().__init__()
        self.t_embedding, self.s_embedding = (
            nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, hidden))
            for width in (temporal, spatial)
        )

    def forward(self, tokens: Pair) -> Pair:
        return self.t_embedding(tokens[0]), self.s_embedding(tokens[1])


class Fusion(nn.Module):
    """Early fusion: the mean of the modalities' embeddings and a matrix on each axis."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.t_fusion, self.s_fusion = (nn.Sequential(nn.Linear(hidden, hidden, bias=False)) for _ in range(2))

    def forward(self, embedded: Sequence[Pair]) -> Pair:
        temporal, spatial = (torch.stack(kind).mean(0) for kind in zip(*embedded, strict=True))
        return self.t_fusion(temporal), self.s_fusion(spatial)


class Attention(nn.Module):
    """Self-attention over (N, tokens, hidden), with the parameters of nn.MultiheadAttention."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden, hidden))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden))
        self.out_proj = nn.Linear(hidden, hidden)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = projected.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """A transformer layer with norms after the sums, ReLU, feed-forward of the same width and no dropout."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.self_attn = Attention(hidden, heads)
        self.linear1 = nn.Linear(hidden, hidden)
        self.linear2 = nn.Linear(hidden, hidden)
        self.norm1 = nn.LayerNorm(hidden)
        self.norm2 = nn.LayerNorm(hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.self_attn(x))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class Layers(nn.Module):
    """Transformer layers one after another."""

    def __init__(self, hidden: int, heads: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Layer(hidden, heads) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Positions(nn.Module):
    """Adds sinusoidal positions to tokens (N, tokens, hidden)."""

    pe: Tensor

    def __init__(self, rows: int, hidden: int) -> None:
        super().__init__()
        rate = torch.exp(torch.arange(0, hidden, 2) * (-math.log(10000.0) / hidden))
        angles = torch.arange(rows)[:, None] * rate
        self.register_buffer("pe", torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[None, :, :hidden])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pe[:, : x.shape[1]]


class Encoder(nn.Module):
    """Embedded tokens of both axes to one feature (N, 2 hidden): the largest value over the tokens of each axis."""

    def __init__(self, hidden: int, heads: int, depth: int, frames: int) -> None:
        super().__init__()
        # The spatial tokens get none, as released.
        self.pe = Positions(max(frames, POSITIONS), hidden)
        self.t_tr = Layers(hidden, heads, depth)
        self.s_tr = Layers(hidden, heads, depth)

    def forward(self, tokens: Pair) -> Tensor:
        return torch.cat([self.t_tr(self.pe(tokens[0])).amax(1), self.s_tr(tokens[1]).amax(1)], dim=1)


class Backbone(nn.Module):
    """Clips (N, C, T, V, M) to features of one modality or of all three fused."""

    def __init__(
        self, layout: Layout, channels: int, frames: int, persons: int, hidden: int, heads: int, depth: int
    ) -> None:
        super().__init__()
        self.bones = layout.bones
        widths = (persons * layout.num_joints * channels, frames * channels)
        self.j_emb, self.b_emb, self.m_emb = (Embedding(*widths, hidden) for _ in MODALITIES)
        self.mm_fusion = Fusion(hidden)
        self.ma_encoder = Encoder(hidden, heads, depth, frames)

    def embed(self, x: Tensor) -> list[Pair]:
        """The embedded tokens of each modality."""
        embeddings = (self.j_emb, self.b_emb, self.m_emb)
        return [
            embedding(modality_tokens(x, modality, self.bones))
            for embedding, modality in zip(embeddings, MODALITIES, strict=True)
        ]

    def forward(self, x: Tensor) -> Tensor:
        """The fused feature y_u (N, 2 hidden)."""
        return self.ma_encoder(self.mm_fusion(self.embed(x)))

    def single_and_fused(self, views: Sequence[Tensor]) -> list[Tensor]:
        """y_j, y_b, y_m of the first three views, one modality each, and y_u of the fourth; the encoder runs once."""
        kinds: list[Pair] = []
        fused: list[Pair] = []
        clips = len(views[-1])
        embeddings = (self.j_emb, self.b_emb, self.m_emb)
        for embedding, modality, view in zip(embeddings, MODALITIES, views[:-1], strict=True):
            both = embedding(modality_tokens(torch.cat([view, views[-1]]), modality, self.bones))
            own, other = zip(*(tokens.split(clips) for tokens in both), strict=True)
            kinds.append(own)
            fused.append(other)
        kinds.append(self.mm_fusion(fused))
        temporal, spatial = (torch.cat(kind) for kind in zip(*kinds, strict=True))
        return list(self.ma_encoder((temporal, spatial)).split(clips))


def projector(width: int, out: int) -> nn.Sequential:
    """[Linear, BN, ReLU] twice at `width`, Linear to `out`."""
    return nn.Sequential(
        nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(),
        nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(),
        nn.Linear(width, out),
    )  # fmt: skip


class UmURL(nn.Module):
    """Backbone and what stands on it: `head` "projectors" (pre-training), "classifier", or "fused_projector".

    The last is the early-fusion baseline: the same backbone, trained to give two views of a clip the same fused
    feature. `num_classes` only matters to the classifier. `hidden` is half the feature's width.
    """

    # Own tensor names are the original's (model.reference).
    reference_same_names = True

    def __init__(
        self,
        layout: Layout,
        num_classes: int,
        in_channels: int = 3,
        *,
        hidden: int = 1024,
        frames: int = 64,
        persons: int = 2,
        attention_heads: int = 1,
        layers: int = 1,
        projector_width: int = 4096,
        head: str = "projectors",
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise UserError(f"head {head!r} is unknown: choose one of {', '.join(HEADS)}")
        if hidden % attention_heads:
            raise UserError(f"hidden: {hidden} does not divide by {attention_heads} attention_heads")
        self.head = head
        self.in_channels = in_channels
        self.shape = (in_channels, frames, layout.num_joints, persons)
        self.backbone = Backbone(layout, in_channels, frames, persons, hidden, attention_heads, layers)
        if head == "projectors":
            for name in ("j_projector", "b_projector", "m_projector"):
                self.add_module(name, projector(2 * hidden, projector_width))
        elif head == "fused_projector":
            self.u_projector = projector(2 * hidden, projector_width)
        else:
            self.fc = nn.Linear(2 * hidden, num_classes)
            nn.init.normal_(self.fc.weight, std=0.01)
            nn.init.zeros_(self.fc.bias)

    def features(self, x: Tensor) -> Tensor:
        """Fused features y_u (N, 2 hidden) of clips (N, C, T, V, M)."""
        if x.shape[1:] != self.shape:
            channels, frames, joints, persons = self.shape
            raise UserError(
                f"clips have shape {tuple(x.shape)}; this network takes (N, {channels} channels, {frames} frames, "
                f"{joints} joints, {persons} persons)"
            )
        return self.backbone(x)

    def forward(self, x: Tensor) -> Tensor:
        """The features, whatever the head; a classifier's scores are `net.fc(net(x))`."""
        return self.features(x)

    def project(self, views: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """z_j, z_b, z_m of single modalities and z_uj, z_ub, z_um of the fused; views (N, 4, C, T, V, M)."""
        *single, fused = self.backbone.single_and_fused(views.unbind(1))
        projectors = [self.get_submodule(f"{letter}_projector") for letter in "jbm"]
        # In this order: both calls move the running statistics.
        parts = [project(fused) for project in projectors]
        return [project(y) for project, y in zip(projectors, single, strict=True)], parts

    def loss(self, x: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
        """Training loss and its detached parts: of views (N, 4, C, T, V, M) without using labels, or of a classifier.

        The early-fusion baseline looks at the first two views only.
        """
        if self.head == "classifier":
            return classification_loss(self.fc(self(x)), labels, label_smoothing)
        if self.head == "fused_projector":
            one, two = self.backbone(torch.cat(x.unbind(1)[:2])).chunk(2)
            return fusion_loss(self.u_projector(one), self.u_projector(two))
        return consistency_loss(*self.project(x))
