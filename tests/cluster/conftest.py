"""Real images, a tracking server in a container and an object store beside it: what `make cluster-test` runs on."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_kit import answers, free_port, sixstream
from s3_server import S3, serve_s3


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Plain `make test` leaves this folder out."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("cluster")


@pytest.fixture(scope="session")
def engine() -> Iterator[Any]:
    """A client of Docker."""
    from model.errors import UserError
    from pipeline import images

    try:
        with images.engine() as client:
            client.ping()
            yield client
    except UserError as error:
        pytest.skip(f"{error}; `make cluster-test` starts it where it can")


@pytest.fixture(scope="session")
def images(engine: Any) -> dict[str, dict[str, Any]]:
    """cpu, mlflow and s3, built from this checkout: target → name, id and gigabytes.

    SIXSTREAM_BASE_IMAGE and SIXSTREAM_WHEELS, if set, are the base image and a folder of packages.
    """
    options = []
    if os.environ.get("SIXSTREAM_BASE_IMAGE"):
        options += ["--base", os.environ["SIXSTREAM_BASE_IMAGE"]]
    if os.environ.get("SIXSTREAM_WHEELS"):
        options += ["--wheels", os.environ["SIXSTREAM_WHEELS"]]
    built = {}
    for target in ("cpu", "mlflow", "s3"):
        done = sixstream("images", "build", target, "--tag", f"sixstream-test:{target}", *options)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        built[target] = json.loads(done.stdout.splitlines()[-1])
    return built


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """An object store, reached over HTTP."""
    with serve_s3() as store:
        yield store


@pytest.fixture(scope="session")
def tracking(engine: Any, images: dict[str, dict[str, Any]], s3: S3) -> Iterator[str]:
    """Address of a tracking server in a container of the image `mlflow`, with its artifacts in the object store."""
    port = free_port()
    container = engine.containers.run(
        images["mlflow"]["image"],
        detach=True,
        network_mode="host",
        environment={
            "MLFLOW_BACKEND_STORE_URI": "sqlite:////tmp/mlflow.db",
            "MLFLOW_ARTIFACTS_DESTINATION": "s3://bucket/mlflow",
            "MLFLOW_S3_ENDPOINT_URL": s3.endpoint,
            "MLFLOW_HOST": "127.0.0.1",
            "MLFLOW_PORT": str(port),
            "MLFLOW_WORKERS": "1",
            **s3.environment,
        },
    )
    try:
        answers(f"http://127.0.0.1:{port}/health", lambda: container.logs(tail=40).decode())
        yield f"http://127.0.0.1:{port}"
    finally:
        container.remove(force=True)
