"""What the tests of this folder share: verbs in processes of their own, ports, servers that are waited for."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from pipeline.workspace import ROOT

PATIENCE = 180.0  # seconds for a server to answer


def sixstream(*arguments: str, place: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    """A verb of this checkout in a process of its own, on one thread."""
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.run(command, cwd=place, env=environment(**variables), capture_output=True, text=True)


def environment(**variables: str) -> dict[str, str]:
    """This process's variables for a child that finds this checkout and `sixstream`, and computes on one thread."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def answers(address: str, log: Callable[[], str]) -> None:
    """Wait until a server answers; its log tells why it does not."""
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{address} does not answer: {log()}")
