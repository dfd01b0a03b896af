"""`sixstream kfp doctor` against a small Kubernetes API and a pipeline server, both over HTTP."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kfp_server import serve_kfp
from kube_server import Kube, serve_kube
from small_run import small_params, write_params

from pipeline.cli import main
from pipeline.workspace import ROOT

IMAGE = "here/sixstream@sha256:" + "0" * 64
SPACE = "/api/v1/namespaces/team"
QUEUE = "/apis/kueue.x-k8s.io/v1beta1/namespaces/team/localqueues/night"
RUNTIME = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/team/trainingruntimes/sixstream-torch"
COMPUTE: dict[str, Any] = {
    "image": IMAGE,
    "secrets": {"s3": {"access": "AWS_ACCESS_KEY_ID"}},
    "pull_secrets": ["registry"],
    "queue": "night",
    "cache": {"claim": "raw"},
    "scratch": "s3://bucket/scratch",
    "tasks": {"train": {"nodes": 2, "node_selector": {"pool": "gpu"}}},
}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KF_PIPELINES_ENDPOINT", "SIXSTREAM_KFP_TOKEN", "KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def kube() -> Iterator[Kube]:
    """A cluster on which everything is well."""
    with serve_kube() as cluster:
        cluster.objects = {
            SPACE: {"metadata": {"name": "team"}, "status": {"phase": "Active"}},
            f"{SPACE}/serviceaccounts/sixstream-tasks": {"metadata": {"name": "sixstream-tasks"}},
            f"{SPACE}/secrets/s3": {"metadata": {"name": "s3"}, "data": {"access": "eA=="}},
            f"{SPACE}/secrets/registry": {"metadata": {}, "type": "kubernetes.io/dockerconfigjson"},
            f"{SPACE}/persistentvolumeclaims/raw": {"metadata": {}, "status": {"phase": "Bound"}},
            QUEUE: {"spec": {"clusterQueue": "all"}, "status": {"conditions": [{"type": "Active", "status": "True"}]}},
            RUNTIME: {"metadata": {"name": "sixstream-torch"}},
        }
        has = {"cpu": "16", "memory": "64Gi", "nvidia.com/gpu": "2"}
        node = {"metadata": {"labels": {"pool": "gpu"}}, "spec": {}, "status": {"allocatable": has}}
        quota = {"metadata": {"name": "q"}, "status": {"hard": {"requests.nvidia.com/gpu": "4"}, "used": {}}}
        cluster.lists = {"/api/v1/nodes": [node], f"{SPACE}/resourcequotas": [quota]}
        yield cluster


def _doctor(kube: Kube, folder: Path, *words: str, compute: dict[str, Any] = COMPUTE) -> int:
    params = write_params(folder, small_params(compute=compute))
    given = ["--params", str(params), "--graph", str(ROOT / "dvc.yaml"), "--namespace", "team"]
    return main(["kfp", "doctor", *given, "--kubeconfig", str(kube.kubeconfig(folder / "config")), *words])


def test_a_cluster_on_which_all_is_well(kube: Kube, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve_kfp(tmp_path / "server") as server:
        assert _doctor(kube, tmp_path, "--endpoint", server.address) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith("WRONG")]
    assert [line for line in lines if line.startswith("not checked")] == [
        f"not checked  image {IMAGE}: has a digest; that nodes can pull it, only a pod on them shows"
    ]
    assert "ok           nodes for train: 1 of 1 have 4 cpu, 16G memory, 1 nvidia.com/gpu with {'pool': 'gpu'}" in lines
    asked = [body["spec"] for method, path, body in kube.requests if path.endswith("/subjectaccessreviews")]
    assert {one["user"] for one in asked} == {"system:serviceaccount:team:sixstream-tasks"}
    assert ("create", "trainjobs") in {
        (one["resourceAttributes"]["verb"], one["resourceAttributes"]["resource"]) for one in asked
    }
    assert all(method == "GET" or path.endswith("reviews") for method, path, _ in kube.requests)  # it changes nothing


def _without(path: str) -> Any:
    return lambda kube: kube.objects.pop(path)


def _changed(path: str, **values: Any) -> Any:
    return lambda kube: kube.objects[path].update(values)


FAULTS = {
    "namespace team: is Terminating": _changed(SPACE, status={"phase": "Terminating"}),
    "service account sixstream-tasks: is not there": _without(f"{SPACE}/serviceaccounts/sixstream-tasks"),
    "secret s3: is not there": _without(f"{SPACE}/secrets/s3"),
    "secret s3: lacks access; it has other": _changed(f"{SPACE}/secrets/s3", data={"other": "eA=="}),
    "pull secret registry: is of type Opaque": _changed(f"{SPACE}/secrets/registry", type="Opaque"),
    "volume claim raw: is Lost": _changed(f"{SPACE}/persistentvolumeclaims/raw", status={"phase": "Lost"}),
    "queue night: is not there": _without(QUEUE),
    "queue night: no cluster queue": _changed(
        QUEUE, status={"conditions": [{"type": "Active", "status": "False", "message": "no cluster queue"}]}
    ),
    "runtime sixstream-torch: is not there": _without(RUNTIME),
    "right to create trainjobs: sixstream-tasks has it not": lambda kube: kube.denied.add(("create", "trainjobs")),
    "resource quota q: train needs 1 of requests.nvidia.com/gpu, 0 are left": lambda kube: kube.lists[
        f"{SPACE}/resourcequotas"
    ][0]["status"]["used"].update({"requests.nvidia.com/gpu": "4"}),
    "nodes for train: 0 of 1": lambda kube: kube.lists["/api/v1/nodes"][0]["metadata"].update(labels={}),
}


@pytest.mark.parametrize("expected", FAULTS)
def test_every_fault_is_found(kube: Kube, tmp_path: Path, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    FAULTS[expected](kube)
    assert _doctor(kube, tmp_path) == 1
    wrong = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WRONG")]
    assert wrong and all(expected in line or "nodes for evaluate" in line or "evaluate needs" in line for line in wrong)


def test_what_may_not_be_asked_is_said(kube: Kube, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kube.refused = {
        "/api/v1/nodes": 403,
        f"{SPACE}/secrets/s3": 403,
        "/apis/authorization.k8s.io/v1/subjectaccessreviews": 403,
    }
    compute = {**copy.deepcopy(COMPUTE), "image": "sixstream:latest"}
    assert _doctor(kube, tmp_path, compute=compute) == 1
    shown = capsys.readouterr().out
    assert "not checked  nodes: this account may not look (injected)" in shown
    assert "not checked  secret s3: this account may not look" in shown
    assert "not checked  right to create trainjobs: this account has it; whether sixstream-tasks has" in shown
    assert "not checked  pipeline server: name it with --endpoint" in shown
    assert "WRONG        image sixstream:latest: has no digest" in shown


def test_no_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = write_params(tmp_path, small_params())
    given = ["kfp", "doctor", "--params", str(params), "--graph", str(ROOT / "dvc.yaml")]
    assert main([*given, "--kubeconfig", str(tmp_path / "none"), "--endpoint", "http://127.0.0.1:9"]) == 2
    assert "--kubeconfig" in capsys.readouterr().err
    kube = Kube()
    kube.address = "http://127.0.0.1:9"
    assert main([*given, "--kubeconfig", str(kube.kubeconfig(tmp_path / "config"))]) == 75
