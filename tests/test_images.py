"""The verbs about images, where no Docker is needed: what they refuse, and which program builds."""

import urllib.request
from pathlib import Path

import pytest
from small_run import small_params

from components.params import parse_params
from model.errors import UserError
from pipeline import images
from pipeline.kubeflow_local import kfp_run
from pipeline.workspace import ROOT


def _program(folder: Path, version: str, buildx: bool) -> Path:
    """A docker command of a version, with or without its plug-in."""
    folder.mkdir()
    path = folder / "docker"
    path.write_text(f"#!/bin/sh\ncase $1 in version) echo {version};; *) exit {int(not buildx)};; esac\n")
    path.chmod(0o755)
    return path


def test_the_first_docker_command_with_buildkit_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(tmp_path / "new_without", "28.2.2", buildx=False)
    new = _program(tmp_path / "new", "28.2.2", buildx=True)
    old = _program(tmp_path / "old", "20.10.24+dfsg1", buildx=False)
    path = [str(tmp_path / name) for name in ("nothing", "new_without", "old", "new")]
    monkeypatch.setenv("PATH", ":".join(path))
    assert images.builder() == str(old)
    monkeypatch.setenv("PATH", ":".join([path[1], path[3]]))
    assert images.builder() == str(new)
    monkeypatch.setenv("PATH", ":".join(path[:2]))
    with pytest.raises(UserError, match="no docker command that builds with BuildKit"):
        images.builder()


def test_what_cannot_be_built_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="images build tpu: choose cpu, gpu, mlflow or s3"):
        images.images_build("tpu")  # type: ignore[arg-type]
    _program(tmp_path / "docker", "20.10.24", buildx=False)
    monkeypatch.setenv("PATH", str(tmp_path / "docker"))
    with pytest.raises(UserError, match="no wheels there; fill it by `pip download`"):
        images.images_build("cpu", wheels=tmp_path)


def test_a_build_reads_its_packages_from_a_folder(tmp_path: Path) -> None:
    """The folder is served while the build runs, and its address is a secret, so that it does not spoil the cache."""
    (tmp_path / "one-1.0-py3-none-any.whl").write_bytes(b"wheel")
    with images._served(tmp_path) as arguments:
        settings = Path(arguments[-1].partition("src=")[2]).read_text()
        assert "no-index = true" in settings
        address = settings.split("find-links = ")[1].strip()
        with urllib.request.urlopen(address + "one-1.0-py3-none-any.whl") as answer:
            assert answer.read() == b"wheel"
    with pytest.raises(OSError):
        urllib.request.urlopen(address, timeout=5)


def test_without_docker_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    with pytest.raises(UserError, match="Docker does not answer"):
        images.images_digest("sixstream:cpu")


def test_containers_need_a_tracking_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    monkeypatch.setenv("SIXSTREAM_CHECKPOINTS", "")  # it is set for the tasks of this process
    params = parse_params(small_params(), "here")
    with pytest.raises(UserError, match="set MLFLOW_TRACKING_URI to its address"):
        kfp_run(params, "docker", graph=ROOT / "dvc.yaml")


def test_every_requirement_of_an_image_is_locked() -> None:
    """All but PostgreSQL's driver, which only the server needs and names with its version."""
    locks = {name: (ROOT / "locks" / f"{name}.txt").read_text().lower() for name in ("cpu", "cuda")}
    for file in (ROOT / "docker" / "requirements").glob("*.txt"):
        for line in file.read_text().splitlines():
            if line and not line.startswith("#") and "==" not in line:
                for name, lock in locks.items():
                    assert f"\n{line}==" in lock, f"{file.name}: {line} is not in {name}.txt"
