"""`sixstream train --processes 2`: torch DDP through torchrun, the same training as in one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import annotations, small_params, write_params, write_raw

from pipeline.workspace import ROOT


def _train(place: Path, processes: int) -> list[dict[str, float]]:
    write_params(place, small_params())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "pipeline.cli"]
    if not (place / "packed").exists():
        raw = write_raw(place / "raw", annotations())
        subprocess.run([*line, "preprocess", "--raw", raw, "--out", "packed"], cwd=place, env=environment, check=True)
    line += ["train", "--member", "joint", "--data", "packed", "--out", "train", "--processes", str(processes)]
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
