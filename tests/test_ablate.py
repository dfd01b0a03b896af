"""Grids: which cells are trained, what the table says, and a small one through real DVC and real MLflow."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from small_run import annotations, small_params, write_params, write_raw

from components.ablation_params import Ablation
from components.params import parse_params
from components.register import register
from model.errors import UserError
from model.scoretable import load_table
from pipeline.ablate import ablate, grid_content
from pipeline.ablation_table import write_table
from pipeline.catalogue import load_expanded
from pipeline.graph import plain
from pipeline.workspace import ROOT

BASELINE = {"inter": False, "intra": False, "prototypes": False, "contrastive_weight": 0}
GRID = {
    "about": "a small grid",
    "seeds": [3],
    "cells": {
        "baseline": {"network": BASELINE},
        "mte": {"title": "+MTE", "network": {"contrastive_weight": 0, "prototypes": False}},
        "mte_prn": {"title": "+MTE+PRN", "network": {"contrastive_weight": 0}},
    },
    "published": {"source": "a paper", "classes": 3, "split": "a", "stream": "joint", "top1": {"mte_prn": 88.5}},
}


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("table3", {"mte_prn": "mte"}),
        ("table3_paper", {}),
        ("table4", {}),
        ("table4_paper", {}),
        ("fig3_weight", {}),
        ("fig3_prototypes", {}),
        ("networks", {}),
    ],
)
def test_shipped_grids(name: str, same: dict[str, str]) -> None:
    params = load_expanded(ROOT / "params.yaml")
    grid = params.ablations[name]
    content, trained_as = grid_content(plain(params), name, grid)
    assert {cell: first for cell, first in trained_as.items() if cell != first} == same
    assert len(content["members"]) == len(grid.seeds) * len(set(trained_as.values()))
    tracked = parse_params(content, name)
    assert tracked.ablation is not None
    assert tracked.experiment == f"sample/development/{name}"
    settings = [tuple(map(str, cell.settings.values())) for cell in tracked.ablation.cells.values()]
    assert len(set(settings)) == len(settings)  # what is logged tells the cells apart


def test_every_shipped_grid_is_named_here() -> None:
    shipped = load_expanded(ROOT / "params.yaml").ablations
    marks = test_shipped_grids.pytestmark[0].args[1]  # type: ignore[attr-defined]
    assert set(shipped) == {name for name, _ in marks}


def test_the_equal_cells_share_a_title_and_cells_keep_their_settings() -> None:
    params = load_expanded(ROOT / "params.yaml")
    grid = params.ablations["table3"]
    content, _ = grid_content(plain(params), "table3", grid.model_copy(update={"seeds": [4], "stream": "bone"}))
    assert content["ablation"]["cells"]["mte"]["title"] == "+MTE = +MTE+PRN"
    assert content["members"]["baseline-s4"] == {
        "model": "protogcn", "stream": "bone", "seed": 4,
        "network": {"inter": False, "intra": False, "prototypes": False, "contrastive_weight": 0},
    }  # fmt: skip
    assert content["ablation"]["cells"]["all"]["settings"]["contrastive_weight"] == 0.3  # bone's released weight


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cells": {"x": {"network": {"intar": False}}}}, "no option intar"),
        ({"cells": {"x": {"model": "nonet"}}}, "'nonet' is unknown"),
        ({"stream": "jiont"}, "members.x-s0.stream"),
    ],
)
def test_mistakes_in_a_grid_are_named(change: Any, said: str) -> None:
    grid = Ablation.model_validate({"cells": {"x": {}}, **change})
    with pytest.raises(UserError, match=said):
        grid_content(plain(parse_params(small_params(), "params")), "g", grid)


def test_unknown_grids_and_figures_of_no_cell_are_refused() -> None:
    with pytest.raises(UserError, match="ablate tabel3: no such grid; there are parts"):
        ablate("tabel3", parse_params(small_params(ablations={"parts": GRID}), "params"))
    wrong = {**GRID, "published": {**GRID["published"], "top1": {"mtee": 1.0}}}  # type: ignore[dict-item]
    with pytest.raises(UserError, match="'mtee' is no cell"):
        parse_params(small_params(ablations={"parts": wrong}), "params")


def _ablate(place: Path, *more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "pipeline.cli", "ablate", "parts", *more]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which a grid of two networks has run, and what it printed."""
    place = tmp_path_factory.mktemp("ablate")
    content = small_params(ablations={"parts": GRID})
    content["datasets"]["small"]["recipe"]["network"]["protogcn"]["num_prototypes"] = 4
    content["datasets"]["small"]["recipe"].pop("streams")
    write_params(place, content)
    write_raw(place / "data" / "raw" / "small", annotations())
    done = _ablate(place, "--set", "recipe.epochs=1")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return place, done.stdout


def test_a_grid_trains_each_network_once_and_ends_in_its_table(finished: tuple[Path, str]) -> None:
    place, printed = finished
    grid = place / "ablations" / "small-a" / "parts"
    runs = grid / "runs" / "small" / "development"
    assert {path.name for path in runs.iterdir()} == {"baseline-s3", "mte-s3"}
    assert "| +MTE+PRN | = +MTE, by construction |" in printed and "| 88.5 |" in printed
    assert "Is +MTE better than baseline? Undecided:" in printed and "over 1 seed," in printed
    numbers = json.loads((grid / "table.json").read_text())
    table = load_table(runs / "mte-s3" / "scores" / "best-a_test.npz")
    right = float(np.mean(table.scores.argmax(1) == table.labels))
    assert numbers["rows"][1]["top1"]["mean"] == pytest.approx(right)
    assert numbers["rows"][2]["same_as"] == "+MTE" and numbers["unit"] == "performance"
    assert {path.name for path in grid.glob("table.*")} == {"table.md", "table.csv", "table.html", "table.json"}
    assert len(json.loads((runs / "mte-s3" / "train" / "history.json").read_text())) == 1  # --set was heard


def test_cells_are_flat_runs_with_tags_to_group_by(finished: tuple[Path, str]) -> None:
    place, printed = finished
    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small/development/parts")
    runs = {run.data.tags["member"]: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"baseline-s3", "mte-s3"}
    for run in runs.values():
        assert "mlflow.parentRunId" not in run.data.tags and run.info.status == "FINISHED"
        assert run.data.tags["ablation"] == "parts" and "test/top1" in run.data.metrics
    mte = runs["mte-s3"]
    assert mte.data.tags["cell"] == mte.data.params["cell"] == "+MTE = +MTE+PRN"
    assert mte.data.params["set.inter"] == "True" and mte.data.params["seed"] == "3"
    assert runs["baseline-s3"].data.params["set.inter"] == "False"
    assert experiment.tags["mlflow.note.content"] in printed


def test_again_nothing_is_trained(finished: tuple[Path, str]) -> None:
    place, printed = finished
    done = _ablate(place, "--set", "recipe.epochs=1")
    assert done.returncode == 0 and "Running stage" not in done.stdout
    assert done.stdout.splitlines()[-20:] == printed.splitlines()[-20:]


def test_cells_are_not_registered(finished: tuple[Path, str]) -> None:
    folder = finished[0] / "ablations" / "small-a" / "parts"
    with pytest.raises(UserError, match="cells of the grid 'parts'"):
        register(load_expanded(folder / "params.yaml"), folder, folder, folder, folder / "out.json")


def test_published_figures_stand_only_beside_their_data(finished: tuple[Path, str], tmp_path: Path) -> None:
    place, _ = finished
    folder = place / "ablations" / "small-a" / "parts"
    params = load_expanded(folder / "params.yaml")
    other = Ablation.model_validate({**GRID, "published": {**GRID["published"], "classes": 60}})  # type: ignore[dict-item]
    text = write_table(folder, params, other, {"baseline": "baseline", "mte": "mte", "mte_prn": "mte"})
    assert "88.5" not in text and "published" not in text
