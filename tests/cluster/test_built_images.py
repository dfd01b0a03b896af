"""The images as they were built: size, user, labels, and what is not in them."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_kit import answers, free_port, sixstream

from components.environment import code_commit
from pipeline.workspace import ROOT

SCAN = """
import importlib.util, json, os, shutil
print(json.dumps({
    "user": os.getuid(),
    "programs": [name for name in ("cc", "gcc", "g++", "ld", "make", "git", "dvc", "pip") if shutil.which(name)],
    "packages": [name for name in ("dvc", "mlflow", "torch", "kfp", "optuna") if importlib.util.find_spec(name)],
}))
"""


def _scan(engine: Any, image: str) -> dict[str, Any]:
    found = engine.containers.run(image, ["-c", SCAN], entrypoint="python", remove=True)
    answer: dict[str, Any] = json.loads(found)
    return answer


@pytest.mark.parametrize(("target", "packages"), [("cpu", ["mlflow", "torch", "kfp"]), ("mlflow", ["mlflow"])])
def test_an_image_holds_what_it_needs_and_no_compiler(engine, images, target, packages) -> None:
    found = _scan(engine, images[target]["image"])
    assert found["user"] == 1000 and not found["programs"]
    assert found["packages"] == packages


def test_the_component_image_is_small_and_says_its_commit(engine, images) -> None:
    assert images["cpu"]["gigabytes"] < 1.5
    for target in ("cpu", "mlflow"):
        labels = engine.images.get(images[target]["image"]).labels
        assert labels["org.opencontainers.image.revision"] == code_commit(ROOT)


def test_the_entry_point_is_the_command_line(engine, images) -> None:
    said = engine.containers.run(images["cpu"]["image"], ["preprocess", "--help"], remove=True).decode()
    assert "--raw RAW" in said
    login = ["-lc", "command -v sixstream torchrun"]  # as Kubeflow Trainer starts its nodes
    found = engine.containers.run(images["cpu"]["image"], login, entrypoint="bash", remove=True).decode()
    assert found.split() == ["/opt/sixstream/bin/sixstream", "/opt/sixstream/bin/torchrun"]


def test_every_component_can_be_imported(engine, images) -> None:
    script = """
import importlib, pkgutil, components, pipeline.task
for found in pkgutil.iter_modules(components.__path__):
    importlib.import_module(f"components.{found.name}")
print("all")
"""
    said = engine.containers.run(images["cpu"]["image"], ["-c", script], entrypoint="python", remove=True)
    assert said.decode().split() == ["all"]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """A registry of this machine; Debian's package docker-registry."""
    program = shutil.which("docker-registry") or pytest.skip("no docker-registry")
    port = free_port()
    settings = {"version": 0.1, "http": {"addr": f"127.0.0.1:{port}"}, "log": {"level": "error"}}
    settings["storage"] = {"filesystem": {"rootdirectory": str(tmp_path / "registry")}}
    (tmp_path / "registry.yaml").write_text(json.dumps(settings))
    server = subprocess.Popen([program, "serve", str(tmp_path / "registry.yaml")])
    try:
        answers(f"http://127.0.0.1:{port}/v2/", lambda: f"exit code {server.poll()}")
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture
def small_image(engine: Any, tmp_path: Path) -> Iterator[str]:
    """An image of one file."""
    (tmp_path / "file").write_text("content")
    subprocess.run(["tar", "-cf", "image.tar", "file"], cwd=tmp_path, check=True)
    engine.api.import_image_from_file(str(tmp_path / "image.tar"), repository="sixstream-test", tag="small")
    yield "sixstream-test:small"
    for image in engine.images.list("sixstream-test:small"):
        engine.images.remove(image.id, force=True)


def test_push_prints_the_digest_by_which_the_image_is_found_again(engine, small_image, registry) -> None:
    here = engine.images.get(small_image).id
    refused = sixstream("images", "digest", small_image)
    assert refused.returncode == 2 and "no registry knows it" in refused.stderr
    done = sixstream("images", "push", small_image, f"{registry}/team/small:1")
    assert done.returncode == 0, done.stderr
    name = done.stdout.strip()
    assert name.startswith(f"{registry}/team/small@sha256:")
    assert sixstream("images", "digest", f"{registry}/team/small:1").stdout.strip() == name
    engine.images.remove(here, force=True)
    assert engine.images.pull(name).id == here


def test_push_says_what_is_wrong(images, small_image) -> None:
    away = sixstream("images", "push", small_image, "127.0.0.1:9/team/small:1")
    assert away.returncode == 2 and "127.0.0.1:9/team/small:1: not pushed" in away.stderr
    unknown = sixstream("images", "push", "sixstream-test:nothing", "127.0.0.1:9/team/small:1")
    assert unknown.returncode == 2 and "sixstream-test:nothing: no such image" in unknown.stderr
    unnamed = sixstream("images", "push", small_image, "small")
    assert unnamed.returncode == 2 and "write it as REGISTRY/NAME:TAG" in unnamed.stderr
