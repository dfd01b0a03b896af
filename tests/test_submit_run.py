"""Submit → run → watch → registered model: kfp's client, a server that runs the package, a real MLflow server."""

import re
from pathlib import Path

import pytest
from kfp_server import serve_kfp
from mlflow_server import mlflow_server
from small_run import annotations, small_params, write_params, write_raw, write_remote

from components.tracking import MEMBER_TAG, PIPELINE_TAG
from pipeline.cli import main
from pipeline.workspace import ROOT


def test_a_run_lost_half_way_ends_with_a_registered_model(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import mlflow

    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "SIXSTREAM_KFP_TOKEN", "SIXSTREAM_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").write_bytes(database.read_bytes())
    data = write_remote(tmp_path / "remote", write_raw(tmp_path / "raw" / "small", annotations(18)))
    monkeypatch.chdir(work)
    with mlflow_server(tmp_path / "mlflow") as (tracking, _), serve_kfp(tmp_path / "server", token="t0ken") as server:
        content = small_params(compute={"env": {"MLFLOW_TRACKING_URI": tracking}})
        content["datasets"]["small"]["recipe"]["epochs"] = 1
        write_params(work, content)
        server.lose_after = "train-joint"
        words = ["kfp", "submit", "--endpoint", server.address, "--token", "t0ken", "--development", "--resubmit", "1"]
        words += ["--data", data, "--graph", str(ROOT / "dvc.yaml"), "--poll", "0.5", "--watch"]
        assert main(words) == 0, capsys.readouterr()
        shown = capsys.readouterr().out
        first, second = server.runs.values()
        assert first.state == "FAILED" and "node was lost" in shown
        assert {"entry", "preprocess"} <= first.tasks.keys() and not {"entry", "preprocess"} & second.tasks.keys()
        assert {"ensemble", "report", "register"} <= second.tasks.keys()
        assert re.search(r"run [\w-]+: SUCCEEDED", shown)

        client = mlflow.MlflowClient(tracking)
        version = client.get_model_version_by_alias("small-a-ensemble", "champion")
        assert version.version == "1"
        experiment = client.get_experiment_by_name("small/development")
        runs = client.search_runs([experiment.experiment_id])
        members = [run for run in runs if MEMBER_TAG in run.data.tags]
        (parent,) = (run for run in runs if PIPELINE_TAG in run.data.tags)
        assert sorted(run.data.tags["member"] for run in members) == ["bone", "joint"]
        assert {run.data.tags["mlflow.parentRunId"] for run in members} == {parent.info.run_id}
        assert {run.info.status for run in (*members, parent)} == {"FINISHED"}
