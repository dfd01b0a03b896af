"""The whole graph through real DVC and real MLflow, on a small dataset: serially, again, and side by side."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from small_run import annotations, small_params, write_params, write_raw

from pipeline.run import table
from pipeline.workspace import ROOT, fill_workspace

RUN = [sys.executable, "-m", "pipeline.cli"]


def _sixstream(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.run([*RUN, *arguments], cwd=place, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which `sixstream run` has gone through."""
    place = tmp_path_factory.mktemp("pipeline") / "work"
    fill_workspace(place, small_params())
    write_raw(place / "data" / "raw" / "small", annotations())
    done = _sixstream(place, "run")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for line in ("ensemble two", "report: reports/small/development/report.html", "mlflow ui"):
        assert line in done.stdout
    return place


def _metrics(place: Path) -> dict[str, Any]:
    return json.loads((place / "ensembles/small/development/metrics.json").read_text())


def test_results_table_names_every_member_and_split(finished: Path) -> None:
    lines = table(_metrics(finished), ["joint", "bone"], ["two"])
    assert sum(line.startswith(("joint ", "bone ", "ensemble two ")) for line in lines) == 6
    assert any(line.startswith("a_test (12 clips)") for line in lines)


def test_data_hash_is_dvcs_own(finished: Path) -> None:
    lock = yaml.safe_load((finished / "dvc.lock").read_text())
    recorded = next(dep["md5"] for dep in lock["stages"]["preprocess"]["deps"] if dep["path"] == "data/raw/small")
    store = json.loads((finished / "data/packed/small/store.json").read_text())
    assert store["data_hash"] == recorded
    from model.scoretable import load_table

    assert load_table(finished / "runs/small/development/joint/scores/best-a_test.npz").data_hash == recorded


def test_again_there_is_nothing_to_do(finished: Path) -> None:
    began = (finished / "dvc.lock").stat().st_mtime_ns
    done = _sixstream(finished, "run")
    assert done.returncode == 0 and "Running stage" not in done.stdout
    assert "ensemble two" in done.stdout and (finished / "dvc.lock").stat().st_mtime_ns == began


def _client(place: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{place / 'mlflow.db'}")


def test_tracking_holds_one_run_a_member_under_one_parent(finished: Path) -> None:
    client = _client(finished)
    experiment = client.get_experiment_by_name("small/development")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"pipeline/a", "protogcn/joint/s0", "protogcn/bone/s0", "ensemble/two"}
    parent = runs["pipeline/a"].info.run_id
    metrics = _metrics(finished)["members"]
    for member in ("joint", "bone"):
        run = runs[f"protogcn/{member}/s0"]
        assert run.data.tags["mlflow.parentRunId"] == parent and run.info.status == "FINISHED"
        chosen = metrics[member][metrics[member]["chosen"]]
        assert run.data.metrics["test/top1"] == pytest.approx(chosen["a_test"]["top1"])
        assert run.data.metrics["dev/top1"] == pytest.approx(chosen["development"]["top1"])
        history = client.get_metric_history(run.info.run_id, "train/loss")
        assert sorted(point.step for point in history) == [1, 2]
        assert {model.name for model in client.search_logged_models([experiment.experiment_id])} >= {"best", "last"}


def test_every_run_and_registered_version_names_the_md5_of_the_data(finished: Path) -> None:
    lock = yaml.safe_load((finished / "dvc.lock").read_text())["stages"]
    md5 = next(dep["md5"] for dep in lock["preprocess"]["deps"] if dep["path"] == "data/raw/small")
    client = _client(finished)
    for run in client.search_runs([client.get_experiment_by_name("small/development").experiment_id]):
        (seen,) = run.inputs.dataset_inputs
        assert (seen.dataset.name, seen.dataset.digest) == ("small", md5), run.info.run_name
    for name in ("small-a-ensemble", "small-a-protogcn-joint", "small-a-protogcn-bone"):
        tags = client.get_model_version(name, "1").tags
        assert tags["data_md5"] == md5 and tags["stage"] == "dvc register"
        assert tags["store_md5"] == lock["preprocess"]["outs"][0]["md5"]
    for part, stage in (("train", "train@bone"), ("scores", "evaluate@bone")):
        assert tags[f"{part}_md5"] == lock[stage]["outs"][0]["md5"]


def test_ensemble_is_one_registered_model_that_names_its_members(finished: Path) -> None:
    client = _client(finished)
    version = client.get_model_version_by_alias("small-a-ensemble", "champion")
    bundle = json.dumps(version.tags)
    for member in ("small-a-protogcn-joint", "small-a-protogcn-bone"):
        assert client.search_model_versions(f"name='{member}'")
        assert member in bundle
    outcome = json.loads((finished / "registered/small/development.json").read_text())
    assert "champion" in outcome["message"]


def test_lineage_of_the_champion_is_whole(finished: Path) -> None:
    done = _sixstream(finished, "lineage", "models:/small-a-ensemble@champion", "--json")
    links = json.loads(done.stdout)["links"]
    # Only where these tests run on uncommitted code may something be missing: that commit.
    assert {link["what"] for link in links if link["state"] == "missing"} <= {"code"}, links
    raw = next(link for link in links if link["what"] == "raw data")
    assert raw["name"].endswith("data/raw/small") and raw["found"].startswith("in its folder")
    assert any("by dvc register" in link["name"] for link in links if link["what"] == "pipeline")
    cached = [link["what"] for link in links if link["found"] == "in DVC's cache"]
    assert sorted(cached) == ["scores", "scores", "store", "training", "training"]


def test_prediction_equals_the_pipelines_scores(finished: Path) -> None:
    """Raw clips through the registered model give the fused scores of the test split."""
    from model.scoretable import load_table

    fused = load_table(finished / "ensembles/small/development/two/a_test.npz")
    arrays = {sample["frame_dir"]: sample["keypoint"] for sample in annotations()["annotations"]}
    np.savez(finished / "clips.npz", **{name: arrays[name] for name in fused.ids})
    done = _sixstream(finished, "predict", "models:/small-a-ensemble@champion", "clips.npz", "--out", "answers.json")
    assert done.returncode == 0, done.stderr[-2000:]
    answers = {a["id"].split("/")[-1]: a["scores"] for a in json.loads((finished / "answers.json").read_text())}
    assert list(answers) == fused.ids
    np.testing.assert_allclose(np.array(list(answers.values())), fused.scores, atol=1e-6)


def test_members_side_by_side(finished: Path) -> None:
    """A changed recipe trains both members at once through a local server, and a champion must be beaten."""
    params = small_params()
    params["datasets"]["small"]["recipe"]["epochs"] = 1
    write_params(finished, params)
    began = time.time()
    done = _sixstream(finished, "run", "--jobs", "2")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for member in ("joint", "bone"):
        assert (finished / f"runs/small/development/{member}/train/last.pt").stat().st_mtime > began
    again = _sixstream(finished, "run", "--jobs", "2")
    assert again.returncode == 0 and "Running stage" not in again.stdout
    client = _client(finished)
    experiment = client.get_experiment_by_name("small/development")
    parents = [r for r in client.search_runs([experiment.experiment_id]) if r.info.run_name == "pipeline/a"]
    assert len(parents) == 2
    versions = client.search_model_versions("name='small-a-ensemble'")
    assert len(versions) == 2
