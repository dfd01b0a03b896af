"""`sixstream train --processes 2`: torch DDP through torchrun, the same training as in one process."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from s3_server import serve_s3
from small_run import annotations, small_params, write_params, write_raw

from components.params import load_params
from components.preprocess import preprocess
from pipeline.workspace import ROOT

TRAIN = ["-m", "pipeline.cli", "train", "--member", "joint", "--data", "packed", "--out", "train"]


def _train(place: Path, processes: int) -> list[dict[str, float]]:
    write_params(place, small_params())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if not (place / "packed").exists():
        raw = write_raw(place / "raw", annotations())
        preprocess(load_params(place / "params.yaml"), raw, place / "packed")
    line = [sys.executable, *TRAIN, "--processes", str(processes)]
    done = subprocess.run(line, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("epoch 2/2") == 1, "one process reports"
    return json.loads((place / "train" / "history.json").read_text())


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Losses of 2 x 3 clips with synchronised batch norm, dropout and bank against 1 x 6, float32."""
    histories = []
    for processes in (1, 2):
        place = tmp_path / str(processes)
        place.mkdir()
        histories.append(_train(place, processes))
    for one, two in zip(*histories, strict=True):
        for name in ("train/loss", "train/ce", "train/contrast", "dev/loss"):
            assert two[name] == pytest.approx(one[name], rel=2e-3), name


def _prepare(place: Path, database: Path, **recipe: int) -> dict[str, str]:
    """Parameters, packed store (one for all beside `place`) and an empty tracking database; their environment."""
    place.mkdir(exist_ok=True)
    parameters = small_params()
    parameters["datasets"]["small"]["recipe"] |= {"checkpoint_steps": 1, **recipe}
    write_params(place, parameters)
    if not (place.parent / "packed").exists():
        raw = write_raw(place.parent / "raw", annotations())
        preprocess(load_params(place / "params.yaml"), raw, place.parent / "packed")
    (place / "packed").symlink_to(place.parent / "packed")
    shutil.copyfile(database, place / "mlflow.db")
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_saves_and_the_same_command_goes_on(tmp_path: Path, database: Path, processes: int) -> None:
    """To torchrun's parent when there are two processes, which stop at one step and are waited for.

    The checkpoint is in S3 as well, before the first process ends.
    """
    place = tmp_path / "place"
    line = [sys.executable, *TRAIN, "--processes", str(processes)]
    reached = []
    with serve_s3() as s3:
        environment = _prepare(place, database, epochs=5000) | s3.environment | {"SIXSTREAM_BACKUP": "s3://bucket/of"}
        for _ in range(2):
            before = _checkpoints(place)
            with subprocess.Popen(line, cwd=place, env=environment, stderr=subprocess.PIPE, text=True) as process:
                while process.poll() is None and _checkpoints(place) == before:
                    time.sleep(0.05)
                process.send_signal(signal.SIGTERM)
                messages = process.communicate()[1]
            assert process.returncode == 75, messages[-2000:]
            assert messages.count("sixstream: asked to end: saved after step") == processes
            reached.append(_checkpoints(place))
            assert [path.name.split(".")[0] for path in s3.folder.glob("bucket/of/*/*")] == reached[-1], messages[
                -2000:
            ]
    assert "going on after step" in messages
    assert len(reached[0]) == len(reached[1]) == 1 and reached[0] < reached[1]


def test_torchrun_restarts_after_a_lost_rank_to_the_same_bits(tmp_path: Path, database: Path) -> None:
    """One of two ranks is killed; torchrun ends the other and starts both again, which go on from the checkpoint."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts"]
    line += ["1", *TRAIN]
    bits = {}
    for lost in (None, 0, 1):
        place = tmp_path / f"lost-{lost}"
        environment = _prepare(place, database, repeats=4)
        with subprocess.Popen(line, cwd=place, env=environment, stderr=subprocess.PIPE, text=True) as process:
            if lost is not None:
                while process.poll() is None and not _checkpoints(place):
                    time.sleep(0.02)
                workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                mark = f"\0RANK={lost}\0".encode()
                (pid,) = (pid for pid in workers if mark in Path(f"/proc/{pid}/environ").read_bytes())
                os.kill(int(pid), signal.SIGKILL)
            messages = process.communicate()[1]
        assert process.returncode == 0, messages[-3000:]
        assert messages.count("going on after") == (lost is not None), messages[-3000:]
        bits[lost] = [(place / "train" / file).read_bytes() for file in ("best.pt", "last.pt")]
    assert bits[None] == bits[0] == bits[1]


def _checkpoints(place: Path) -> list[str]:
    found = (place / ".work" / "checkpoints").glob("*/epoch-*-step-*.pt")
    return sorted(path.name.split(".")[0] for path in found)
