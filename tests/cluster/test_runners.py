"""One pipeline, three orchestrators: DVC, kfp's subprocess runner and kfp's Docker runner make the same bytes."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from cluster_kit import environment, sixstream
from s3_server import S3
from small_run import annotations, small_params, write_params, write_raw

from components.storage import dvc_md5, dvc_object
from pipeline.workspace import ROOT, fill_workspace

CLIPS = 36


class Runs(NamedTuple):
    """Folders by orchestrator, and what a further run needs."""

    dvc: Path
    subprocess: Path
    docker: Path
    address: str  # of the raw data in the object store
    variables: dict[str, str]


def _content(images: dict[str, dict[str, Any]], epochs: int = 1, **compute: Any) -> dict[str, Any]:
    content = small_params(compute={"image": images["cpu"]["image"], **compute})
    content["datasets"]["small"]["recipe"]["epochs"] = epochs
    return content


def _kfp(place: Path, content: dict[str, Any], *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`sixstream kfp run` in a folder that has the parameters."""
    place.mkdir(parents=True, exist_ok=True)
    write_params(place, content)
    return sixstream("kfp", "run", "--graph", str(ROOT / "dvc.yaml"), *arguments, place=place, **variables)


def _task(place: Path, name: str) -> Path:
    (made,) = place.glob(f"kfp-runs/sixstream-small-*/{name}/out")
    return made


@pytest.fixture(scope="module")
def variables(tracking: str, s3: S3) -> dict[str, str]:
    """What reaches tracking server and object store."""
    return {**s3.environment, "MLFLOW_TRACKING_URI": tracking}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, images: dict[str, Any], variables: dict[str, str], s3: S3) -> Runs:
    """The pipeline by all three; raw data by DVC in the object store, tracking to the server in its container."""
    top = tmp_path_factory.mktemp("runners")
    by_dvc, content = top / "dvc", _content(images)
    fill_workspace(by_dvc, content)
    write_raw(by_dvc / "data" / "raw" / "small", annotations(CLIPS))

    def dvc(*arguments: str) -> None:
        command = [sys.executable, "-m", "dvc", *arguments]
        done = subprocess.run(command, cwd=by_dvc, env=environment(**variables), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    dvc("remote", "add", "--default", "store", "s3://bucket/dvc")
    dvc("remote", "modify", "store", "endpointurl", s3.endpoint)
    dvc("add", "--quiet", "data/raw/small")
    dvc("push", "data/raw/small.dvc")
    dvc("repro", "report", "register")
    (raw,) = yaml.safe_load((by_dvc / "data/raw/small.dvc").read_text())["outs"]
    address = dvc_object("s3://bucket/dvc", raw["md5"])
    for runner in ("subprocess", "docker"):
        done = _kfp(top / runner, content, "--local", runner, "--data", address, **variables)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    return Runs(by_dvc, top / "subprocess", top / "docker", address, variables)


@pytest.mark.parametrize("runner", ["subprocess", "docker"])
def test_bytes_are_those_of_dvc(runs: Runs, runner: str) -> None:
    place = getattr(runs, runner)
    assert dvc_md5(_task(place, "preprocess")) == dvc_md5(runs.dvc / "data/packed/small")
    for member in ("joint", "bone"):
        scores = _task(place, f"evaluate-{member}")
        assert dvc_md5(scores) == dvc_md5(runs.dvc / f"runs/small/development/{member}/scores")
        assert len(list(scores.glob("*-a_test.npz"))) >= 1
    assert dvc_md5(_task(place, "ensemble")) == dvc_md5(runs.dvc / "ensembles/small/development")


def test_dvc_records_the_bytes_that_containers_made(runs: Runs) -> None:
    """The md5 in dvc.lock, not only what lies in the workspace."""
    lock = yaml.safe_load((runs.dvc / "dvc.lock").read_text())["stages"]
    for stage, task in (("preprocess", "preprocess"), ("evaluate@joint", "evaluate-joint"), ("ensemble", "ensemble")):
        assert dvc_md5(_task(runs.docker, task)) == lock[stage]["outs"][0]["md5"]


def test_tracking_has_one_run_a_member_whoever_ran_it(runs: Runs) -> None:
    """Equal code, parameters and data are one run; the containers' models are registered versions of their own."""
    from mlflow import MlflowClient

    client = MlflowClient(runs.variables["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("small/development")
    names = [run.info.run_name for run in client.search_runs([experiment.experiment_id])]
    for member in ("joint", "bone"):
        assert names.count(f"protogcn/{member}/s0") == 1
    assert client.get_model_version_by_alias("small-a-ensemble", "champion")


def test_a_failed_container_fails_the_run_with_its_message(runs: Runs, images: dict[str, Any], tmp_path: Path) -> None:
    content = _content(images)
    content["datasets"]["small"]["data"]["reader"] = "nonsense"
    done = _kfp(tmp_path / "run", content, "--local", "docker", "--data", runs.address, **runs.variables)
    assert done.returncode == 2 and "data.reader: 'nonsense' is none of" in done.stdout
    assert "kfp run:" in done.stderr and not list((tmp_path / "run").rglob("train-joint"))


BURN = [sys.executable, "-c", "while True: pass"]


def test_every_failed_container_is_a_failure_under_load(images: dict[str, Any], tmp_path: Path) -> None:
    """kfp's own runner calls some of these a success (kubeflow/pipelines#13332): 13 of 60 were seen under load."""
    from kfp import local
    from kfp.local import docker_task_handler, status

    from pipeline.kubeflow_local import run_container

    own = docker_task_handler.run_docker_container
    burning = [subprocess.Popen(BURN) for _ in range(2 * (os.cpu_count() or 1))]
    docker_task_handler.run_docker_container = run_container
    try:
        runner = local.DockerRunner(network_mode="none")

        def outcome(code: int) -> Any:
            command = ["sh", "-c", f"exit {code}"]
            return docker_task_handler.DockerTaskHandler(images["cpu"]["image"], command, str(tmp_path), runner).run()

        assert [outcome(3) for _ in range(30)] == [status.Status.FAILURE] * 30
        assert outcome(0) == status.Status.SUCCESS
    finally:
        docker_task_handler.run_docker_container = own
        for process in burning:
            process.kill()
            process.wait()


def test_a_killed_training_is_retried_and_ends_with_the_same_weights(
    variables: dict[str, str], images: dict[str, Any], engine: Any, tmp_path: Path
) -> None:
    """SIGKILL once its first checkpoint of an epoch under way is there; the second container goes on from it."""
    content = _content(images, epochs=8, tasks={"train": {"retries": 2, "backoff": 1, "accelerators": 0}})
    content["datasets"]["small"]["recipe"] |= {"batch_size": 2, "checkpoint_steps": 2}
    content |= {"members": {"joint": content["members"]["joint"]}}
    content |= {"ensembles": {"two": {"members": {"joint": 1}}}}
    undisturbed, raw = tmp_path / "undisturbed", Path("data") / "raw" / "small"
    for folder in (undisturbed, tmp_path / "run"):
        write_raw(folder / raw, annotations(CLIPS))  # on this machine; containers have it mounted
    write_params(undisturbed, content)
    for command in (
        ["preprocess", "--raw", str(raw), "--out", "packed"],
        ["train", "--member", "joint", "--data", "packed", "--out", "trained"],
    ):
        done = sixstream(*command, place=undisturbed)
        assert done.returncode == 0, done.stderr[-3000:]

    killed: list[str] = []
    over = threading.Event()

    def killer() -> None:
        checkpoints = tmp_path / "run" / "kfp-runs" / "checkpoints"
        while not over.is_set() and not killed:
            if list(checkpoints.glob("*/*.pt")):
                for container in engine.containers.list(filters={"ancestor": images["cpu"]["image"]}):
                    if "train@joint" in str(container.attrs["Args"]):
                        container.kill("SIGKILL")
                        killed.append(container.id)
            time.sleep(0.02)

    watching = threading.Thread(target=killer)
    watching.start()
    try:
        done = _kfp(tmp_path / "run", content, "--local", "docker", "--retry", **variables)
    finally:
        over.set()
        watching.join()
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    assert len(killed) == 1 and "FAILURE" in done.stdout and "SUCCESS" in done.stdout  # of the attempt, of the run
    assert "cannot be reached" not in done.stdout + done.stderr  # models are logged from containers, too
    assert "champion" in _task(tmp_path / "run", "register").read_text()
    trained = _task(tmp_path / "run", "train-joint")
    for name in ("best.pt", "last.pt"):
        assert dvc_md5(trained / name) == dvc_md5(undisturbed / "trained" / name)


def test_two_processes_train_in_one_container(runs: Runs, images: dict[str, Any], engine: Any, tmp_path: Path) -> None:
    """torchrun --standalone in a container gives the weights of the same two processes on this machine."""
    content = _content(images)
    packed = str(runs.dvc / "data/packed/small")
    for folder in ("here", "container"):
        (tmp_path / folder).mkdir()
        write_params(tmp_path / folder, content)
    command = ["train", "--member", "joint", "--data", packed, "--out", "trained", "--processes", "2"]
    done = sixstream(*command, place=tmp_path / "here")
    assert done.returncode == 0, done.stderr[-3000:]
    engine.containers.run(
        images["cpu"]["image"],
        command,
        remove=True,
        user=f"{os.getuid()}:{os.getgid()}",
        network_mode="host",
        shm_size="1g",
        environment={"OMP_NUM_THREADS": "1", **runs.variables},
        volumes={str(tmp_path / "container"): {"bind": "/workspace"}, packed: {"bind": packed, "mode": "ro"}},
    )
    here, there = (tmp_path / folder / "trained" / "last.pt" for folder in ("here", "container"))
    assert dvc_md5(here) == dvc_md5(there)


def test_what_containers_lack_is_said(images: dict[str, Any], tmp_path: Path) -> None:
    """No tracking server, no such image."""
    untracked = _kfp(tmp_path / "untracked", _content(images), "--local", "docker", MLFLOW_TRACKING_URI="")
    assert untracked.returncode == 2 and "set MLFLOW_TRACKING_URI" in untracked.stderr
    content = _content({"cpu": {"image": "127.0.0.1:9/nowhere:1"}})
    absent = _kfp(tmp_path / "absent", content, "--local", "docker", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert absent.returncode == 2 and "127.0.0.1:9/nowhere:1 is not on this machine" in absent.stderr
