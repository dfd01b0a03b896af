"""A real MLflow server that is away at the start, in the middle or at the end: every metric arrives, once."""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import FaultProxy, fault_proxy
from mlflow_server import mlflow_server
from small_run import annotations, small_params, write_params, write_raw

from components import tracked_run
from components.params import load_params
from components.preprocess import preprocess
from components.tracked_run import logged_aside
from components.tracking import MEMBER_TAG, PIPELINE_TAG, connect, sync
from pipeline.workspace import ROOT

EPOCHS = 6
MOMENTS = {"start": range(0, 2), "middle": range(2, 4), "end": range(4, 7)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Iterator[str]:
    """The address of one server for all of this file."""
    place = tmp_path_factory.mktemp("server")
    shutil.copy(database, place)
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        with mlflow_server(place) as (address, _):
            yield address


@pytest.fixture
def proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with fault_proxy(server) as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.address)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
        monkeypatch.setattr(tracked_run, "RETRY_SECONDS", 0.05)
        yield proxy


def figures(epoch: int) -> dict[str, float]:
    return {"train/loss": 1.0 / (1 + epoch), "dev/top1": 0.1 * epoch}


def tracked(server: str, experiment: str, tag: str, key: str) -> Any:
    """The only run with this tag, asked of the server itself."""
    client = connect_to(server)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id], f"tags.`{tag}` = '{key}'")
    assert len(found) == 1, f"{len(found)} runs for {tag}"
    return found[0]


def connect_to(server: str) -> Any:
    import mlflow

    return mlflow.MlflowClient(server)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("fault", ["refuse", "hang", "error", "lose answers"])
def test_every_metric_arrives_once(
    server: str, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    fault: str, moment: str,
) -> None:  # fmt: skip
    experiment = f"outage/{fault.replace(' ', '-')}-{moment}"
    history = [{"epoch": epoch, **figures(epoch)} for epoch in range(EPOCHS)]

    def begin(epoch: int) -> None:
        proxy.fault = fault if epoch in MOMENTS[moment] else ""

    begin(0)
    tracker = connect(tmp_path)
    with caplog.at_level(logging.WARNING):
        parent = tracker.parent_run(experiment, "pipeline", "tiny", {"lr": 0.1})
        with tracker.member_run(experiment, "m", "member", parent, system_metrics=False) as run:
            run.log_params({"lr": 0.1})
            with logged_aside(run) as log:
                for epoch in range(EPOCHS):
                    before = proxy.faults
                    log(epoch, figures(epoch))
                    limit = time.monotonic() + 5
                    while fault and epoch in MOMENTS[moment] and proxy.faults == before and time.monotonic() < limit:
                        time.sleep(0.01)
                    begin(epoch + 1)
            run.log_history(history)
            run.log_final({"test/top1": 0.9}, step=EPOCHS)
        tracker.end_parent(experiment, parent)
    assert proxy.faults > 0
    assert caplog.text.count("cannot be reached") == 1
    proxy.fault = ""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    sync(tmp_path)
    assert not list((tmp_path / ".work" / "tracking").glob("*.jsonl"))

    client = connect_to(server)
    found, above = (
        tracked(server, experiment, MEMBER_TAG, "member"),
        tracked(server, experiment, PIPELINE_TAG, "pipeline"),
    )
    assert (found.info.status, above.info.status) == ("FINISHED", "FINISHED")
    assert found.data.params == above.data.params == {"lr": "0.1"}
    assert found.data.tags["mlflow.parentRunId"] == above.info.run_id
    for key in ("train/loss", "dev/top1"):
        points = [(point.step, point.value) for point in client.get_metric_history(found.info.run_id, key)]
        assert sorted(points) == [(epoch, figures(epoch)[key]) for epoch in range(EPOCHS)], key
    assert [point.value for point in client.get_metric_history(found.info.run_id, "test/top1")] == [0.9]


def test_a_training_goes_on_without_its_server_and_its_curve_is_delivered(
    server: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    """The real command, whose server hangs from the first checkpoint on; then `sixstream tracking sync`."""
    parameters = small_params()
    parameters["datasets"]["small"]["recipe"] |= {"checkpoint_steps": 1, "epochs": 4}
    write_params(tmp_path, parameters)
    raw = write_raw(tmp_path / "raw", annotations())
    preprocess(load_params(tmp_path / "params.yaml"), raw, tmp_path / "packed")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    verb = [sys.executable, "-m", "pipeline.cli"]
    line = [*verb, "train", "--member", "joint", "--data", "packed", "--out", "train"]
    with subprocess.Popen(line, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list((tmp_path / ".work" / "checkpoints").glob("*/epoch-*")):
            time.sleep(0.02)
        proxy.fault = "hang"
        said = process.communicate()[1]
    assert process.returncode == 0, said
    assert said.count("cannot be reached") == 1, said
    proxy.fault = ""
    environment["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "60"
    done = subprocess.run([*verb, "tracking", "sync"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "lines of 1 runs delivered" in done.stderr, done.stderr
    client = connect_to(server)
    experiment = client.get_experiment_by_name("small/development")
    (run,) = client.search_runs([experiment.experiment_id], "attributes.run_name = 'protogcn/joint/s0'")
    assert run.info.status == "FINISHED"
    history = json.loads((tmp_path / "train" / "history.json").read_text())
    points = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "train/loss")]
    assert sorted(points) == [(record["epoch"], record["train/loss"]) for record in history]
