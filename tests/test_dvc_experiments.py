"""`dvc exp`, `dvc metrics` and `dvc plots` on a real repository show the numbers that MLflow shows."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from small_run import annotations, small_params, write_raw

from pipeline.workspace import ROOT, fill_workspace

METRICS = "ensembles/small/development/summary.json"
CURVE = "ensembles/small/development/curves/{}/joint.json"


def call(place: Path, *command: str) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"DVC_NO_ANALYTICS": "1", "GIT_AUTHOR_NAME": "t", "GIT_COMMITTER_NAME": "t"}
    environment |= {"GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_EMAIL": "t@t"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def dvc(place: Path, *arguments: str) -> str:
    return call(place, sys.executable, "-m", "dvc", *arguments)


def tracked(place: Path, seed: int) -> Any:
    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small/development")
    runs = client.search_runs([experiment.experiment_id], f"tags.seed = '{seed}' and tags.member = 'joint'")
    return client, runs[0]


def points(plots: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return plots["data"][CURVE.format(name)][0]["content"]["data"]["values"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository whose first commit is a run of seed 0, and an experiment on it with seed 1."""
    place = tmp_path_factory.mktemp("experiments")
    call(place, "git", "init", "--quiet")
    dvc(place, "init", "--quiet")
    members = {"joint": {"model": "protogcn", "stream": "joint", "seed": 0}}
    content = small_params(members=members, ensembles={"two": {"members": {"joint": 1}}})
    content["datasets"]["small"]["recipe"] |= {"epochs": 3, "repeats": 6, "lr": 0.05}  # enough for seeds to differ
    fill_workspace(place, content)
    write_raw(place / "data" / "raw" / "small", annotations())
    (place / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    dvc(place, "repro", "ensemble")
    call(place, "git", "add", "--all")
    call(place, "git", "commit", "--quiet", "--message", "seed 0")
    dvc(place, "exp", "run", "--set-param", "members.joint.seed=1", "ensemble")
    return place


def test_metrics_are_those_of_the_tracked_runs(place: Path) -> None:
    shown = json.loads(dvc(place, "metrics", "diff", "--all", "--json"))[METRICS]
    runs = [tracked(place, seed)[1].data.metrics for seed in (0, 1)]
    for figure in ("dev/top1", "test/top1", "test/top5", "test/mean_class"):
        entry = shown[f"joint.{figure}"]
        assert (entry["old"], entry["new"]) == pytest.approx((runs[0][figure], runs[1][figure]))
    assert shown["ensemble two.test/top1"]["new"] == pytest.approx(runs[1]["test/top1"])


def test_plots_are_the_tracked_curves_of_both(place: Path) -> None:
    plots = json.loads(dvc(place, "plots", "diff", "HEAD", "workspace", "--json"))
    assert not plots.get("errors")
    for figure in ("train/loss", "dev/top1"):
        drawn: dict[str, dict[float, float]] = {"HEAD": {}, "workspace": {}}
        for point in points(plots, figure):
            drawn[point["rev"]][point["epoch"]] = point[figure]
        for seed, revision in enumerate(drawn):
            client, run = tracked(place, seed)
            history: dict[float, float] = {}
            for metric in sorted(client.get_metric_history(run.info.run_id, figure), key=lambda m: m.timestamp):
                history.setdefault(float(metric.step), metric.value)  # later ones at a step are of the evaluation
            assert drawn[revision] == pytest.approx(history) and len(history) == 3
        assert figure != "train/loss" or drawn["HEAD"] != drawn["workspace"]


def test_experiments_are_listed_with_their_parameter_and_figures(place: Path) -> None:
    listed = list(csv.DictReader(io.StringIO(dvc(place, "exp", "show", "--csv"))))
    named = {row["Experiment"] or row["rev"]: row for row in listed}
    experiment = next(row for row in listed if row["Experiment"])
    assert (named["workspace"]["members.joint.seed"], experiment["members.joint.seed"]) == ("1", "1")
    base = next(row for row in listed if row["rev"] not in ("workspace",) and not row["Experiment"])
    assert base["members.joint.seed"] == "0"
    for seed, row in ((0, base), (1, experiment)):
        assert float(row["joint.test/top1"]) == pytest.approx(tracked(place, seed)[1].data.metrics["test/top1"])
