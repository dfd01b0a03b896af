"""DVC removes a stage's outputs before it runs it again; working checkpoints lie elsewhere, so nothing is lost."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from small_run import annotations, small_params, write_params, write_raw

from components.journal import locked
from components.params import load_params
from components.preprocess import preprocess
from pipeline.workspace import ROOT

OUT = "runs/small/development/joint/train"
TRAIN = f"sixstream train --member joint --data data/packed/small --out {OUT}"
REPRO = [sys.executable, "-m", "dvc", "repro"]
RUN = [sys.executable, "-m", "pipeline.cli", "run", "--until", "train"]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Path:
    """A workspace whose graph is one training of 72 steps, each with a checkpoint."""
    place = tmp_path_factory.mktemp("graph")
    parameters = small_params()
    parameters["datasets"]["small"]["recipe"] |= {"checkpoint_steps": 1, "epochs": 3, "repeats": 8}
    write_params(place, parameters)
    raw = write_raw(place / "raw", annotations())
    preprocess(load_params(place / "params.yaml"), raw, place / "data" / "packed" / "small")
    stage = {"cmd": TRAIN, "deps": ["data/packed/small"], "outs": [OUT]}
    (place / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": stage}}))
    shutil.copyfile(database, place / "mlflow.db")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=place, check=True, env=environment())
    return place


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DVC_NO_ANALYTICS": "1"}
    # Debian's sh stays between DVC and the stage as long as the stage runs; bash makes way for it.
    return {**os.environ, **settings, "PATH": path, "SHELL": "/bin/sh"}


def outcome(place: Path) -> list[Any]:
    history = json.loads((place / OUT / "history.json").read_text())
    curve = [{k: v for k, v in line.items() if k.startswith(("train", "dev"))} for line in history]
    return [(place / OUT / "best.pt").read_bytes(), (place / OUT / "last.pt").read_bytes(), curve]


def stopped(place: Path, line: list[str], number: int) -> tuple[int, str]:
    """Run the command and send it a signal when it has saved a checkpoint; exit code and messages."""
    for lock in (place / ".work" / "checkpoints").glob("*/lock"):
        with locked(lock):  # by a training that ends after the one that started it was killed
            pass
    wait_for_dvc(place)
    before = saved(place)
    with (place / "messages.txt").open("w+") as messages:
        process = subprocess.Popen(line, cwd=place, env=environment(), stdout=messages, stderr=messages)
        limit = time.monotonic() + 240
        while process.poll() is None and saved(place) == before:
            assert time.monotonic() < limit
            time.sleep(0.02)
        assert process.poll() is None and not (place / OUT).exists(), "it ended before it could be stopped"
        process.send_signal(number)
        code = process.wait(120)
        messages.seek(0)
        return code, messages.read()


def wait_for_dvc(place: Path) -> None:
    """Until no process holds DVC's locks: a killed one does until the system has buried it, which may take seconds."""
    limit = time.monotonic() + 60
    while any(psutil.pid_exists(int(pid)) for pid in re.findall(r'"pid": (\d+)', holders(place))):
        assert time.monotonic() < limit
        time.sleep(0.05)


def holders(place: Path) -> str:
    locks = place / ".dvc" / "tmp" / "rwlock"
    return locks.read_text() if locks.exists() else ""


def saved(place: Path) -> list[str]:
    return sorted(path.name for path in (place / ".work" / "checkpoints").glob("*/epoch-*"))


def finished(place: Path) -> str:
    done = subprocess.run(REPRO, cwd=place, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_stopped_and_killed_runs_go_on_to_the_same_bits(graph: Path, tmp_path: Path) -> None:
    """`sixstream run` by SIGTERM, Ctrl-C and SIGKILL, then `dvc repro` by SIGKILL, without its stage.

    A stage must not train on by itself when what started it is killed, nor be in the way of the next.
    """
    straight, place = (Path(shutil.copytree(graph, tmp_path / name)) for name in ("straight", "place"))
    finished(straight)
    for number in (signal.SIGTERM, signal.SIGINT):
        code, said = stopped(place, RUN, number)
        assert code == 75, said
        assert "asked to end: saved after step" in said and "goes on from the last checkpoints" in said
    for line in (RUN, REPRO):
        code, said = stopped(place, line, signal.SIGKILL)
        assert code == -signal.SIGKILL, said
        assert "going on after step" in said
    assert "going on after step" in finished(place)
    assert outcome(place) == outcome(straight)
