"""Training on several nodes: the TrainJob's manifest, and its life against a small Kubernetes API over HTTP.

In the last test the API's controller really starts the nodes, as processes that exchange files over a real S3 server.
"""

import copy
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from kube_server import Kube, serve_kube
from s3_server import serve_s3
from small_run import annotations, small_params, write_params, write_raw

from components.params import parse_params
from components.preprocess import preprocess
from components.storage import dvc_md5, file_md5
from model.errors import UserError
from pipeline import trainjob
from pipeline.kubeflow import compile_to
from pipeline.task import run_stages
from pipeline.trainjob import checked, manifest, run_on_nodes, settings
from pipeline.workspace import ROOT

JOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/team/trainjobs"
PODS = "/api/v1/namespaces/team/pods"
POD = {"name": "task-pod", "uid": "task-uid", "namespace": "team"}
IMAGE = "here/sixstream@sha256:" + "0" * 64
TRAIN = {"nodes": 2, "accelerators": 4, "timeout": 10, "shm": "8Gi", "node_selector": {"pool": "gpu"},
         "tolerations": [{"key": "gpu"}]}  # fmt: skip
COMPUTE: dict[str, Any] = {
    "image": IMAGE, "queue": "night", "pull_secrets": ["registry"], "scratch": "s3://bucket/scratch",
    "env": {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}, "secrets": {"s3": {"key": "AWS_SECRET_ACCESS_KEY"}},
    "tasks": {"train": TRAIN},
}  # fmt: skip


def _given(compute: dict[str, Any] = COMPUTE) -> dict[str, Any]:
    return dict(json.loads(settings(parse_params(small_params(compute=compute), "here").compute)))


def test_the_manifest_is_what_trainer_knows() -> None:
    job = checked(manifest(_given(), "it", POD, "{}"))
    assert job["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Pod", "name": "task-pod", "uid": "task-uid"}
    ]
    assert job["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "night"} and job["spec"]["suspend"]
    trainer = job["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 4)
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == "4"
    secret = {"secretKeyRef": {"name": "s3", "key": "key"}}
    assert {"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": secret} in trainer["env"]
    assert job["spec"]["activeDeadlineSeconds"] == 36000


def _pod_spec(job: Any) -> Any:
    patch = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]
    return patch["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda job: job["spec"].update(podTemplateOverrides=[]), "TrainJob.spec.podTemplateOverrides"),
        (lambda job: job["spec"]["trainer"].update(gpus=4), "TrainJob.spec.trainer.gpus"),
        (lambda job: _pod_spec(job).update(nodeSelectors={}), "spec.nodeSelectors"),
        (lambda job: job["spec"]["trainer"].update(numNodes="two"), "numNodes"),
    ],
)
def test_fields_that_trainer_does_not_know_are_refused(change: Callable[[Any], None], path: str) -> None:
    job = copy.deepcopy(manifest(_given(), "it", POD, "{}"))
    change(job)
    with pytest.raises(UserError, match=path):
        checked(job)


def test_the_task_of_several_nodes_asks_for_no_gpu(tmp_path: Path) -> None:
    params = parse_params(small_params(compute=COMPUTE), "here")
    compile_to(params, tmp_path / "p.yaml", "s3://b/files/md5/ab/c.dir", ROOT / "dvc.yaml")
    spec, platform = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
    train = spec["deploymentSpec"]["executors"]["exec-train-joint"]["container"]
    assert "accelerator" not in train["resources"]
    assert json.loads(next(one["value"] for one in train["env"] if one["name"] == "SIXSTREAM_TRAINJOB")) == _given()
    own = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-train-joint"]
    assert {one["name"]: one["fieldPath"] for one in own["fieldPathAsEnv"]} == {
        "SIXSTREAM_POD_NAME": "metadata.name",
        "SIXSTREAM_POD_UID": "metadata.uid",
        "SIXSTREAM_POD_NAMESPACE": "metadata.namespace",
    }


@pytest.fixture
def kube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kube]:
    with serve_kube() as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig(tmp_path / "config")))
        monkeypatch.setattr(trainjob, "POLL", 0.05)
        cluster.lists[PODS] = []
        yield cluster


def _condition(kind: str, message: str = "") -> dict[str, Any]:
    return {"conditions": [{"type": kind, "status": "True", "message": message, "reason": "x",
                            "lastTransitionTime": "2026-01-01T00:00:00Z"}]}  # fmt: skip


def _pod(name: str, code: int, disrupted: bool = False) -> dict[str, Any]:
    ended = {"name": "node", "image": "i", "imageID": "i", "ready": False, "restartCount": 0,
             "state": {"terminated": {"exitCode": code}}}  # fmt: skip
    status: dict[str, Any] = {"phase": "Failed", "containerStatuses": [ended]}
    if disrupted:
        status["conditions"] = [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]
    return {"metadata": {"name": name}, "status": status}


@pytest.mark.parametrize(
    ("pods", "code", "said"),
    [
        ([_pod("a", 2), _pod("b", 1)], 2, "exit codes {'a': 2, 'b': 1}"),
        ([_pod("a", 1)], 1, "exit codes {'a': 1}"),
        ([_pod("a", 137), _pod("b", 143, disrupted=True)], 75, "b was taken off its node (PreemptionByScheduler)"),
        ([], 1, "no image"),
        (None, 75, "somebody has deleted it"),
    ],
)
def test_its_failure_becomes_the_tasks(
    kube: Kube, tmp_path: Path, capfd: pytest.CaptureFixture[str], pods: list[Any] | None, code: int, said: str
) -> None:
    def controller(path: str, job: Any) -> None:
        if pods is None:
            del kube.objects[path]
        else:
            kube.lists[PODS] = pods
            kube.texts |= {f"{PODS}/{pod['metadata']['name']}/log": "its own words\n" for pod in pods}
            job["status"] = _condition("Failed", "no image")

    kube.made = controller
    (tmp_path / "params.yaml").write_text("x")
    given = _given() | {"scratch": str(tmp_path / "scratch")}
    files = {"params.yaml": dvc_md5(tmp_path / "params.yaml")}
    assert run_on_nodes(given, POD, "sixstream train", tmp_path, files, "out", tmp_path / "facts") == code
    shown = capfd.readouterr()
    assert said in shown.err
    assert "a: its own words" in shown.out or not pods
    assert not [path for path in kube.objects if path.startswith(JOBS)]
    assert "DELETE" in {method for method, path, _ in kube.requests}
    selector = [path for method, path, _ in kube.requests if path == PODS]
    assert selector or pods is None


def test_a_cluster_that_refuses_is_a_message(kube: Kube, tmp_path: Path) -> None:
    kube.refused[JOBS] = 403
    with pytest.raises(UserError, match=r"refused to make the TrainJob .*\(403.*injected"):
        run_on_nodes(_given() | {"scratch": str(tmp_path)}, POD, "sixstream train", tmp_path, {}, "out", tmp_path / "f")


def test_two_nodes_train_as_two_processes_do(
    kube: Kube, tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same checkpoints, byte by byte; the job is followed and removed, the output says its run."""
    content = small_params(compute={"scratch": "s3://bucket/scratch", "tasks": {"train": {"nodes": 2}}})
    content["datasets"]["small"]["recipe"]["epochs"] = 1
    params = parse_params(content, "here")
    write_params(tmp_path, content)
    preprocess(params, write_raw(tmp_path / "raw", annotations(18)), tmp_path / "packed")
    (tmp_path / "mlflow.db").write_bytes(database.read_bytes())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("SIXSTREAM_WORKSPACE", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    nodes: list[subprocess.Popen[str]] = []

    def controller(path: str, job: Any) -> None:
        """What Trainer and the kubelet do: the nodes with torchrun's variables, their logs, the job's condition."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        given = {one["name"]: one["value"] for one in job["spec"]["trainer"]["env"] if "value" in one}
        rendezvous = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": "127.0.0.1",
                      "PET_MASTER_PORT": str(port)}  # fmt: skip
        for number in range(2):
            environment = {**os.environ, **given, **rendezvous, "PET_NODE_RANK": str(number)}
            command = [sys.executable, *job["spec"]["trainer"]["command"][1:]]
            log = (tmp_path / f"node-{number}.log").open("w")
            nodes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, text=True))

        def wait() -> None:
            codes = [node.wait() for node in nodes]
            for number in range(2):
                kube.texts[f"{PODS}/node-{number}/log"] = (tmp_path / f"node-{number}.log").read_text()
            kube.lists[PODS] = [_pod(f"node-{number}", code) for number, code in enumerate(codes)]
            job["status"] = _condition("Failed" if any(codes) else "Complete")

        Thread(target=wait, daemon=True).start()

    kube.made = controller
    with serve_s3() as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("SIXSTREAM_PARAMS", json.dumps(content))
        monkeypatch.setenv("SIXSTREAM_TRAINJOB", settings(params.compute))
        for key, value in POD.items():
            monkeypatch.setenv(f"SIXSTREAM_POD_{key.upper()}", value)
        out = SimpleNamespace(path=str(tmp_path / "by-nodes"), metadata={})
        packed = SimpleNamespace(path=str(tmp_path / "packed"), uri="s3://pipeline/packed")
        command = "sixstream train --member joint --data data/packed/small --out runs/joint"
        places = {"out": "runs/joint", "preprocess": "data/packed/small"}
        try:
            run_stages("train@joint", command, places, {"preprocess": packed}, [out])
        finally:
            for node in nodes:
                node.kill()
    assert out.metadata["member"] == "joint" and out.metadata["md5"] == dvc_md5(out.path)
    assert out.metadata["mlflow_run_id"] and not [path for path in kube.objects if path.startswith(JOBS)]
    assert "node-0: joint: " in capfd.readouterr().out  # what the nodes printed
    alone = tmp_path / "alone"
    alone.mkdir()
    words = ["train", "--member", "joint", "--data", "../packed", "--params", "../params.yaml", "--out", "joint"]
    command_line = [sys.executable, "-m", "pipeline.cli", *words, "--processes", "2"]
    subprocess.run(command_line, cwd=alone, check=True, capture_output=True)
    for name in ("best.pt", "last.pt"):  # the learning curve has times of its own
        assert file_md5(alone / "joint" / name) == file_md5(Path(out.path) / name)
