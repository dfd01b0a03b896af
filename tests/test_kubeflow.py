"""The Kubeflow pipeline: the same graph as DVC's, the committed package, and a run by kfp with the same bytes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_run import annotations, small_params, write_params, write_raw, write_remote

from components.params import parse_params
from components.storage import dvc_md5
from components.tracking import connect
from model.errors import UserError
from model.store import open_store
from pipeline.ablate import grid_content
from pipeline.catalogue import entry, load_expanded
from pipeline.graph import plain
from pipeline.kubeflow import compile_to, kfp_compile
from pipeline.kubeflow_lint import load_package
from pipeline.workspace import ROOT, fill_workspace

GOLDEN = ROOT / "tests" / "golden" / "kubeflow.yaml"


def _tasks(spec: dict[str, Any]) -> dict[str, tuple[Any, set[str], str, dict[str, Any]]]:
    """stage → (task, stages it waits for, command, settings) of a compiled pipeline."""
    tasks = spec["root"]["dag"]["tasks"]
    given = {
        key: {name: value["runtimeValue"]["constant"] for name, value in task["inputs"]["parameters"].items()}
        for key, task in tasks.items()
        if key != "importer"
    }
    return {
        values["name"]: (
            tasks[key],
            {given[before]["name"] for before in tasks[key].get("dependentTasks", []) if before != "importer"},
            values["command"],
            json.loads(values["settings"]),
        )
        for key, values in given.items()
    }


@pytest.mark.parametrize("which", ["default", "small", "umurl"])
def test_both_graphs_are_the_same(tmp_path: Path, which: str) -> None:
    """Stages, edges, command lines and parameters, against what DVC itself makes of dvc.yaml."""
    from dvc.dependency import ParamsDependency
    from dvc.repo import Repo

    content = small_params() if which == "small" else yaml.safe_load((ROOT / "params.yaml").read_text())
    fill_workspace(tmp_path, content)
    further = "pipeline/unsupervised/dvc.yaml"
    params = load_expanded(tmp_path / "params.yaml")
    entry(params, tmp_path / "runs" / params.dataset / "entry.json")
    pipeline = "umurl" if which == "umurl" else "members"
    compile_to(params, tmp_path / "pipeline.yaml", "", tmp_path / "dvc.yaml", pipeline=pipeline)
    ours = _tasks(load_package(tmp_path / "pipeline.yaml"))
    with Repo(str(tmp_path)) as repo:
        graph = repo.index.graph
        theirs = {stage.name: stage for stage in graph.nodes if stage.path_in_repo == "dvc.yaml"}
        if which == "umurl":  # the members' stages are of the other pipeline
            theirs = {name: theirs[name] for name in ("sample-data", "entry", "preprocess")}
            theirs |= {stage.name: stage for stage in graph.nodes if stage.path_in_repo == further}
        if which == "small":
            del theirs["sample-data"]  # of another dataset
        assert set(ours) == set(theirs)
        for name, stage in theirs.items():
            _, before, command, settings = ours[name]
            assert before == {other.name for other in graph.successors(stage)}, name
            assert command == stage.cmd
            tracked = {}
            for dep in stage.deps:
                if isinstance(dep, ParamsDependency):
                    file = "" if dep.def_path == "params.yaml" else f"{dep.def_path}:"
                    tracked |= {f"{file}{key}": value for key, value in dep.read_params().items()}
            assert settings == tracked, name


def test_the_committed_package_is_what_the_default_parameters_give(tmp_path: Path) -> None:
    """After a change that is meant: sixstream kfp compile --development -o tests/golden/kubeflow.yaml"""
    compile_to(load_expanded(ROOT / "params.yaml"), tmp_path / "pipeline.yaml", "", ROOT / "dvc.yaml")
    assert (tmp_path / "pipeline.yaml").read_text() == GOLDEN.read_text()


def test_only_training_and_evaluation_get_an_accelerator() -> None:
    spec = load_package(GOLDEN)
    executors = spec["deploymentSpec"]["executors"]
    for name, (task, *_) in _tasks(spec).items():
        container = executors[spec["components"][task["componentRef"]["name"]]["executorLabel"]]["container"]
        assert ("accelerator" in container["resources"]) == name.startswith(("train@", "evaluate@"))
        assert task["retryPolicy"]["maxRetryCount"] and task["cachingOptions"] == {"enableCache": True}


def test_compute_reaches_the_tasks(tmp_path: Path) -> None:
    taint = {"key": "gpu", "operator": "Equal", "value": "yes"}
    compute = {
        "image": "here/sixstream@sha256:" + "0" * 64,
        "env": {"MLFLOW_TRACKING_URI": "http://mlflow:5000"},
        "secrets": {"s3": {"key": "AWS_SECRET_ACCESS_KEY"}},
        "tasks": {
            "train": {
                "accelerator": "nvidia.com/mig-1g.10gb",
                "accelerators": 2,
                "node_selector": {"pool": "spot"},
                "tolerations": [taint],
                "window": 100,
            },
            "evaluate": {"accelerators": 0},
        },
    }
    more = {"pull_secrets": ["registry"], "queue": "night", "cache": {"claim": "raw-data"}}
    compute["tasks"]["train"] |= {"timeout": 30, "shm": "8Gi"}
    params = parse_params(small_params(compute=compute | more), "here")
    data = "s3://bucket/dvc/files/md5/ab/cdef0123456789abcdef0123456789.dir"
    assert kfp_compile(params, tmp_path / "pipeline.yaml", data, ROOT / "dvc.yaml") == 0
    spec, platform = yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text())
    executors = spec["deploymentSpec"]["executors"]
    train, evaluate = (executors[f"exec-{verb}-joint"]["container"] for verb in ("train", "evaluate"))
    assert train["image"] == compute["image"]
    assert train["resources"]["accelerator"]["resourceType"] == "nvidia.com/mig-1g.10gb"
    assert "accelerator" not in evaluate["resources"]
    assert _tasks(spec)["train@joint"][2].endswith("/train --processes 2")
    assert {"name": "MLFLOW_TRACKING_URI", "value": "http://mlflow:5000"} in train["env"]
    own = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-train-joint"]
    assert own["nodeSelector"]["labels"] == {"pool": "spot"}
    assert own["tolerations"][0]["key"] == "gpu" and own["secretAsEnv"][0]["keyToEnv"][0]["secretKey"] == "key"
    (shm,) = own["emptyDirMounts"]
    assert shm["mountPath"] == "/dev/shm" and shm["medium"] == "Memory" and shm["sizeLimit"] == "8Gi"
    assert own["activeDeadlineSeconds"] == "108000"
    assert own["securityContext"] == {"runAsUser": "1000", "runAsGroup": "1000", "runAsNonRoot": True}
    assert own["imagePullSecret"][0]["secretName"] == "registry"
    assert own["podMetadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "night"}
    reader = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-preprocess"]
    assert "pvcMount" not in own and reader["pvcMount"][0]["mountPath"] == "/var/cache/sixstream"
    kept = executors["exec-preprocess"]["container"]["env"]
    assert {"name": "SIXSTREAM_CACHE", "value": "/var/cache/sixstream"} in kept
    retry = spec["root"]["dag"]["tasks"]["train-joint"]["retryPolicy"]
    assert retry["backoffMaxDuration"] == "360000s"
    importer = executors["exec-importer"]["importer"]
    assert importer["artifactUri"]["constant"] == data and not importer.get("reimport")
    assert importer["metadata"] == {"md5": "abcdef0123456789abcdef0123456789.dir"}


def test_an_accelerator_that_nothing_uses_is_refused() -> None:
    with pytest.raises(UserError, match="compute.tasks: report: has no use for an accelerator"):
        parse_params(small_params(compute={"tasks": {"report": {"accelerators": 1}}}), "here")


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        ({"tasks": {"train": {"timeout": 30, "window": 20}}}, "retries start only within 20 h"),
        ({"tasks": {"train": {"members_per_task": 2, "accelerators": 2}}}, "shares one accelerator"),
        ({"tasks": {"evaluate": {"members_per_task": 2}}}, "are for train"),
        ({"tasks": {"train": {"nodes": 2}}}, "scratch: .*s3://"),
        ({"cache": {"claim": "a", "size": "1Gi"}}, "one of both"),
        ({"user": 0}, "user: .*greater than 0"),
    ],
)
def test_what_does_not_fit_together_is_refused(compute: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"compute.*{message}"):
        parse_params(small_params(compute=compute), "here")


def test_weights_in_a_file_of_this_machine_are_refused(tmp_path: Path) -> None:
    members = small_params()["members"]
    members["joint"] |= {"train": "finetune", "weights": "weights/joint.pt"}
    with pytest.raises(UserError, match="members.joint.weights: weights/joint.pt .* models:/NAME/VERSION"):
        compile_to(parse_params(small_params(members=members), "here"), tmp_path / "p.yaml", "", ROOT / "dvc.yaml")
    members["joint"]["weights"] = "models:/joint/1"
    compile_to(parse_params(small_params(members=members), "here"), tmp_path / "p.yaml", "", ROOT / "dvc.yaml")


def test_a_grid_is_one_fan_out(tmp_path: Path) -> None:
    """Every cell that differs, from every seed: trained and tested, nothing fused."""
    params = load_expanded(ROOT / "params.yaml")
    name, grid = next(iter(params.ablations.items()))
    with pytest.raises(UserError, match=f"--pipeline nothing: choose members, umurl, {name}"):
        compile_to(params, tmp_path / "p.yaml", "", ROOT / "dvc.yaml", pipeline="nothing")
    compile_to(params, tmp_path / "p.yaml", "", ROOT / "dvc.yaml", pipeline=name)
    ours = _tasks(load_package(tmp_path / "p.yaml"))
    content, trained_as = grid_content(plain(params), name, grid)
    cells = {f"{cell}-s{seed}" for cell in trained_as.values() for seed in grid.seeds}
    assert {key for key in ours if key.startswith("evaluate@")} == {f"evaluate@{cell}" for cell in cells}
    assert {key for key in ours if "@" not in key} == {"sample-data", "entry", "preprocess"}
    variables = load_package(tmp_path / "p.yaml")["deploymentSpec"]["executors"]["exec-preprocess"]["container"]["env"]
    sent = json.loads(next(one["value"] for one in variables if one["name"] == "SIXSTREAM_PARAMS"))
    assert sent["ablation"] == content["ablation"]


def test_members_share_a_pod(tmp_path: Path) -> None:
    """As many trainings to a task as asked; every member keeps an evaluation of its own, fed by its own output."""
    members = {name: {"model": "protogcn", "stream": "joint", "seed": k} for k, name in enumerate("abc")}
    content = small_params(members=members, ensembles={"two": {"members": {"a": 1, "c": 1}}})
    content["compute"] = {"tasks": {"train": {"members_per_task": 2}}, "cache": {"size": "9Gi"}}
    compile_to(parse_params(content, "here"), tmp_path / "p.yaml", "s3://b/c", ROOT / "dvc.yaml")
    spec = load_package(tmp_path / "p.yaml")
    tasks = spec["root"]["dag"]["tasks"]
    assert {key for key in tasks if key.startswith("train")} == {"train-a", "train-c"}
    assert tasks["train-a"]["taskInfo"]["name"] == "train a, train b"
    named = {key: value for key, value in tasks.items() if key.startswith("evaluate")}
    sources = {
        key: next(
            (one["taskOutputArtifact"]["producerTask"], one["taskOutputArtifact"]["outputArtifactKey"])
            for name, one in task["inputs"]["artifacts"].items()
            if name.startswith("train")
        )
        for key, task in named.items()
    }
    assert sources == {
        "evaluate-a": ("train-a", "out_0"),
        "evaluate-b": ("train-a", "out_1"),
        "evaluate-c": ("train-c", "out"),
    }


def test_names_that_mislead_are_refused(tmp_path: Path) -> None:
    content = small_params(compute={"tasks": {"trian": {"cpu": "8"}}})
    with pytest.raises(UserError, match="compute.tasks.trian: .* there are .*train"):
        compile_to(parse_params(content, "here"), tmp_path / "p.yaml", "", ROOT / "dvc.yaml")
    members = {**small_params()["members"], "bo-ne": {"model": "protogcn", "stream": "bone"}}
    members["bo_ne"] = members["bo-ne"]
    with pytest.raises(UserError, match="train@bo_ne and train@bo-ne"):
        compile_to(parse_params(small_params(members=members), "here"), tmp_path / "p.yaml", "", ROOT / "dvc.yaml")


def _kfp_run(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    shutil.copyfile(ROOT / "dvc.yaml", place / "dvc.yaml")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "pipeline.cli", "kfp", "run", "--local", "subprocess", *arguments]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)


def test_a_run_by_kfp_gives_the_verbs_bytes(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed store, score tables and ensemble; the raw data come from a DVC remote by their md5."""
    import torch

    from components.ensemble import ensemble
    from components.evaluate import score_trained
    from components.preprocess import preprocess
    from components.train import train

    content = small_params()
    content["datasets"]["small"]["recipe"]["epochs"] = 1
    content["compute"] = {"tasks": {"train": {"members_per_task": 2}}}  # both in one pod, with the bytes of each alone
    assert list(content["members"]) != sorted(content["members"])  # sums and tables go by their order
    params = parse_params(content, "here")
    by_kfp, directly = tmp_path / "kfp", tmp_path / "directly"
    for folder in (by_kfp, directly):
        folder.mkdir()
        shutil.copyfile(database, folder / "mlflow.db")
    write_params(by_kfp, content)
    raw = Path("data") / "raw" / "small"  # the store names it
    write_raw(directly / raw, annotations())
    done = _kfp_run(by_kfp, "--data", write_remote(tmp_path / "remote", directly / raw))
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    (made,) = (by_kfp / "kfp-runs").glob("sixstream-small-*")

    monkeypatch.chdir(directly)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        preprocess(params, raw, Path("packed"))
        for member in params.members:
            train(params, member, Path("packed"), Path("runs") / member / "train")
            score_trained(
                params, member, Path("packed"), Path("runs") / member / "train", Path("runs") / member / "scores"
            )
    finally:
        torch.set_num_threads(threads)
    ensemble(params, Path("runs"), Path("fused"))
    assert dvc_md5(made / "preprocess" / "out") == dvc_md5("packed")
    for member in params.members:
        assert dvc_md5(made / f"evaluate-{member}" / "out") == dvc_md5(Path("runs") / member / "scores")
    assert dvc_md5(made / "ensemble" / "out") == dvc_md5("fused")
    output = json.loads((made / "ensemble" / "executor_output.json").read_text())
    assert output["artifacts"]["out"]["artifacts"][0]["metadata"] == {"stage": "ensemble", "md5": dvc_md5("fused")}
    (trained,) = made.glob("train-*/executor_output.json")
    told = [one["artifacts"][0]["metadata"] for _, one in sorted(json.loads(trained.read_text())["artifacts"].items())]
    assert [one["member"] for one in told] == list(params.members) and told[0]["mlflow_run_id"]
    assert {one["data_hash"] for one in told} == {open_store(Path("packed")).data_hash}
    output = json.loads((made / "evaluate-joint" / "executor_output.json").read_text())
    assert output["artifacts"]["out"]["artifacts"][0]["metadata"]["mlflow_model_best"].startswith("models:/m-")
    assert (made / "report" / "out" / "report.html").is_file()
    assert "champion" in json.loads((made / "register" / "out").read_text())["message"]
    assert len(list((by_kfp / "kfp-runs" / "checkpoints").iterdir())) == len(params.members)
    assert not (by_kfp / "data").exists() and not (by_kfp / "runs").exists()
    version = connect(by_kfp).client.get_model_version_by_alias("small-a-ensemble", "champion")
    assert version.tags["stage"] == "kfp register" and version.tags["store_md5"] == dvc_md5("packed")


def test_a_failed_task_fails_the_run_with_its_message(tmp_path: Path) -> None:
    content = small_params()
    content["datasets"]["small"]["data"]["reader"] = "nonsense"
    write_params(tmp_path, content)
    write_raw(tmp_path / "data" / "raw" / "small", annotations(6))
    done = _kfp_run(tmp_path)
    assert done.returncode == 2 and "data.reader: 'nonsense' is none of" in done.stdout
    assert re.search(r"kfp run: .*preprocess", done.stderr) and not list(tmp_path.rglob("train-joint"))
