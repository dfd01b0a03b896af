"""A real MLflow server as a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from components.tracking import connect


@contextmanager
def mlflow_server(workspace: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """A real tracking server over the workspace's own database: its address, and how to kill it."""
    connect(workspace)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{workspace / 'mlflow.db'}"]
    command += ["--no-serve-artifacts", "--default-artifact-root", (workspace / "mlartifacts").as_uri()]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = (workspace / "server.log").open("w")
    # A session of its own, so that its workers die with it.
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def kill() -> None:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()

    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1)
                break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None, (workspace / "server.log").read_text()
                time.sleep(0.1)
        yield address, kill
    finally:
        kill()
        log.close()
