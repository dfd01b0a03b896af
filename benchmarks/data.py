"""The data path beside the plain one-sample-at-a-time way: samples per second of one core, ratio, memory.

    python -m benchmarks.data [--parts store check batches maps raw] [--fraction 0.05] [--rounds 3] [--json FILE]

Data are generated at NTU RGB+D 120's size (113,945 clips, mean 70 frames, 1.3 persons, 25 joints) times `--fraction`.
The plain way (benchmarks/plain) copies each sample, prepares and changes it by numpy step by step, draws maps window by
window and reads text line by line. Both ways are first shown to give the same for the same draws; then they take turns,
and the best of the rounds counts. Rates are samples or files per CPU-second. "Quoted" are the rates of the original
code bases per CPU-second (400 samples, 100 key-point and 24 limb samples, 500 raw files of about 20 frames).
"""

import argparse
import json
import multiprocessing
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import best_seconds, machine, resident_peak_gib
from benchmarks.plain.ntu_text import plain_read
from benchmarks.plain.samples import plain_sample
from benchmarks.plain.volumes import plain_volume
from model import ntu
from model.clips import Clips
from model.heatmap_clips import HeatmapClips
from model.layouts import Layout, load_layout
from model.prepare import normalise_3d
from model.store import Clip, Store, open_store, write_store
from model.streams import HEATMAP_STREAMS, STREAMS

CLIPS, FRAMES, PERSONS, CLASSES, SUBJECTS = 113_945, 70, 1.3, 120, 106
CLIP_LENGTH, MAP_LENGTH, RAW_FILES = 100, 48, 8
MOST_PICKLED = 20_000  # clips in one pickle, which are all in memory at once
QUOTED = {"batch": 400, "keypoint": 100, "limb": 24, "raw": 500}
AIM = {"batch": 30, "keypoint": 10, "limb": 10, "raw": 5}
ROTATE: dict[str, Any] = {"name": "rotate", "theta": 0.2}
AUGMENTATIONS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "rotate": [ROTATE],
    "rotate, flip": [ROTATE, {"name": "spatial_flip", "p": 0.5}],
    "rotate, drop": [ROTATE, {"name": "part_drop", "p": 0.2}],
    "rotate, scale": [ROTATE, {"name": "scale", "scale": 0.1}],
}
RECIPE = "rotate, flip"


@dataclass(frozen=True)
class Rate:
    """Samples or files per second of both ways. `quoted` is the original code bases' rate."""

    name: str
    plain: float
    ours: float
    quoted: float
    aim: float

    def line(self) -> str:
        times = self.ours / self.plain, self.ours / self.quoted
        met = "met" if min(times) >= self.aim else "met against plain" if times[0] >= self.aim else "missed"
        return f"{self.name:28}{self.plain:9.1f}{self.ours:9.0f}{times[0]:8.1f}{times[1]:8.1f}   {self.aim:.0f}x {met}"


def generated(count: int, layout: Layout, flat: bool = False) -> Iterator[Clip]:
    """Clips of NTU's lengths and persons; `flat`: pixels and scores in an image of 1080 x 1920."""
    draw = np.random.default_rng(0)
    longest = 300
    pool = draw.standard_normal((2, 2 * longest, layout.num_joints, 3), np.float32).cumsum(axis=1) * np.float32(0.02)
    pose = draw.standard_normal((layout.num_joints, 3), np.float32) * np.float32([0.15, 0.5, 0.15])  # upright
    for number in range(count):
        frames = int(np.clip(draw.normal(FRAMES, 25), 15, longest))
        persons = 1 + int(draw.random() < PERSONS - 1)
        first = int(draw.integers(longest))
        joints = pool[:persons, first : first + frames] + pose * np.float32(draw.uniform(0.8, 1.2))
        if flat:
            joints = joints * np.float32(150) + np.array([900, 500, 0], np.float32)
            joints[..., 2] = draw.uniform(0.3, 1, joints.shape[:3])
        else:
            joints = normalise_3d(joints, layout)
        size = (1080.0, 1920.0) if flat else None
        yield Clip(f"clip{number:06}", number % CLASSES, joints, {"subject": number % SUBJECTS}, size)


def write(folder: Path, count: int, layout: str = "nturgb+d", flat: bool = False) -> tuple[float, float]:
    """Write a store in a streaming pass; seconds, and the largest resident memory of this process in GiB."""
    began = time.perf_counter()
    split = int(count * 0.55)
    write_store(
        folder, generated(count, load_layout(layout), flat), layout=load_layout(layout),
        classes=[f"action {k}" for k in range(CLASSES)],
        splits={"train": [f"clip{i:06}" for i in range(split)], "test": [f"clip{i:06}" for i in range(split, count)]},
        channels=["x", "y", "score" if flat else "z"], data_hash="generated", source="generated",
    )  # fmt: skip
    return time.perf_counter() - began, resident_peak_gib()


def write_plain(file: Path, count: int) -> tuple[float, float]:
    """The same clips as one pickle, which needs them all in memory."""
    began = time.perf_counter()
    content = [annotation_of(clip.joints, clip.image_size) for clip in generated(count, load_layout("nturgb+d"))]
    with file.open("wb") as stream:
        pickle.dump(content, stream, protocol=4)
    return time.perf_counter() - began, resident_peak_gib()


def open_ours(folder: Path) -> tuple[float, float]:
    began = time.perf_counter()
    open_store(folder)
    return time.perf_counter() - began, resident_peak_gib()


def open_plain(file: Path) -> tuple[float, float]:
    began = time.perf_counter()
    with file.open("rb") as stream:
        pickle.load(stream)  # our own file
    return time.perf_counter() - began, resident_peak_gib()


def check(folder: Path) -> tuple[float, float]:
    """CPU seconds and peak resident memory of looking at a store."""
    from components.data_check import inspect  # the one thing here that is above `model`

    began = time.process_time()
    inspect(open_store(folder), [], ("train", ["test"]))
    return time.process_time() - began, resident_peak_gib()


def alone(action: Callable[..., tuple[float, float]], *arguments: object) -> tuple[float, float]:
    """Run in a fresh process, for its own peak of memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(action, arguments)


def annotation_of(joints: np.ndarray, size: tuple[float, float] | None) -> dict[str, Any]:
    """A clip as annotation pickles hold it."""
    shape = None if size is None else (int(size[0]), int(size[1]))
    return {"keypoint": joints, "total_frames": joints.shape[1], "img_shape": shape}


def annotations(store: Store, rows: np.ndarray) -> list[dict[str, Any]]:
    sizes = store.image_size
    return [
        annotation_of(np.array(store.clip(i)), None if sizes is None else (sizes[i, 0], sizes[i, 1]))
        for i in rows.tolist()
    ]


def draws_of(seed: int, batch: int, length: int, steps: list[dict[str, Any]], limbs: int) -> list[dict[str, Any]]:
    """The numbers that `Clips.batch` draws with this seed, by sample."""
    generator = torch.Generator().manual_seed(seed)
    found: list[dict[str, Any]] = [{} for _ in range(batch)]

    def note(name: str, values: torch.Tensor) -> np.ndarray:
        for sample, value in zip(found, values.numpy(), strict=True):
            sample[name] = value
        return values.numpy()

    note("frames", torch.rand((batch, length + 1), generator=generator, dtype=torch.float64))
    for step in steps:
        if step["name"] == "part_drop":
            share, limb = torch.rand(batch, generator=generator), torch.randint(limbs, (batch,), generator=generator)
            for sample, p, number in zip(found, share.tolist(), limb.tolist(), strict=True):
                sample["part_drop"] = (p, number)
        else:
            note(step["name"], torch.rand((batch, 3) if step["name"] != "spatial_flip" else batch, generator=generator))
    return found


def batches(store: Store, batch: int, rounds: int, prepared: bool) -> Iterator[Rate]:
    """Training batches of every stream under a recipe's augmentation, and of joints under every augmentation."""
    kinds = [(stream, RECIPE) for stream in STREAMS] + [("joint", name) for name in AUGMENTATIONS if name != RECIPE]
    for stream, name in kinds:
        steps = AUGMENTATIONS[name]
        clips = Clips(
            store,
            np.arange(len(store)),
            stream=stream,
            clip_length=CLIP_LENGTH,
            persons=2,
            augment=steps,
            training=True,
        )
        rows = np.random.default_rng(1).permutation(len(store))[:batch]
        samples = annotations(store, rows)
        draws = draws_of(7, batch, CLIP_LENGTH, steps, len(store.layout.parts))

        take = partial(Clips.batch, clips, rows)
        plain = partial(_plain_batch, samples, draws, store.layout, stream, steps, 2, not prepared)

        def ours(take: Callable[..., torch.Tensor] = take) -> torch.Tensor:
            return take(torch.Generator().manual_seed(7))

        _equal(ours(), plain(), f"{stream}, {name}", 2e-5)
        best = best_seconds({"plain": plain, "ours": ours}, rounds)
        yield _rate(f"{stream} ({name})", best, batch, "batch")


def _plain_batch(
    samples: list[dict[str, Any]], draws: list[dict[str, Any]], layout: Layout, stream: str, *arguments: Any
) -> torch.Tensor:
    steps, persons, centre = arguments
    made = [
        plain_sample(sample, layout, stream, steps, drawn, CLIP_LENGTH, persons, centre)
        for sample, drawn in zip(samples, draws, strict=True)
    ]
    return torch.from_numpy(np.stack(made))


def _plain_maps(
    samples: list[dict[str, Any]], draws: list[dict[str, Any]], layout: Layout, stream: str
) -> torch.Tensor:
    made = [plain_volume(s, layout, stream, d, MAP_LENGTH) for s, d in zip(samples, draws, strict=True)]
    return torch.from_numpy(np.stack(made))


def maps(store: Store, batch: int, rounds: int) -> Iterator[Rate]:
    """Training heat maps, 48 frames, 17 joints, 56 x 56 pixels."""
    for stream in HEATMAP_STREAMS:
        joints = Clips(store, np.arange(len(store)), stream="joint", clip_length=MAP_LENGTH, persons=2, training=True)
        clips = HeatmapClips(joints, stream)
        rows = np.random.default_rng(1).permutation(len(store))[:batch]
        samples = annotations(store, rows)
        generator = torch.Generator().manual_seed(7)
        draws: list[dict[str, Any]] = [
            {"frames": frames, "crop": crop, "flip": flip}
            for frames, crop, flip in zip(
                torch.rand((batch, MAP_LENGTH + 1), generator=generator, dtype=torch.float64).numpy(),
                torch.rand((batch, 22), generator=generator, dtype=torch.float64).numpy(),
                torch.rand(batch, generator=generator).tolist(),
                strict=True,
            )
        ]

        take = partial(HeatmapClips.batch, clips, rows)
        plain = partial(_plain_maps, samples, draws, store.layout, stream)

        def ours(take: Callable[..., torch.Tensor] = take) -> torch.Tensor:
            return take(torch.Generator().manual_seed(7))

        _equal(ours(), plain(), stream, 1e-4)
        best = best_seconds({"plain": plain, "ours": ours}, rounds)
        yield _rate(f"{stream} maps", best, batch, stream)


def raw(rounds: int) -> Iterator[Rate]:
    """Raw files of NTU's mean size: text to the chosen bodies."""
    layout = load_layout("nturgb+d")
    texts = []
    for number, clip in enumerate(generated(RAW_FILES, layout)):
        persons, frames = clip.joints.shape[:2]
        ids = tuple(72057594037900000 + person for _ in range(frames) for person in range(persons))
        joints = clip.joints.transpose(1, 0, 2, 3).reshape(-1, 25, 3) + np.float32([0, 0, 3])
        texts.append(ntu.format_skeleton(ntu.RawClip(f"clip{number}", np.full(frames, persons), ids, joints)))
    forms = {"plain": plain_read, "ours": ntu.parse_skeleton}
    for text in texts:
        found, expected = (form(text, "clip") for form in (ntu.parse_skeleton, plain_read))
        same = found.ids == expected.ids and np.array_equal(found.counts, expected.counts)
        if not same or not np.array_equal(found.joints, expected.joints):
            raise SystemExit("raw files: the two ways differ; nothing is timed")

    def read(form: Callable[[bytes, str], ntu.RawClip]) -> Callable[[], list[np.ndarray]]:
        return lambda: [ntu.convert_pyskl(form(text, "clip")) for text in texts]

    best = best_seconds({name: read(form) for name, form in forms.items()}, rounds)
    size = sum(map(len, texts)) / len(texts) / 1024
    yield _rate(f"raw files of {size:.0f} KiB", best, len(texts), "raw")


def store_figures(folder: Path, count: int) -> dict[str, float]:
    """Writing and opening: wall seconds and peak resident memory of a process; ours and, if it fits, one pickle."""
    figures = {}
    actions: list[tuple[str, Callable[..., tuple[float, float]], Path]] = [
        ("write", write, folder / "store"), ("open", open_ours, folder / "store"),
        ("write_pickle", write_plain, folder / "all.pkl"), ("open_pickle", open_plain, folder / "all.pkl"),
    ]  # fmt: skip
    for name, action, path in actions if count <= MOST_PICKLED else actions[:2]:
        arguments = (path, count) if name.startswith("write") else (path,)
        seconds, peak = alone(action, *arguments)
        figures |= {f"{name}_seconds": seconds, f"{name}_peak_gib": peak}
    (folder / "all.pkl").unlink(missing_ok=True)
    return figures


def _rate(name: str, best: dict[str, float], count: int, kind: str) -> Rate:
    return Rate(name, count / best["plain"], count / best["ours"], QUOTED[kind], AIM[kind])


def _equal(ours: torch.Tensor, plain: torch.Tensor, name: str, tolerance: float) -> None:
    difference = float((ours - plain).abs().max())
    if ours.shape != plain.shape or not difference <= tolerance:
        raise SystemExit(f"{name}: the two ways differ by {difference:.1e}; nothing is timed")


def show(rates: Iterator[Rate]) -> list[Rate]:
    found = []
    for rate in rates:
        print(rate.line(), flush=True)
        found.append(rate)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="The data path beside the plain one-sample-at-a-time way.")
    parts = ("store", "check", "batches", "maps", "raw")
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=parts)
    parser.add_argument("--fraction", type=float, default=0.05, help="of NTU RGB+D 120's clips")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--map-batch", type=int, default=16)
    parser.add_argument("--prepared", action="store_true", help="the plain way gets clips that are centred already")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    count = max(options.batch, round(CLIPS * options.fraction))
    facts = machine(options.threads) | {"clips": count, "batch": options.batch, "map_batch": options.map_batch}
    print("; ".join(f"{key} {value}" for key, value in facts.items()))
    figures: dict[str, Any] = {}
    rates: list[Rate] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if "store" in options.parts:
            figures = store_figures(folder, count)
            for action in sorted({name.rsplit("_", 1 + name.endswith("gib"))[0] for name in figures}):
                print(f"{action:14}{figures[f'{action}_seconds']:9.3f} s{figures[f'{action}_peak_gib']:9.2f} GiB peak")
        if not (folder / "store").is_dir() and {"check", "batches"} & set(options.parts):
            write(folder / "store", count)
        if "check" in options.parts:
            seconds, peak = alone(check, folder / "store")
            figures |= {"check_cpu_seconds": seconds, "check_peak_gib": peak}
            print(f"{'check':14}{seconds:9.3f} s of CPU{peak:9.2f} GiB peak, the mapped store included")
        print(f"{'':28}{'plain/s':>9}{'ours/s':>9}{'ratio':>8}{'quoted':>8}   aim")
        if "batches" in options.parts:
            rates += show(batches(open_store(folder / "store"), options.batch, options.rounds, options.prepared))
        if "maps" in options.parts:
            write(folder / "flat", 40 * options.map_batch, "coco", flat=True)
            rates += show(maps(open_store(folder / "flat"), options.map_batch, options.rounds))
        if "raw" in options.parts:
            rates += show(raw(options.rounds))
    if options.json:
        options.json.write_text(json.dumps({**facts, **figures, "rates": [asdict(r) for r in rates]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
