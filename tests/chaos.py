"""Kill `sixstream train` with SIGKILL at random moments, give the same command again, compare with an undisturbed run.

    python tests/chaos.py --runs 5 --kills 10

Every process is killed at a random moment, so kills fall into start-up, steps, the writing of checkpoints, validation
and publishing. A process that ends before its moment is started again and killed then. After
the last kill the command is given once more; best.pt and last.pt must equal, byte for byte, those of the undisturbed
run, and the learning curve its curve, of which the tracking database holds every epoch once.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from small_run import annotations, small_params, write_params, write_raw

from components.params import load_params
from components.preprocess import preprocess

ROOT = Path(__file__).resolve().parent.parent
STEPS = 12  # optimiser steps, and so checkpoints, an epoch
TRAIN = ["train", "--member", "joint", "--data", "../packed", "--out", "train"]
MEASURED = ("seconds", "samples_per_s", "wait_share")


@dataclass
class Undisturbed:
    """What an unbroken training left, and when it wrote its first checkpoint and ended (seconds from its start)."""

    files: dict[str, bytes]
    curve: list[dict[str, float]]
    first: float
    end: float


def start(place: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    """`sixstream …` in `place`; its messages are added to `place/messages.txt`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (place / "messages.txt").open("ab") as messages:
        line = [sys.executable, "-m", "pipeline.cli", *arguments]
        return subprocess.Popen(line, cwd=place, env=environment, stdout=messages, stderr=messages)


def checked(place: Path, code: int) -> None:
    """Raise AssertionError with the last messages unless `code` is 0."""
    assert code == 0, f"exit code {code}\n{(place / 'messages.txt').read_text(errors='replace')[-3000:]}"


def prepare(root: Path, epochs: int, database: Path | None) -> None:
    """The packed store of the small dataset for all runs, and the tracking database they begin with, if any."""
    parameters = small_params()
    recipe = parameters["datasets"]["small"]["recipe"]
    recipe |= {"epochs": epochs, "repeats": 4, "checkpoint_steps": 1}  # 18 clips x 4 / 6: STEPS
    write_params(root, parameters)
    preprocess(load_params(root / "params.yaml"), write_raw(root / "raw", annotations()), root / "packed")
    if database is not None:
        shutil.copyfile(database, root / "mlflow.db")


def new_place(root: Path, run: str) -> Path:
    place = root / run
    place.mkdir()
    for name in ("params.yaml", "mlflow.db"):
        if (root / name).exists():
            shutil.copyfile(root / name, place / name)
    return place


def outcome(place: Path) -> tuple[dict[str, bytes], list[dict[str, float]]]:
    """Checkpoints as bytes, and the learning curve without what is measured in seconds."""
    files = {name: (place / "train" / name).read_bytes() for name in ("best.pt", "last.pt")}
    history: list[dict[str, Any]] = json.loads((place / "train" / "history.json").read_text())
    return files, [{k: v for k, v in record.items() if k not in MEASURED} for record in history]


def undisturbed(root: Path) -> Undisturbed:
    place = new_place(root, "undisturbed")
    began, first = time.monotonic(), 0.0
    process = start(place, *TRAIN)
    while process.poll() is None:
        if not first and list((place / ".work" / "checkpoints").glob("*/epoch-*.pt")):
            first = time.monotonic() - began
        time.sleep(0.02)
    checked(place, process.returncode)
    return Undisturbed(*outcome(place), first, time.monotonic() - began)


def killed_at_random(
    process: "subprocess.Popen[bytes]", place: Path, kills: int, whole: Undisturbed, chance: random.Random
) -> bool:
    """Kill the process; False when it ended before.

    Three in ten moments lie in start-up, by the clock. The others come after a random number of checkpoints, so that
    they fall into the training however busy the machine is; all kills together let most of it happen.
    """
    early = time.monotonic() + chance.uniform(0, whole.first) if chance.random() < 0.3 else float("inf")
    wanted = chance.randint(1, max(1, 2 * STEPS * len(whole.curve) // kills))
    seen, newest = -1, None
    while process.poll() is None:
        found = max((path.name for path in (place / ".work" / "checkpoints").glob("*/epoch-*.pt")), default=None)
        if found != newest:
            seen, newest = seen + 1, found
        if seen >= wanted or time.monotonic() > early:
            time.sleep(chance.uniform(0, 0.1))
            process.kill()
            return process.wait() == -signal.SIGKILL
        time.sleep(0.005)
    return False


def disturbed(root: Path, name: str, kills: int, whole: Undisturbed, chance: random.Random) -> str:
    """One training with so many kills; what happened, in a line. Raises AssertionError when anything differs."""
    place = new_place(root, name)
    killed = finished = 0
    while killed < kills:
        process = start(place, *TRAIN)
        if killed_at_random(process, place, kills, whole, chance):
            killed += 1
        else:
            checked(place, process.returncode)
            finished += 1
    checked(place, start(place, *TRAIN).wait())
    files, curve = outcome(place)
    different = [file for file, content in files.items() if content != whole.files[file]]
    assert not different, f"{name}: {', '.join(different)} differ from the undisturbed run's"
    assert curve == whole.curve, f"{name}: the learning curve differs from the undisturbed run's"
    with sqlite3.connect(place / "mlflow.db") as database:
        tracked = database.execute("SELECT step FROM metrics WHERE key = 'train/loss' ORDER BY step").fetchall()
    assert [step for (step,) in tracked] == [record["epoch"] for record in curve], f"{name}: tracked {tracked}"
    text = (place / "messages.txt").read_text(errors="replace")
    within = text.count("going on after step")
    return f"{name}: identical after {killed} kills ({within} starts went on within an epoch, {finished} early ends)"


def chaos(
    root: Path, runs: int, kills: int, seed: int, epochs: int = 10, database: Path | None = None, jobs: int = 1
) -> list[str]:
    """All runs in folders of `root`, `jobs` at a time; a line each.

    Without a `database` every run makes its own under the kills.
    """
    prepare(root, epochs, database)
    whole = undisturbed(root)
    lines = [f"undisturbed: first checkpoint after {whole.first:.1f} s, end after {whole.end:.1f} s"]
    print(lines[0], flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        chances = [random.Random(f"{seed}/{number}") for number in range(runs)]
        ended = [pool.submit(disturbed, root, f"run{n + 1}", kills, whole, c) for n, c in enumerate(chances)]
        for run in as_completed(ended):
            lines.append(run.result())
            print(lines[-1], flush=True)
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side; start-up, on one core, takes most time")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sixstream-chaos-") as scratch:
        chaos(Path(scratch), options.runs, options.kills, options.seed, jobs=options.jobs)
    print(f"{options.runs} of {options.runs} identical, {time.monotonic() - began:.0f} s")
