"""The training loop with its data: clips/s, and the share of the time in which it waits for them (aim: under 2 %).

    python -m benchmarks.end_to_end [--networks protogcn] [--batch 16] [--alone 0.8] [--augment]

Clips of random joints, packed as `preprocess` packs them, go through sampling, stream, loop, optimiser, development
scores and checkpoint; the figures are the loop's own, those of its last epoch.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import CLASSES, DEVICE, options_parser, prepare, write
from model import create_model
from model.checkpoint import network_card
from model.feeding import training_clips
from model.layouts import load_layout
from model.settings import TrainSettings
from model.store import Clip, Store, open_store, write_store
from model.train import fit

JOINT_NETWORKS = ["stgcn", "stgcnpp", "agcn", "ctrgcn", "dgstgcn", "protogcn"]


def random_store(folder: Path, count: int, alone: float) -> Store:
    """Clips of 60 to 120 frames of two persons, the second of which is missing in this share of clips."""
    random = np.random.default_rng(0)
    made = (
        Clip(f"clip{i}", i % CLASSES, random.normal(size=(1 if i < alone * count else 2, 60 + i % 61, 25, 3)), {})
        for i in range(count)
    )
    write_store(
        folder,
        (Clip(clip.id, clip.label, clip.joints.astype(np.float32)) for clip in made),
        layout=load_layout("nturgb+d"),
        classes=[str(i) for i in range(CLASSES)],
        splits={"train": [f"clip{i}" for i in range(count)]},
        channels=["x", "y", "z"],
        data_hash="0" * 32,
        source="benchmark",
    )
    return open_store(folder)


def main() -> None:
    parser = options_parser(__doc__.splitlines()[0], JOINT_NETWORKS, ["protogcn", "stgcnpp"])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--stream", default="bone_motion")
    parser.add_argument("--augment", action="store_true", help="rotate at random, as ST-GCN++'s recipe does")
    options = parser.parse_args()
    where = prepare(options)
    figures: dict[str, Any] = {}
    recipe = {
        "stream": options.stream,
        "clip_length": options.frames,
        "test_clips": 1,
        "sampler": "protogcn",
        "persons": 2,
        "augment": [{"name": "rotate", "theta": 0.3}] if options.augment else [],
        "difference": "before",
        "finish": None,
    }
    with tempfile.TemporaryDirectory() as scratch:
        store = random_store(Path(scratch) / "store", options.steps * options.batch, options.alone)
        for name in options.networks:
            torch.manual_seed(0)
            net = create_model(name, layout="nturgb+d", num_classes=CLASSES)
            classes = [str(i) for i in range(CLASSES)]
            card = network_card(
                name, layout=store.layout, in_channels=3, options={}, recipe=recipe, classes=classes, data_hash="0" * 32
            )
            settings = TrainSettings(
                epochs=2, batch_size=options.batch, lr=0.025, seed=0, amp=options.bfloat16, deterministic=False
            )
            feed = training_clips(store, store.splits["train"], recipe, DEVICE)
            folder = Path(scratch) / name
            result = fit(net, feed, None, settings, folder=folder, card=card, fingerprint={}, device=DEVICE)
            last = result.history[-1]
            figures[name] = {key: last[key] for key in ("samples_per_s", "wait_share")}
            print(f"{name:9}{last['samples_per_s']:9.2f} clips/s, {last['wait_share']:.2%} of it waiting for data")
    write(options, where, figures)


if __name__ == "__main__":
    main()
