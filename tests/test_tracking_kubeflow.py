"""One run per member on a real MLflow server, with the runs that Kubeflow's launcher makes and names to its tasks."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import mlflow_server
from small_run import annotations, small_params, write_params, write_raw

from components.params import parse_params
from components.preprocess import preprocess
from components.tracking import ENSEMBLE_TAG, LINK_TAG, MEMBER_TAG, PIPELINE_TAG, connect
from pipeline.workspace import ROOT


def test_one_run_per_member(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes train, a retry follows, then an evaluation: each task has a run of the launcher's."""
    import mlflow

    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "SIXSTREAM_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
    content = small_params()
    content["datasets"]["small"]["recipe"]["epochs"] = 1
    params = parse_params(content, "here")
    write_params(tmp_path, content)
    preprocess(params, write_raw(tmp_path / "raw", annotations(18)), tmp_path / "packed")
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").write_bytes(database.read_bytes())
    with mlflow_server(tmp_path / "mlflow") as (address, _):
        client = mlflow.MlflowClient(address)
        experiment = client.create_experiment("of-kubeflow")
        pipeline = client.create_run(experiment, run_name="pipeline").info.run_id

        def task(*words: str) -> str:
            """Run a verb as a task; the id of the run that the launcher made of it."""
            own = client.create_run(experiment, tags={"mlflow.parentRunId": pipeline}, run_name=words[0]).info.run_id
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": address, "MLFLOW_RUN_ID": own}
            command = [sys.executable, "-m", "pipeline.cli", *words, "--member", "joint", "--data", "packed"]
            folder = tmp_path / own
            folder.mkdir()
            for name in ("params.yaml", "packed", "trained"):
                if (tmp_path / name).exists():
                    (folder / name).symlink_to(tmp_path / name)
            subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
            return str(own)

        first = task("train", "--out", str(tmp_path / "trained"), "--processes", "2")
        again = task("train", "--out", "elsewhere")
        scored = task("evaluate", "--trained", "trained", "--out", "scores")

        runs: dict[str, Any] = {run.info.run_id: run for run in client.search_runs([experiment])}
        assert runs.keys() == {pipeline, first, again, scored}  # nobody made another, of the pipeline's least of all
        assert not any(PIPELINE_TAG in run.data.tags for run in runs.values())
        assert [key for key, run in runs.items() if MEMBER_TAG in run.data.tags] == [first]
        assert {runs[key].data.tags["sixstream.original_run"] for key in (again, scored)} == {first}
        assert len(client.get_metric_history(first, "train/loss")) == 1
        assert "test/top1" in runs[first].data.metrics and not runs[scored].data.metrics.get("test/top1")
        assert runs[first].info.status == "FINISHED"
        assert [one.name for one in client.search_experiments()] == ["of-kubeflow", "Default"]

        # Ensembles and links of a later task hang below the pipeline's run, beside the member's.
        late = client.create_run(experiment, tags={"mlflow.parentRunId": pipeline}).info.run_id
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setenv("MLFLOW_RUN_ID", late)
        tracker = connect(tmp_path)
        parent = tracker.parent_run("small/development", "key", "pipeline", {})
        key = runs[first].data.tags[MEMBER_TAG]
        assert parent == pipeline
        assert tracker.link_member("small/development", parent, key, "joint", {}) == first
        with tracker.ensemble_run("small/development", "two", "fused", parent) as fused:
            fused.log_final({"test/top1": 0.5})
        tracker.end_parent("small/development", parent)
        found = {tag: client.search_runs([experiment], f"tags.`{tag}` != ''") for tag in (ENSEMBLE_TAG, LINK_TAG)}
        assert found[ENSEMBLE_TAG][0].data.tags["mlflow.parentRunId"] == pipeline and not found[LINK_TAG]
        assert client.get_run(pipeline).info.status == "RUNNING"  # it is the launcher's to end
