"""Runs are found by what they hold, resumed and never doubled, and a server that goes away stops nothing."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow_server import mlflow_server
from tiny_bundle import tiny_bundle, tiny_store

from components import tracked_run
from components.journal import Journal
from components.tracking import MEMBER_TAG, PIPELINE_TAG, Tracker, connect, sync
from model.errors import UserError

EXPERIMENT = "tiny/split-development"
ROOT = Path(__file__).resolve().parent.parent
HISTORY = [{"epoch": e, "train/loss": 1 / (1 + e), "dev/top1": None if e % 2 else 0.5} for e in range(4)]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tracked_run, "SYSTEM_METRICS_SECONDS", 0.2)


@pytest.fixture
def workspace(tmp_path: Path, database: Path) -> Path:
    folder = tmp_path / "a b"
    folder.mkdir()
    shutil.copy(database, folder)
    return folder


@pytest.fixture
def tracker(workspace: Path) -> Tracker:
    return connect(workspace)


def points(tracker: Tracker, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in tracker.client.get_metric_history(run_id, key))


def test_another_workspace_is_another_database(tracker: Tracker, database: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    shutil.copy(database, tmp_path / "other")
    other = connect(tmp_path / "other")
    assert tracker.uri != other.uri
    tracker.client.create_registered_model("mine")
    assert [model.name for model in tracker.client.search_registered_models()] == ["mine"]
    assert not other.client.search_registered_models()


def test_a_kill_while_the_database_is_made_spoils_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    class Killed(BaseException):
        pass

    def half(uri: str = "") -> None:
        """As a kill among MLflow's migrations leaves it, which MLflow cannot open again."""
        with sqlite3.connect(uri.removeprefix("sqlite:///") or tmp_path / "mlflow.db") as database:
            database.execute("CREATE TABLE secrets (id INTEGER)")
        raise Killed

    with monkeypatch.context() as fault, pytest.raises(Killed):
        fault.setattr(mlflow, "MlflowClient", half)
        connect(tmp_path)
    tracker = connect(tmp_path)
    assert tracker.client.search_experiments()[0].name == "Default"
    assert [path.name for path in tmp_path.glob("*mlflow.db*")] == ["mlflow.db"]


def test_embedded_store_lies_in_the_workspace(tracker: Tracker) -> None:
    with tracker.member_run(EXPERIMENT, "protogcn/joint/s0", "member", system_metrics=False) as run:
        run.log_text("note.txt", "kept")
        run.log_file(ROOT / "pyproject.toml", "code")
    experiment = tracker.client.get_experiment_by_name(EXPERIMENT)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert (tracker.workspace / "mlflow.db").is_file()
    kept = {path.name for path in (tracker.workspace / "mlartifacts").rglob("*") if path.is_file()}
    assert kept == {"note.txt", "pyproject.toml"}


def test_parent_and_member_are_found_again(tracker: Tracker) -> None:
    parents = {tracker.parent_run(EXPERIMENT, "pipeline", "tiny", {"recipe": {"lr": 0.1}}) for _ in range(2)}
    assert len(parents) == 1
    parent = parents.pop()
    ids = set()
    for _ in range(2):
        with tracker.member_run(EXPERIMENT, "protogcn/joint/s0", "member", parent, {"stream": "joint"}) as run:
            assert run.run_id is not None
            ids.add(run.run_id)
            run.log_params({"net": {"width": 24, "stages": [1, 2]}, "lr": 0.1})
            run.log_history(HISTORY)
            run.log_metrics({"train/loss": 0.1}, step=4)
            run.log_dataset("tiny", "a" * 32 + ".dir", "raw")
            time.sleep(0.5)  # for the machine's load
    assert len(ids) == 1
    found = tracker.client.get_run(ids.pop())
    assert found.info.status == "FINISHED" and found.info.run_name == "protogcn/joint/s0"
    assert found.data.tags["mlflow.parentRunId"] == parent and found.data.tags["stream"] == "joint"
    assert found.data.params == {"net.width": "24", "net.stages": "[1, 2]", "lr": "0.1"}
    assert points(tracker, found.info.run_id, "train/loss") == [(0, 1), (1, 0.5), (2, 1 / 3), (3, 0.25), (4, 0.1)]
    assert points(tracker, found.info.run_id, "dev/top1") == [(0, 0.5), (2, 0.5)]
    (dataset,) = found.inputs.dataset_inputs
    assert dataset.dataset.digest == "a" * 32 + ".dir"
    assert any(key.startswith("system/cpu") for key in found.data.metrics)
    tracker.end_parent(EXPERIMENT, parent)
    assert tracker.client.get_run(parent).info.status == "FINISHED"
    assert tracker.client.get_run(parent).data.params == {"recipe.lr": "0.1"}


def test_final_figures_replace_older_ones(tracker: Tracker) -> None:
    for value in (0.5, 0.5, 0.7):
        with tracker.member_run(EXPERIMENT, "m", "member", system_metrics=False) as run:
            run.log_final({"test/top1": value}, step=9)
    assert run.run_id is not None
    assert tracker.client.get_run(run.run_id).data.metrics == {"test/top1": 0.7}
    assert len(points(tracker, run.run_id, "test/top1")) == 2


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_exceptions_end_the_run(tracker: Tracker, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), tracker.member_run(EXPERIMENT, "m", "member", system_metrics=False) as run:
        raise error
    assert run.run_id is not None
    assert tracker.client.get_run(run.run_id).info.status == status


def test_environment_is_logged(tracker: Tracker) -> None:
    with tracker.member_run(EXPERIMENT, "m", "member", system_metrics=False) as run:
        run.log_environment(ROOT)
    assert run.run_id is not None
    tags = tracker.client.get_run(run.run_id).data.tags
    assert tags["sixstream.python"].startswith("3.") and tags["sixstream.torch"] != "not installed"
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    expected = commit.stdout.strip() if commit.returncode == 0 else "unknown"
    assert tags["mlflow.source.git.commit"].removesuffix("-changed") == expected
    packages = next((tracker.workspace / "mlartifacts").rglob("packages.txt")).read_text().splitlines()
    assert any(line.startswith("numpy==") for line in packages)


def test_run_of_the_cluster_is_used(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tracker.client.create_run(tracker.experiment_id(EXPERIMENT)).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", own)
    assert tracker.parent_run(EXPERIMENT, "pipeline", "tiny", {}) == own
    with tracker.member_run(EXPERIMENT, "m", "member", own, {"stream": "bone"}, system_metrics=False) as run:
        run.log_metrics({"train/loss": 1.0}, step=0)
    with tracker.ensemble_run(EXPERIMENT, "ensemble/two", "ensemble", own) as fused:
        fused.log_final({"test/top1": 0.9})
    tracker.end_parent(EXPERIMENT, own)
    assert run.run_id == own
    tags = tracker.client.get_run(own).data.tags
    assert tags[MEMBER_TAG] == "member" and tags["stream"] == "bone" and "mlflow.parentRunId" not in tags
    assert len(tracker.client.search_runs([tracker.experiment_id(EXPERIMENT)])) == 2
    assert fused.run_id is not None
    assert tracker.client.get_run(fused.run_id).data.tags["mlflow.parentRunId"] == own


def test_members_that_were_not_trained_again_are_linked(tracker: Tracker) -> None:
    first = tracker.parent_run(EXPERIMENT, "first", "tiny", {})
    with tracker.member_run(EXPERIMENT, "protogcn/joint/s0", "member", first, system_metrics=False) as run:
        run.log_final({"test/top1": 0.5})
    second = tracker.parent_run(EXPERIMENT, "second", "tiny", {})
    assert tracker.link_member(EXPERIMENT, first, "member", "protogcn/joint/s0", {}) == run.run_id
    link = {
        tracker.link_member(EXPERIMENT, second, "member", "protogcn/joint/s0", {"test/top1": 0.5}) for _ in range(2)
    }
    assert len(link) == 1
    shown = tracker.client.get_run(link.pop())
    assert shown.data.tags["mlflow.parentRunId"] == second
    assert shown.data.tags["sixstream.original_run"] == run.run_id
    assert shown.data.metrics == {"test/top1": 0.5} and shown.info.status == "FINISHED"


def test_bundle_is_logged_once_with_its_metrics(tracker: Tracker, tmp_path: Path) -> None:
    store = tiny_store(tmp_path / "store")
    bundle = tiny_bundle(tmp_path / "bundle", store, weights=(1.0,))
    for _ in range(2):
        with tracker.member_run(EXPERIMENT, "m", "member", system_metrics=False) as run:
            uris = {run.log_model("best", bundle, {"test/top1": 0.5}, ("tiny", store.data_hash), step=3)}
            uris.add(run.log_model("best", bundle, {"test/top1": 0.5}, ("tiny", store.data_hash), step=3))
            run.log_final({"test/top1": 0.6}, step=5)
    (uri,) = uris
    assert uri is not None and run.run_id is not None
    model = tracker.client.get_logged_model(uri.removeprefix("models:/"))
    assert (model.name, model.source_run_id, model.status) == ("best", run.run_id, "READY")
    (metric,) = model.metrics
    assert (metric.key, metric.value, metric.step, metric.dataset_digest) == ("test/top1", 0.5, 3, store.data_hash)
    assert [output.model_id for output in tracker.client.get_run(run.run_id).outputs.model_outputs] == [model.model_id]
    assert tracker.client.get_run(run.run_id).data.metrics["test/top1"] == 0.6
    assert len(tracker.client.search_logged_models([tracker.experiment_id(EXPERIMENT)])) == 1


def test_processes_that_start_at_once_share_one_database(tmp_path: Path) -> None:
    code = (
        "import sys; from components.tracking import connect\n"
        f"tracker = connect(sys.argv[1]); parent = tracker.parent_run({EXPERIMENT!r}, 'key', 'tiny', {{'a': 1}})\n"
        f"with tracker.member_run({EXPERIMENT!r}, 'm', sys.argv[2], parent, system_metrics=False) as run:\n"
        "    run.log_history([{'epoch': e, 'train/loss': 1.0} for e in range(5)])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), f"member{i}"], env=environment) for i in range(2)
    ]
    assert [process.wait(120) for process in started] == [0, 0]
    tracker = connect(tmp_path)
    runs = tracker.client.search_runs([tracker.experiment_id(EXPERIMENT)])
    assert sorted(run.data.tags.get(PIPELINE_TAG, "member") for run in runs) == ["key", "member", "member"]
    assert not list((tmp_path / ".work").rglob("*.jsonl"))


def test_what_can_never_be_logged_is_dropped(tracker: Tracker, tmp_path: Path) -> None:
    with tracker.member_run(EXPERIMENT, "m", "member", system_metrics=False) as run:
        run.log_file(tmp_path / "gone.txt")
        run.log_metrics({"no:such*name": 1.0}, step=0)
        run.log_metrics({"train/loss": 1.0}, step=0)
    assert run.run_id is not None
    assert tracker.client.get_run(run.run_id).data.metrics == {"train/loss": 1.0}
    assert not list((tracker.workspace / ".work").rglob("*.jsonl"))


def test_server_never_reached(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything waits, the parent too, and is delivered in order to the database that is there later."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    tracker = connect(workspace)
    parent = tracker.parent_run(EXPERIMENT, "pipeline", "tiny", {"lr": 0.1})
    with tracker.member_run(EXPERIMENT, "m", "member", parent) as run:
        run.log_params({"lr": 0.1})
        run.log_history(HISTORY)
        bundle = tiny_bundle(workspace / "bundle", tiny_store(workspace / "store"), weights=(1.0,))
        assert run.log_model("best", bundle, {"test/top1": 0.5}, step=3) is None
        shutil.rmtree(bundle)  # delivered from the journal's copy
    tracker.end_parent(EXPERIMENT, parent)
    assert run.run_id is None
    with pytest.raises(UserError, match="cannot be reached"):
        sync(workspace)

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert set(sync(workspace)) == {"pipeline", "member"}
    tracker = connect(workspace)
    member, made = (tracker.find(EXPERIMENT, *pair) for pair in ((MEMBER_TAG, "member"), (PIPELINE_TAG, "pipeline")))
    assert member is not None and made is not None
    assert member.data.tags["mlflow.parentRunId"] == made.info.run_id
    assert (member.info.status, made.info.status) == ("FINISHED", "FINISHED")
    assert len(points(tracker, member.info.run_id, "train/loss")) == len(HISTORY)
    (model,) = tracker.client.search_logged_models([tracker.experiment_id(EXPERIMENT)])
    assert (model.name, model.status, model.metrics[0].value) == ("best", "READY", 0.5)
    assert sync(workspace) == {}
    assert {path.suffix for path in (workspace / ".work" / "tracking").iterdir()} == {".lock"}


def test_server_killed_in_the_middle(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with mlflow_server(workspace) as (address, kill):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        tracker = connect(workspace)
        parent = tracker.parent_run(EXPERIMENT, "pipeline", "tiny", {})
        store = tiny_store(workspace / "store")
        bundle = tiny_bundle(workspace / "bundle", store, weights=(1.0,))
        with tracker.member_run(EXPERIMENT, "m", "member", parent) as run:
            uri = run.log_model("best", bundle, {"test/top1": 0.8}, ("tiny", store.data_hash), step=2)
            for epoch in range(6):
                if epoch == 3:
                    kill()
                run.log_metrics({"train/loss": 1.0 / (1 + epoch), "dev/top1": 0.1 * epoch}, step=epoch)
            run.log_final({"test/top1": 0.9}, step=5)
    journal = Journal(workspace / ".work" / "tracking" / "member.jsonl")
    kept = [line["operation"] for line in journal.lines()]
    assert kept == ["open", "metrics", "metrics", "metrics", "metrics", "status"]

    with journal.path.open("a") as stream:
        stream.write('{"operation": "metr')  # a process killed while it wrote
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert sync(workspace) == {"member": 5}
    tracker = connect(workspace)
    found = tracker.find(EXPERIMENT, MEMBER_TAG, "member")
    assert found is not None and found.info.run_id == run.run_id and found.info.status == "FINISHED"
    assert [step for step, _ in points(tracker, found.info.run_id, "train/loss")] == list(range(6))
    assert found.data.metrics["test/top1"] == 0.9
    assert not journal.pending
    assert uri is not None and tracker.client.get_logged_model(uri.removeprefix("models:/")).metrics[0].value == 0.8


def test_undelivered_lines_stay_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "key.jsonl")
    for step in range(3):
        journal.append({"key": "key"}, "metrics", {"points": [["a", 1.0, step, 0, False]]})
    journal.keep(journal.lines()[2:])
    steps = [line["payload"]["points"][0][2] for line in journal.lines()[1:]]
    assert steps == [1, 2] and json.loads(journal.path.read_text().splitlines()[0])["operation"] == "open"
    journal.keep([])
    assert not journal.pending and journal.lines() == []
