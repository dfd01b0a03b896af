"""A real S3 server for tests, which asks for credentials: `rclone serve s3` on a free port of this machine."""

import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

PATIENCE = 30.0  # seconds for the server to answer
LISTED = 0.1  # seconds for which the server goes by what it saw in a folder
BUCKET = "bucket"


class S3(NamedTuple):
    """`environment` holds what a client needs (endpoint, keys, region), `folder` a folder per bucket, as on disk."""

    endpoint: str
    environment: dict[str, str]
    folder: Path


@contextmanager
def serve_s3(bucket: str = BUCKET) -> Iterator[S3]:
    """A server with one empty bucket and keys of its own; another bucket is another folder in `folder`."""
    keys = (secrets.token_hex(8), secrets.token_hex(16))
    beside = Path(sys.executable).with_name("rclone")
    program = beside if beside.exists() else shutil.which("rclone")
    assert program, "rclone is not installed: pip install -r locks/cpu.txt"
    with tempfile.TemporaryDirectory(prefix="sixstream-s3-") as scratch:
        folder, log = Path(scratch) / "buckets", Path(scratch) / "log"
        (folder / bucket).mkdir(parents=True)
        # A moment only, so that a test may change files on the disk (`settle`); with none at all rclone spins.
        cached = f"{1000 * LISTED:.0f}ms"
        command = [str(program), "--config", "", "serve", "s3", "--addr", "127.0.0.1:0", "--dir-cache-time", cached]
        with log.open("wb") as stream:
            server = subprocess.Popen([*command, "--auth-key", ",".join(keys), str(folder)], stderr=stream)
        try:
            endpoint = _address(server, log)
            environment = {
                "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": keys[0], "AWS_SECRET_ACCESS_KEY": keys[1],
                "AWS_DEFAULT_REGION": "us-east-1",
            }  # fmt: skip
            yield S3(endpoint, environment, folder)
        finally:
            server.terminate()
            server.wait(PATIENCE)


def _address(server: "subprocess.Popen[bytes]", log: Path) -> str:
    """The address that the server chose, once it says that it listens there."""
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit and server.poll() is None:
        said = re.search(r"Starting s3 server on \[(http://[^/\]]+)", log.read_text())
        if said:
            return said[1]
        time.sleep(0.02)
    raise RuntimeError(f"rclone did not start: {log.read_text()}")


def settle() -> None:
    """Wait until the server sees what was changed on its disk."""
    time.sleep(3 * LISTED)
