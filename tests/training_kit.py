"""What the training tests share: a small store, a tiny network, and the settings of a short training."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.checkpoint import network_card
from model.clips import Clips
from model.distributed import gather_features
from model.layouts import load_layout
from model.settings import TrainSettings
from model.store import Clip, Store, open_store, write_store
from model.train import FitResult, fit

CLASSES = ["nod", "wave", "jump"]
PROTOGCN = {"base_channels": 16, "num_stages": 2, "inflate_stages": [2], "down_stages": [2], "num_prototypes": 8}


class TinyNet(nn.Module):
    """Joints to features by one matrix, batch norm, rectifier and classifier, with a class bank like ProtoGCN's."""

    bank: Tensor

    def __init__(self, joints: int = 25, channels: int = 3, classes: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.project = nn.Conv1d(joints * channels, 8, 3, padding=1)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(8, classes)
        self.register_buffer("bank", torch.zeros(8, classes))

    def features(self, x: Tensor) -> Tensor:
        n, m, t, v, c = x.shape
        y = x.permute(0, 1, 3, 4, 2).reshape(n * m, v * c, t)
        return self.norm(self.project(y)).relu().mean(2).view(n, m, -1).mean(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.features(x)))

    def loss(self, x: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        features = self.features(x)
        ce = F.cross_entropy(self.fc(self.dropout(features)), labels)
        gathered = gather_features(features)
        chosen = F.one_hot(gather_features(labels), self.bank.shape[1]).to(x.dtype)
        bank = 0.9 * self.bank.clone() + 0.1 * gathered.T @ chosen / chosen.sum(0).clamp(min=1)
        self.bank.copy_(bank.detach())
        contrast = F.cross_entropy(features @ bank, labels)
        return ce + 0.2 * contrast, {"ce": ce.detach(), "contrast": contrast.detach()}


class DoubleClips:
    """Clips in double precision, for tests that separate rounding from mistakes."""

    def __init__(self, clips: Clips) -> None:
        self.clips = clips
        self.labels, self.ids, self.num_clips = clips.labels, clips.ids, clips.num_clips

    def __len__(self) -> int:
        return len(self.clips)

    def batch(self, rows: Tensor, generator: torch.Generator | None = None, labels: Tensor | None = None) -> Tensor:
        return self.clips.batch(rows, generator, labels).double()


def small_store(folder: Path, clips: int = 44, seed: int = 0) -> Store:
    """Three classes of noisy swinging bodies, one or two persons, 12 to 20 frames; the last 12 clips are "dev"."""
    generator = np.random.default_rng(seed)
    made = []
    for number in range(clips):
        label, persons, frames = number % 3, 1 + number % 2, int(generator.integers(12, 21))
        swing = np.sin(np.arange(frames)[:, None] * (0.3 + 0.3 * label) + np.arange(25))
        joints = generator.normal(0, 0.7, (persons, frames, 25, 3)) + swing[..., None]
        made.append(Clip(id=f"clip{number:03d}", label=label, joints=joints.astype(np.float32)))
    ids = [clip.id for clip in made]
    write_store(
        folder,
        made,
        layout=load_layout("nturgb+d"),
        classes=CLASSES,
        splits={"train": ids[:-12], "dev": ids[-12:]},
        channels=["x", "y", "z"],
        data_hash="0" * 32,
        source="made for tests",
    )
    return open_store(folder)


def training(store: Store, **changes: Any) -> Clips:
    options: dict[str, Any] = {"stream": "joint", "clip_length": 8, "augment": [{"name": "rotate", "theta": 0.2}]}
    return Clips(store, store.splits["train"], training=True, **(options | changes))


def development(store: Store, **changes: Any) -> Clips:
    options: dict[str, Any] = {"stream": "joint", "clip_length": 8}
    return Clips(store, store.splits["dev"], training=False, **(options | changes))


def card(model: str = "tiny", options: dict[str, Any] | None = None) -> dict[str, Any]:
    return network_card(
        model,
        layout=load_layout("nturgb+d"),
        in_channels=3,
        options=options or {},
        recipe={"stream": "joint", "clip_length": 8},
        classes=CLASSES,
        data_hash="0" * 32,
    )


def tiny(dropout: float = 0.0) -> TinyNet:
    """The same weights at every call."""
    torch.manual_seed(11)
    return TinyNet(dropout=dropout)


def run(net: nn.Module, store: Store, folder: Path, *, dev: bool = True, **changes: Any) -> FitResult:
    """A short training in `folder`; `changes` are settings."""
    return fit(
        net,
        training(store),
        development(store) if dev else None,
        short(**changes),
        folder=folder,
        card=card(),
        fingerprint={"code": "1"},
    )


def short(**changes: Any) -> TrainSettings:
    return TrainSettings(**({"epochs": 3, "batch_size": 8, "lr": 0.1, "seed": 3} | changes))
