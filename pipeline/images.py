"""Images: built by `docker build` from docker/Dockerfile, pushed, and named by digest as a cluster wants them."""

import contextlib
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from components.environment import code_commit
from components.files import write_text
from model.errors import UserError
from pipeline.workspace import ROOT

LIMITS = {"cpu": 1.5, "gpu": 6.0}  # GB: what a node pulls before it works


def images_build(
    target: Literal["cpu", "gpu", "mlflow", "s3"],
    /,
    *,
    tag: str = "",
    base: str = "",
    wheels: Path | None = None,
    build: list[str] | None = None,
) -> int:
    """Build an image from docker/Dockerfile and say how large it and its layers are.

    Args:
        target: cpu or gpu (components), mlflow (tracking server), s3 (object store of one machine).
        tag: name of the image (default: sixstream:TARGET).
        base: image to start from (default: the Dockerfile's).
        wheels: folder that holds every package, where the machine that builds reaches no package index.
        build: further arguments of docker build, without their dashes, such as build-arg=PIP_ARGS=… no-cache.

    Raises:
        UserError: no Docker that builds, the build failed, or the image is larger than it may be.
    """
    if target not in ("cpu", "gpu", "mlflow", "s3"):
        raise UserError(f"images build {target}: choose cpu, gpu, mlflow or s3")
    tag = tag or f"sixstream:{target}"
    command = [builder(), "build", "--file", str(ROOT / "docker" / "Dockerfile"), "--target", target, "--tag", tag]
    arguments = {"COMMIT": code_commit(ROOT)}
    if target == "gpu":
        arguments |= {"LOCK": "cuda", "PIP_ARGS": ""}
    if base:
        arguments["BASE_IMAGE"] = base
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    command += [f"--{word}" for word in build or []]
    with contextlib.ExitStack() as stack:
        if wheels is not None:
            command += stack.enter_context(_served(wheels))
        done = subprocess.run([*command, str(ROOT)], env={**os.environ, "DOCKER_BUILDKIT": "1"})
    if done.returncode:
        raise UserError(f"images build {target}: docker build failed (exit code {done.returncode}), see above")
    return _report(target, tag)


def images_push(image: str, to: str, /) -> int:
    """Push an image to a registry and print its name by digest, which is what `compute.image` wants.

    Args:
        image: name of the image on this machine.
        to: name in the registry, REGISTRY/NAME:TAG.

    Raises:
        UserError: no such image, or the registry refuses it or does not answer.
    """
    import docker

    repository, _, tag = to.rpartition(":")
    if not repository or "/" in tag:
        raise UserError(f"{to}: write it as REGISTRY/NAME:TAG")
    with engine() as client:
        _image(client, image).tag(repository, tag)
        try:
            for line in client.images.push(repository, tag, stream=True, decode=True):
                if "error" in line:
                    raise UserError(f"{to}: not pushed ({line['error']}); check the address, and `docker login`")
        except docker.errors.APIError as error:
            raise UserError(f"{to}: not pushed ({error.explanation or error})") from None
    return images_digest(to)


def images_digest(image: str, /) -> int:
    """Print an image's name by digest, NAME@sha256:…, as its registry knows it.

    Args:
        image: name of an image that was pushed or pulled.

    Raises:
        UserError: no such image, or no registry has seen it.
    """
    repository, _, tag = image.rpartition(":")
    name = image if not repository or "/" in tag else repository
    with engine() as client:
        digests = _image(client, image).attrs["RepoDigests"]
    for digest in digests:
        if digest.partition("@")[0] == name:
            print(digest)
            return 0
    raise UserError(f"{image}: no registry knows it, so it has no digest; `sixstream images push` it")


@contextlib.contextmanager
def engine() -> Iterator[Any]:
    """A client of Docker. Raises UserError when it does not answer."""
    import docker

    try:
        client = docker.from_env()
    except docker.errors.DockerException as error:
        raise UserError(f"Docker does not answer ({error}); start it, or set DOCKER_HOST") from None
    with contextlib.closing(client):
        yield client


def builder() -> str:
    """The first docker command on the path that has BuildKit: its own (before 23) or as the buildx plug-in.

    Raises UserError when none has.
    """
    for folder in os.get_exec_path():
        found = shutil.which("docker", path=folder)
        if found is None:
            continue
        version = subprocess.run([found, "version", "--format", "{{.Client.Version}}"], capture_output=True, text=True)
        major = version.stdout.partition(".")[0]
        if major.isdigit() and int(major) < 23:
            return found
        if subprocess.run([found, "buildx", "version"], capture_output=True).returncode == 0:
            return found
    raise UserError("no docker command that builds with BuildKit; install docker and its plug-in buildx")


def _image(client: Any, name: str) -> Any:
    import docker

    try:
        return client.images.get(name)
    except docker.errors.ImageNotFound:
        raise UserError(f"{name}: no such image on this machine; `sixstream images build` makes it") from None


@contextlib.contextmanager
def _served(wheels: Path) -> Iterator[list[str]]:
    """Arguments of a build that installs from this folder: a build sees no folder of its machine, but its network."""
    if not any(wheels.glob("*.whl")):
        raise UserError(f"{wheels}: no wheels there; fill it by `pip download`")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(wheels))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, tempfile.TemporaryDirectory() as scratch:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        links = f"http://127.0.0.1:{server.server_port}/"
        settings = write_text(Path(scratch) / "pip.conf", f"[global]\nno-index = true\nfind-links = {links}\n")
        try:
            # A secret, unlike an argument, does not count when Docker looks for a layer that it has already.
            yield ["--network", "host", "--secret", f"id=pip,src={settings}"]
        finally:
            server.shutdown()


def _report(target: str, tag: str) -> int:
    """Print sizes in GB of 10^9 bytes, as Docker does."""
    with engine() as client:
        image = _image(client, tag)
        layers = [(layer["Size"], layer["CreatedBy"]) for layer in image.history() if layer["Size"] > 5e6]
        size = image.attrs["Size"] / 1e9
    for number, made_by in layers:
        print(f"  {number / 1e9:6.2f} GB  {' '.join(made_by.split())[:90]}", file=sys.stderr)
    print(json.dumps({"image": tag, "id": image.id, "gigabytes": round(size, 3)}))
    if size > LIMITS.get(target, size):
        raise UserError(f"{tag} has {size:.2f} GB, more than the {LIMITS[target]} GB of a {target} image")
    return 0
