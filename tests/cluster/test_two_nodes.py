"""One training over two containers, started by the Kubeflow SDK's container backend: the bits of two processes."""

import base64
import gzip
import io
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_kit import environment
from small_run import annotations, small_params, write_params, write_raw

from components.params import parse_params
from components.preprocess import preprocess
from components.storage import file_md5

PATIENCE = 600.0
RUNTIME = """\
apiVersion: trainer.kubeflow.org/v1alpha1
kind: ClusterTrainingRuntime
metadata:
  name: here
  labels: {trainer.kubeflow.org/framework: torch}
spec:
  mlPolicy: {numNodes: 2, torch: {}}
  template:
    spec:
      replicatedJobs:
        - name: node
          template:
            metadata: {labels: {trainer.kubeflow.org/trainjob-ancestor-step: trainer}}
            spec: {template: {spec: {containers: [{name: node, image: IMAGE}]}}}
"""
NO_TRACKING = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


def node() -> None:
    """What every node runs, as one of torchrun's processes."""
    import base64
    import gzip
    import hashlib
    import io
    import os
    import sys
    import tarfile
    import tempfile

    sys.path.insert(0, "/opt/code")
    folder = tempfile.mkdtemp()
    packed = gzip.decompress(base64.b64decode(os.environ["FILES"]))
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder)  # our own; the argument filter is newer than Debian's Python
    os.chdir(folder)
    from pipeline.cli import main

    code = main(["train", "--member", "joint", "--data", "packed", "--out", "joint"])
    if code == 0 and os.environ["RANK"] == "0":
        with open("joint/best.pt", "rb") as file:
            print("best.pt has md5", hashlib.md5(file.read()).hexdigest(), "of", os.environ["WORLD_SIZE"], "ranks")
    sys.exit(code)


@pytest.fixture
def image(engine: Any, images: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The component image with an entry point that runs any command, as Kubernetes would."""
    container = engine.containers.create(images["cpu"]["image"])
    container.commit("sixstream-test", "node", changes='ENTRYPOINT ["/usr/bin/env"]')
    container.remove()
    yield "sixstream-test:node"
    engine.images.remove("sixstream-test:node")


def test_two_containers_train_as_two_processes_do(image: str, tmp_path: Path) -> None:
    from kubeflow.trainer import ContainerBackendConfig, CustomTrainer, TrainerClient
    from kubeflow.trainer.backends.container.types import TrainingRuntimeSource

    content = small_params()
    content["datasets"]["small"]["recipe"]["epochs"] = 1
    write_params(tmp_path, content)
    preprocess(parse_params(content, "here"), write_raw(tmp_path / "raw", annotations(18)), tmp_path / "packed")
    sent = io.BytesIO()
    with tarfile.open(fileobj=sent, mode="w") as archive:
        for name in ("params.yaml", "packed"):
            archive.add(tmp_path / name, name)
    (tmp_path / "runtimes").mkdir()
    (tmp_path / "runtimes" / "here.yaml").write_text(RUNTIME.replace("IMAGE", image))
    source = TrainingRuntimeSource(sources=[f"file://{tmp_path / 'runtimes' / 'here.yaml'}"])
    client = TrainerClient(
        ContainerBackendConfig(pull_policy="Never", container_runtime="docker", runtime_source=source)
    )
    files = base64.b64encode(gzip.compress(sent.getvalue())).decode()
    assert len(files) < 100_000  # it travels in a variable
    trainer = CustomTrainer(
        func=node, num_nodes=2, image=image, env={"FILES": files, "OMP_NUM_THREADS": "1", "HOME": "/tmp", **NO_TRACKING}
    )
    job = client.train(runtime=client.get_runtime("here"), trainer=trainer)
    try:
        limit = time.monotonic() + PATIENCE
        while (status := client.get_job(job).status) not in ("Complete", "Failed"):
            assert time.monotonic() < limit, status
            time.sleep(1)
        logs = {step: "\n".join(client.get_job_logs(job, step=step)) for step in ("node-0", "node-1")}
        assert status == "Complete", "\n".join(logs.values())
    finally:
        client.delete_job(job)
    words = ["train", "--member", "joint", "--data", "packed", "--out", "alone", "--processes", "2"]
    command = [sys.executable, "-m", "pipeline.cli", *words]
    subprocess.run(command, cwd=tmp_path, env=environment(**NO_TRACKING), check=True, capture_output=True)
    assert f"best.pt has md5 {file_md5(tmp_path / 'alone' / 'best.pt')} of 2 ranks" in logs["node-0"], logs
    assert "best.pt has md5" not in logs["node-1"]
