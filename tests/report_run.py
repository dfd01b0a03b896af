"""A finished run made of invented scores: what a report reads, without training anything."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.ensemble import fuse
from model.layouts import load_layout
from model.metrics import summary
from model.scoretable import ScoreTable, save_table
from model.store import Clip, write_store

CLASSES = [
    "drink water", "phone call", "clapping", "rub hands", "writing", "typing on a keyboard",
    "wave", "kick", "sit down", "stand up", "hand shake", "push",
]  # fmt: skip
STREAMS = ("joint", "bone", "kbone", "joint_motion", "bone_motion", "kbone_motion")
MEMBERS = [f"protogcn-{stream}-s0" for stream in STREAMS]
WEIGHTS = dict(zip(MEMBERS, (2.0, 2.0, 2.0, 1.0, 1.0, 1.0), strict=True))
SPLITS = {"xsub_train": range(1, 7), "development": range(7, 9), "xsub_test": range(9, 13)}
HASH = "0123456789abcdef0123456789abcdef"

# A standing body, metres, y up, as the NTU camera sees it: x, y of the 25 joints.
BODY = [
    (0, 0), (0, 0.25), (0, 0.55), (0, 0.7), (0.18, 0.48), (0.22, 0.22), (0.24, 0), (0.25, -0.06), (-0.18, 0.48),
    (-0.22, 0.22), (-0.24, 0), (-0.25, -0.06), (0.1, 0), (0.11, -0.4), (0.11, -0.78), (0.12, -0.83), (-0.1, 0),
    (-0.11, -0.4), (-0.11, -0.78), (-0.12, -0.83), (0, 0.48), (0.26, -0.13), (0.29, -0.04),
    (-0.26, -0.13), (-0.29, -0.04),
]  # fmt: skip
LEFT_ARM, RIGHT_ARM, LEFT_LEG = [5, 6, 7, 21, 22], [9, 10, 11, 23, 24], [17, 18, 19]


@dataclass(frozen=True)
class Run:
    """Folders of the run, and what is in it."""

    runs: Path
    fused: Path
    store: Path


def clip(label: int, subject: int, take: int) -> np.ndarray:
    """Joints (M, T, 25, 3) of a body whose right arm (or leg, or all of it) moves in its class's rhythm."""
    random = np.random.default_rng([label, subject, take])
    frames = int(random.integers(40, 110))
    body = np.zeros((25, 3), np.float32)
    body[:, :2] = BODY
    t = np.linspace(0, 1, frames)[:, None]
    moving = body[None].repeat(frames, 0)
    swing = np.sin(2 * np.pi * t * (1 + label // 2) + random.uniform(0, 0.5))
    for arm, side in ((RIGHT_ARM, 1), (LEFT_ARM, -1)):
        if side == 1 or label in (2, 3, 5):
            moving[:, arm, 1] += (0.35 + 0.12 * (label % 2)) * np.sin(np.pi * t) + 0.05 * swing
            moving[:, arm, 0] += side * 0.12 * (1 + 0.4 * swing)
            moving[:, arm, 2] -= 0.25 * np.sin(np.pi * t)
    if label == 7:
        moving[:, LEFT_LEG, 2] -= 0.5 * np.sin(np.pi * t) ** 2
    if label in (8, 9):
        moving[:, :, 1] -= 0.3 * (t if label == 8 else 1 - t)
    moving += random.normal(0, 0.004, moving.shape)
    if label < 10:
        return moving[None].astype(np.float32)
    other = moving * (-1, 1, 1) + (1.0, 0, 0.1)
    return np.stack([moving, other]).astype(np.float32)


def make_run(folder: Path, takes: int = 3, classes: list[str] | None = None, difficult: bool = True) -> Run:
    """Write a store, six members' scores and histories, and the ensembles two and six."""
    names = CLASSES if classes is None else classes
    run = Run(folder / "runs", folder / "ensembles", folder / "packed")
    clips, splits = [], {split: [] for split in SPLITS}
    for split, subjects in SPLITS.items():
        for subject in subjects:
            for label in range(len(names)):
                for take in range(takes):
                    sample = f"S001C{take % 3 + 1:03d}P{subject:03d}R001A{label + 1:03d}"
                    sample += "" if take < 3 else f"-{take}"
                    factors = {"subject": subject, "camera": take % 3, "setup": 1}
                    clips.append(Clip(sample, label, clip(label % 12, subject, take), factors))
                    splits[split].append(sample)
    write_store(
        run.store, clips, layout=load_layout("nturgb+d"), classes=names, splits=splits, channels=["x", "y", "z"],
        data_hash=HASH, source="invented",
    )  # fmt: skip
    labels = {item.id: item.label for item in clips}
    tables: dict[tuple[str, str], ScoreTable] = {}
    for position, member in enumerate([*MEMBERS, "baseline"]):
        metrics: dict = {"chosen": "best"}
        for which in ("best", "last"):
            metrics[which] = {"epoch": 8 if which == "best" else 10}
            for split in ("development", "xsub_test"):
                random = np.random.default_rng([position, len(split), which == "last"])
                table = _scores(splits[split], labels, names, member, split, random, difficult)
                save_table(run.runs / member / "scores" / f"{which}-{split}.npz", table)
                metrics[which][split] = summary(table)
                if which == "best":
                    tables[member, split] = table
        _write(run.runs / member / "scores" / "metrics.json", metrics)
        _write(run.runs / member / "train" / "history.json", _history(position))
        cost = {
            "best_epoch": 8,
            "epochs": 10,
            "seconds": 31.5 + position,
            "samples_per_s": 160.2,
            "parameters": 129_846,
            "macs": 83_000_000,
            "device": "CPU, 1 threads",
            "processes": 2,
        }
        _write(run.runs / member / "train" / "train.json", cost)
    ensembles = {"two": {m: 1.0 for m in MEMBERS[:2]}, "six": WEIGHTS}
    fused: dict = {"members": {}, "ensembles": {}}
    for name, weights in ensembles.items():
        fused["ensembles"][name] = {"members": weights}
        for split in ("development", "xsub_test"):
            table = fuse([tables[m, split] for m in weights], list(weights.values()), name)
            save_table(run.fused / name / f"{split}.npz", table)
            fused["ensembles"][name][split] = summary(table)
    _write(run.fused / "metrics.json", fused)
    return run


def _scores(
    ids: list[str],
    labels: dict[str, int],
    names: list[str],
    member: str,
    split: str,
    random: np.random.Generator,
    difficult: bool,
) -> ScoreTable:
    truth = np.array([labels[sample] for sample in ids], np.int64)
    logits = random.normal(0, 1.0, (len(ids), len(names)))
    logits[np.arange(len(ids)), truth] += 2.6
    if difficult:  # even and odd classes come in pairs that look alike
        partner = truth ^ 1
        usable = partner < len(names)
        logits[np.flatnonzero(usable), partner[usable]] += 1.8
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return ScoreTable(list(ids), truth, scores.astype(np.float32), split, member, HASH, list(names))


def _history(position: int) -> list[dict[str, float]]:
    random = np.random.default_rng(position)
    return [
        {
            "epoch": epoch,
            "train/loss": 2.6 * 0.8**epoch + 0.3 + 0.02 * random.normal(),
            "dev/loss": 2.5 * 0.84**epoch + 0.6 + 0.04 * random.normal(),
            "dev/top1": 0.75 * (1 - 0.72**epoch) + 0.02 * random.normal(),
            "lr": 0.0125 * (1 + np.cos(np.pi * epoch / 10)),
            "samples_per_s": 160.0,
        }
        for epoch in range(1, 11)
    ]


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, default=float))
