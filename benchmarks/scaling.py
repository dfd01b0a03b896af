"""What several GPUs would bring, as a model from measured numbers.

    python -m benchmarks.scaling [--network protogcn] [--batch 16] [--fixed-ms 20 --clip-ms 1.0]

Measured here: the time of a train step as a fixed part and a part per clip (on a GPU if there is one, else on the CPU),
the bytes of the gradient, the number of batch norms that synchronise, and the rate at which one process prepares clips.
`--fixed-ms` and `--clip-ms` put a device's own numbers in the place of the measured step. Assumed: links and latencies
(`LINKS`), and that half of the gradients travel while the backward pass still runs. docs/SCALING.md reads the table.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.train_step import data, loss_of
from model import create_model
from model.clips import Clips
from model.ghost import Norm
from model.layouts import load_layout
from model.store import Clip, open_store, write_store

IN_NODE = 8  # GPUs of a node
# bytes/s of one GPU's all-reduce and seconds of one collective's latency: within a node, between nodes. Assumed.
LINKS = {"node": (200e9, 20e-6), "between": (20e9, 50e-6)}
OVERLAP = 0.5
WORTH = 0.5  # share of the ideal speed-up under which more GPUs do not pay


@dataclass(frozen=True)
class Work:
    """One training step of a network, in seconds and bytes, and how its data come."""

    fixed: float  # seconds of a step that do not depend on the clips: launches, optimiser
    per_clip: float
    gradient: float  # bytes
    norms: int
    data_rate: float  # clips/s that one process prepares


def step_seconds(work: Work, batch: int, gpus: int, bn_batch: int | None = None) -> dict[str, float]:
    """Parts of a step of the global batch over so many GPUs, which each take as many clips."""
    if batch % gpus:
        raise ValueError(f"{batch} clips do not spread evenly over {gpus} GPUs")
    clips = batch // gpus
    compute = work.fixed + work.per_clip * clips
    bandwidth, latency = LINKS["node" if gpus <= IN_NODE else "between"]
    gradients = 2 * (gpus - 1) / gpus * work.gradient / bandwidth + latency if gpus > 1 else 0.0
    exposed = max(0.0, gradients - OVERLAP * compute)
    shared = min(gpus, (bn_batch or batch) // clips) if gpus > 1 else 1  # GPUs that average batch norms together
    norm_latency = LINKS["node" if shared <= IN_NODE else "between"][1]
    norms = 2 * work.norms * norm_latency if shared > 1 else 0.0  # forward and backward
    waited = max(0.0, clips / work.data_rate - compute)
    return {"compute": compute, "gradients": exposed, "norms": norms, "data": waited}


def speed_up(work: Work, batch: int, gpus: int, bn_batch: int | None = None) -> float:
    """Steps on so many GPUs in the time of one step on one GPU."""
    alone = sum(step_seconds(work, batch, 1, bn_batch).values())
    return alone / sum(step_seconds(work, batch, gpus, bn_batch).values())


def members_speed_up(work: Work, batch: int, gpus: int, members: int, bn_batch: int | None = None) -> float:
    """The same for an ensemble: members side by side first, and what is left of the GPUs within each."""
    within = 1
    while within * 2 * members <= gpus and batch % (within * 2) == 0:
        within *= 2
    rounds = -(-members // min(members, gpus))
    return members / rounds * max(speed_up(work, batch, size, bn_batch) for size in _powers(within))


def _powers(limit: int) -> list[int]:
    return [2**power for power in range(limit.bit_length()) if 2**power <= limit]


def measured(network: str, rounds: int, sizes: tuple[int, ...] = (2, 4, 8)) -> tuple[Work, str]:
    """What this machine shows of a network's step and data, and the device it was."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    net = create_model(network, layout="nturgb+d", num_classes=60).to(device).train()
    seconds = []
    for size in sizes:
        x, labels = data(size, 100, device)
        best = float("inf")
        for _ in range(rounds + 1):
            began = time.perf_counter()
            net.zero_grad(set_to_none=True)
            loss_of(net, x, labels).backward()
            if device == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - began)
        seconds.append(best)
    per_clip, fixed = np.polyfit(sizes, seconds, 1) if sizes else (0.0, 0.0)
    gradient = sum(parameter.numel() * 4 for parameter in net.parameters())
    norms = sum(isinstance(module, Norm) for module in net.modules())
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return Work(max(0.0, float(fixed)), float(per_clip), gradient, norms, data_rate()), name


def data_rate(clips: int = 64) -> float:
    """Clips per second that one process samples, augments and turns into bones: two bodies, 100 of 120 frames."""
    generator = np.random.default_rng(0)
    made = [
        Clip(id=str(n), label=0, joints=generator.normal(size=(2, 120, 25, 3)).astype(np.float32)) for n in range(clips)
    ]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "store"
        write_store(
            place, made, layout=load_layout("nturgb+d"), classes=["one"], splits={"train": [c.id for c in made]},
            channels=["x", "y", "z"], data_hash="0" * 32, source="random",
        )  # fmt: skip
        store = open_store(place)
        augment = [{"name": "rotate", "theta": 0.3}]
        feed = Clips(store, store.splits["train"], stream="bone", clip_length=100, augment=augment, training=True)
        best = float("inf")
        for seed in range(4):
            began = time.perf_counter()
            feed.batch(torch.arange(clips), torch.Generator().manual_seed(seed))
            best = min(best, time.perf_counter() - began)
    return clips / best


def table(work: Work, batch: int, members: int, bn_batch: int | None) -> list[str]:
    """Lines: a GPU count each, with the parts of a step and what it brings, alone and to an ensemble."""
    lines = [
        "| GPUs | clips each | step, ms | compute | gradients | batch norm | data | speed-up | efficiency | "
        f"{members} members |",
        "|" + "---|" * 10,
    ]
    for gpus in (1, 2, 4, 8, 16, 32, 64):
        ensemble = members_speed_up(work, batch, gpus, members, bn_batch)
        if batch % gpus:
            lines.append(f"| {gpus} | – | | | | | | | | {ensemble:.1f} |")
            continue
        parts = step_seconds(work, batch, gpus, bn_batch)
        gain = speed_up(work, batch, gpus, bn_batch)
        shown = " | ".join(f"{1e3 * value:.1f}" for value in (sum(parts.values()), *parts.values()))
        lines.append(f"| {gpus} | {batch // gpus} | {shown} | {gain:.1f} | {gain / gpus:.0%} | {ensemble:.1f} |")
    worth = [g for g in _powers(64) if batch % g == 0 and speed_up(work, batch, g, bn_batch) >= WORTH * g]
    lines.append(f"\nOne member: pays up to {max(worth)} GPUs (efficiency of {WORTH:.0%} at least).")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="protogcn")
    parser.add_argument("--batch", type=int, default=16, help="global batch, which the recipe fixes")
    parser.add_argument("--bn-batch", type=int, help="the recipe's bn_batch; not given: the whole batch")
    parser.add_argument("--members", type=int, default=6)
    parser.add_argument("--fixed-ms", type=float, help="fixed part of a step, in place of the measured one")
    parser.add_argument("--clip-ms", type=float, help="part of a step per clip, in place of the measured one")
    parser.add_argument("--data-processes", type=int, default=1, help="processes or cores that prepare clips, per GPU")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    both = options.fixed_ms is not None and options.clip_ms is not None
    work, device = measured(options.network, options.rounds, () if both else (2, 4, 8))
    values = asdict(work) | {"data_rate": work.data_rate * options.data_processes}
    given = {"fixed": options.fixed_ms, "per_clip": options.clip_ms}
    values |= {name: value / 1e3 for name, value in given.items() if value is not None}
    print(json.dumps({"measured on": device, **asdict(work)}, indent=1))
    taken = " and ".join(name for name, value in given.items() if value is not None) or "nothing"
    print(f"given, not measured here: {taken}; assumed: links {LINKS}, overlap {OVERLAP}\n")
    print("\n".join(table(Work(**values), options.batch, options.members, options.bn_batch)))
