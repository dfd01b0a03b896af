"""docker/compose.yaml: three healthy services with one command, which refuses to start without passwords."""

import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_kit import free_port

from pipeline.images import builder
from pipeline.workspace import ROOT

GIVEN = {"POSTGRES_PASSWORD": uuid.uuid4().hex, "S3_ACCESS_KEY": uuid.uuid4().hex, "S3_SECRET_KEY": uuid.uuid4().hex}


@pytest.fixture(scope="module")
def compose() -> list[str]:
    """The command: a plug-in of docker, or the older program."""
    found = shutil.which("docker-compose")
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
    if not plugin and found is None:
        pytest.skip("neither docker compose nor docker-compose")
    return [*(["docker", "compose"] if plugin else [str(found)]), "--file", str(ROOT / "docker" / "compose.yaml")]


@pytest.mark.parametrize("missing", GIVEN)
def test_no_default_password(compose: list[str], missing: str) -> None:
    environment = {**os.environ, **GIVEN}
    whole = subprocess.run([*compose, "config"], env=environment, capture_output=True, text=True)
    assert whole.returncode == 0 and "service_healthy" in whole.stdout, whole.stderr
    del environment[missing]
    done = subprocess.run([*compose, "config"], env=environment, capture_output=True, text=True)
    assert done.returncode != 0 and f"set {missing}" in done.stderr


@pytest.fixture(scope="module")
def postgres() -> str:
    """An image of PostgreSQL; SIXSTREAM_POSTGRES_IMAGE, else from Debian's packages on the base image."""
    given = os.environ.get("SIXSTREAM_POSTGRES_IMAGE")
    if given:
        return given
    base, here = os.environ.get("SIXSTREAM_BASE_IMAGE", "python:3.11-slim-bookworm"), Path(__file__).parent
    command = [builder(), "build", "--network", "host", "--build-arg", f"BASE_IMAGE={base}"]
    command += ["--file", str(here / "postgres.Dockerfile"), "--tag", "sixstream-test:postgres", str(here)]
    done = subprocess.run(command, env={**os.environ, "DOCKER_BUILDKIT": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return "sixstream-test:postgres"


@pytest.fixture(scope="module")
def services(compose: list[str], images: dict[str, Any], postgres: str, engine: Any) -> Iterator[dict[str, str]]:
    """All three up and healthy; the addresses of tracking and store."""
    ports = {"MLFLOW_PORT": str(free_port()), "S3_PORT": str(free_port())}
    used = {"MLFLOW_IMAGE": images["mlflow"]["image"], "S3_IMAGE": images["s3"]["image"], "POSTGRES_IMAGE": postgres}
    environment = {**os.environ, **GIVEN, **ports, **used, "COMPOSE_PROJECT_NAME": f"sixstream{uuid.uuid4().hex[:6]}"}
    try:
        up = subprocess.run([*compose, "up", "--detach"], env=environment, capture_output=True, text=True)
        assert up.returncode == 0, up.stderr[-3000:]
        project = environment["COMPOSE_PROJECT_NAME"]
        limit = time.monotonic() + 240
        while time.monotonic() < limit:
            found = engine.containers.list(filters={"label": f"com.docker.compose.project={project}"})
            states = [one.attrs["State"].get("Health", {}).get("Status") for one in found]
            if states == ["healthy"] * 3:
                break
            time.sleep(1)
        else:
            logs = subprocess.run([*compose, "logs"], env=environment, capture_output=True, text=True)
            raise AssertionError(f"{states}: {logs.stdout[-4000:]}")
        yield {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    finally:
        subprocess.run([*compose, "down", "--volumes", "--timeout", "1"], env=environment, capture_output=True)


def test_tracking_and_store_work_together(services: dict[str, str], tmp_path: Path) -> None:
    """A run's artifact goes through the tracking server into the bucket; without keys the store answers nothing."""
    import boto3
    import botocore.exceptions
    from botocore import UNSIGNED
    from botocore.config import Config
    from mlflow import MlflowClient

    client = MlflowClient(services["MLFLOW_PORT"])
    run = client.create_run(client.create_experiment("compose")).info.run_id
    client.log_metric(run, "top1", 0.5)
    (tmp_path / "note.txt").write_text("kept")
    client.log_artifact(run, str(tmp_path / "note.txt"))
    assert client.get_run(run).data.metrics == {"top1": 0.5}

    def store(**options: Any) -> Any:
        return boto3.client("s3", endpoint_url=services["S3_PORT"], region_name="us-east-1", **options)

    keys = {"aws_access_key_id": GIVEN["S3_ACCESS_KEY"], "aws_secret_access_key": GIVEN["S3_SECRET_KEY"]}
    held = store(**keys).list_objects_v2(Bucket="mlflow")["Contents"]
    assert [item["Key"] for item in held if item["Key"].endswith("artifacts/note.txt")]
    assert {bucket["Name"] for bucket in store(**keys).list_buckets()["Buckets"]} == {"mlflow", "sixstream"}
    denied = "AccessDenied|SignatureDoesNotMatch|UnsupportedAlgorithm"
    for refused in (store(config=Config(signature_version=UNSIGNED)), store(**{**keys, "aws_secret_access_key": "no"})):
        with pytest.raises(botocore.exceptions.ClientError, match=denied):
            refused.list_objects_v2(Bucket="mlflow")
