"""A store of a few seconds of noise, and untrained networks: enough to log, register and predict."""

from pathlib import Path

import numpy as np
import torch

from components.bundle import BundleMember, write_bundle
from model.checkpoint import network_card, publish
from model.layouts import load_layout
from model.nets import create_model
from model.store import Clip, Store, open_store, write_store

CLASSES = ["wave", "clap", "kick"]
PREPARATION = {"prepare": [], "dtype": "float32"}


def tiny_store(
    folder: Path, clips: int = 12, seed: int = 0, labels: list[int] | None = None, layout_name: str = "kinect20"
) -> Store:
    """`clips` clips, every third with two persons; a third each in the splits train, development, test."""
    generator = np.random.default_rng(seed)
    layout = load_layout(layout_name)
    made = [
        Clip(
            id=f"clip{i}",
            label=labels[i] if labels else i % len(CLASSES),
            joints=generator.normal(size=(1 + (i % 3 == 0), 8 + i, layout.num_joints, 3)).astype(np.float32),
            factors={"subject": i // 3},
        )
        for i in range(clips)
    ]
    ids = [clip.id for clip in made]
    third = clips // 3
    write_store(
        folder, made, layout=layout, classes=CLASSES, channels=["x", "y", "z"], data_hash="d" * 32, source="tiny",
        splits={"train": ids[:third], "development": ids[third : 2 * third], "test": ids[2 * third :]},
    )  # fmt: skip
    return open_store(folder)


def tiny_checkpoint(path: Path, store: Store, stream: str = "joint", seed: int = 0, bias: int | None = None) -> Path:
    """An untrained network; with `bias` it always says that class."""
    torch.manual_seed(seed)
    options = {"base_channels": 8, "num_stages": 2, "inflate_stages": [2], "down_stages": [2], "num_prototypes": 4}
    net = create_model("protogcn", layout=store.layout, num_classes=len(store.classes), in_channels=3, **options)
    state = dict(net.state_dict())
    if bias is not None:
        state["fc.bias"] = torch.zeros(len(store.classes)).index_fill(0, torch.tensor([bias]), 100.0)
    recipe = {
        "stream": stream, "clip_length": 16, "test_clips": 2, "sampler": "protogcn", "difference": "before",
        "persons": None, "augment": [], "finish": None,
    }  # fmt: skip
    card = network_card(
        "protogcn", layout=store.layout, in_channels=3, options=options, recipe=recipe,
        classes=list(store.classes), data_hash=store.data_hash,
    )  # fmt: skip
    return publish(path, card, state, epoch=3)


def tiny_bundle(folder: Path, store: Store, seed: int = 0, weights: tuple[float, ...] = (1.0, 0.5)) -> Path:
    """A bundle of as many members as weights."""
    streams = ("joint", "bone_motion")
    members = [
        BundleMember(
            streams[i], tiny_checkpoint(folder.parent / f"{streams[i]}-{seed}.pt", store, streams[i], seed + i), weight
        )
        for i, weight in enumerate(weights)
    ]
    return write_bundle(folder, "tiny", members, store, PREPARATION)
