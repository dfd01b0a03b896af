"""Every rule of `sixstream kfp lint` is triggered, and a good package passes."""

import copy
from pathlib import Path
from typing import Any

import pytest
from small_run import small_params

from components.params import parse_params
from model.errors import UserError
from pipeline.cli import main
from pipeline.kubeflow import compile_to, kfp_compile
from pipeline.kubeflow_lint import lint, load_package
from pipeline.workspace import ROOT

IMAGE = "here/sixstream@sha256:" + "0" * 64
DATA = "s3://bucket/dvc/files/md5/ab/cdef0123456789abcdef0123456789.dir"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("good") / "pipeline.yaml"
    compile_to(parse_params(small_params(compute={"image": IMAGE}), "here"), path, DATA, ROOT / "dvc.yaml")
    return load_package(path)


@pytest.fixture()
def spec(good: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(good)


def _container(spec: dict[str, Any], name: str = "train-joint") -> dict[str, Any]:
    container: dict[str, Any] = spec["deploymentSpec"]["executors"][f"exec-{name}"]["container"]
    return container


def test_a_good_package_passes(spec: dict[str, Any]) -> None:
    assert lint(spec) == []


@pytest.mark.parametrize("image", ["sixstream:gpu", "here/sixstream", "here/sixstream@sha256:00"])
def test_an_image_without_digest(spec: dict[str, Any], image: str) -> None:
    _container(spec)["image"] = image
    (fault,) = lint(spec)
    assert fault.startswith("train-joint: ") and "digest" in fault
    assert lint(spec, development=True) == []


@pytest.mark.parametrize("count", ["0", None])
def test_a_gpu_task_without_a_number_of_gpus(spec: dict[str, Any], count: str | None) -> None:
    accelerator = _container(spec)["resources"]["accelerator"]
    for key in ("resourceCount", "count"):
        accelerator.pop(key, None)
    if count:
        accelerator["resourceCount"] = count
    (fault,) = lint(spec)
    assert fault.startswith("train-joint: ") and "without a number" in fault


def test_a_gpu_task_without_a_memory_limit(spec: dict[str, Any]) -> None:
    for key in ("memoryLimit", "resourceMemoryLimit"):
        _container(spec)["resources"].pop(key, None)
    (fault,) = lint(spec)
    assert fault.startswith("train-joint: ") and "no memory limit" in fault


def test_a_retry_window_of_one_hour(tmp_path: Path) -> None:
    compute = {"image": IMAGE, "tasks": {"train": {"window": 1}}}
    params = parse_params(small_params(compute=compute), "here")
    with pytest.raises(UserError) as error:
        kfp_compile(params, tmp_path / "pipeline.yaml", DATA, ROOT / "dvc.yaml")
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == 2 and all("within 3600 s" in line and line.startswith("train-") for line in lines)
    assert not (tmp_path / "pipeline.yaml").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("MLFLOW_TRACKING_PASSWORD", "x"),
        ("HF_TOKEN", "x"),
        ("MLFLOW_TRACKING_URI", "http://me:secret@mlflow:5000"),
        ("SETTINGS", '{"store": "s3://key:secret@bucket/data"}'),
    ],
)
def test_a_credential_in_plain_text(spec: dict[str, Any], name: str, value: str) -> None:
    _container(spec, "report")["env"].append({"name": name, "value": value})
    (fault,) = lint(spec)
    assert fault.startswith(f"report: variable {name} ") and "secret@" not in fault


def test_an_address_is_no_credential(spec: dict[str, Any]) -> None:
    _container(spec, "report")["env"].append({"name": "MLFLOW_TRACKING_URI", "value": "http://mlflow:5000/a@b"})
    assert lint(spec) == []


def test_data_on_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    compile_to(parse_params(small_params(compute={"image": IMAGE}), "here"), path, "", ROOT / "dvc.yaml")
    (fault,) = lint(load_package(path))
    assert fault.startswith("importer: ") and "--data" in fault
    assert lint(load_package(path), development=True) == []


def _compiled(pipeline: Any, folder: Path) -> dict[str, Any]:
    from kfp import compiler

    compiler.Compiler().compile(pipeline, str(folder / "p.yaml"))
    return load_package(folder / "p.yaml")


def test_topologies_that_fail_on_clusters(tmp_path: Path) -> None:
    from kfp import dsl

    @dsl.component(base_image=IMAGE, install_kfp_package=False)
    def work(number: int) -> None:
        print(number)

    @dsl.component(base_image=IMAGE, install_kfp_package=False)
    def clean() -> None:
        pass

    @dsl.pipeline(name="loops")
    def loops() -> None:
        last = clean()
        with dsl.ExitHandler(last), dsl.ParallelFor([1, 2]) as number:
            work(number=number)

    cached, looped = sorted(lint(_compiled(loops, tmp_path)))
    assert cached.startswith("clean: a cached exit task") and "a loop inside an exit handler" in looped

    @dsl.pipeline(name="tidy")
    def tidy() -> None:
        last = clean().set_caching_options(False)
        with dsl.ExitHandler(last):
            work(number=1)

    assert lint(_compiled(tidy, tmp_path)) == []

    @dsl.pipeline(name="imports")
    def imports() -> None:
        with dsl.ParallelFor(["s3://a/b", "s3://a/c"]) as uri:
            dsl.importer(artifact_uri=uri, artifact_class=dsl.Artifact, reimport=False)

    (fault,) = lint(_compiled(imports, tmp_path))
    assert "importer inside a loop" in fault


def test_the_verb_says_what_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    golden = str(ROOT / "tests" / "golden" / "kubeflow.yaml")
    assert main(["kfp", "lint", golden]) == 1
    assert "has no digest" in capsys.readouterr().out
    assert main(["kfp", "lint", golden, "--development"]) == 0
    (tmp_path / "other.yaml").write_text("a: 1")
    assert main(["kfp", "lint", str(tmp_path / "other.yaml")]) == 2
