"""Working checkpoints also in S3, so that a training goes on where its disk is gone.

    SIXSTREAM_BACKUP=s3://bucket/prefix     where to; not set: nowhere
    SIXSTREAM_BACKUP_MINUTES=10             how often

Objects are named `<prefix>/<key>/<file>`, key and file as in `.work/checkpoints`: the key hashes code, parameters and
data, the file's name holds its checksum. A training never waits for S3 but at its start, when it has no checkpoint of
its own, and for `PATIENCE` at its end.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.files import write_bytes
from components.storage import bucket_and_key, s3_client
from model.errors import UserError
from model.working import fits_name, newest_first, progress_of, working_files

PLACE, MINUTES = "SIXSTREAM_BACKUP", "SIXSTREAM_BACKUP_MINUTES"
PATIENCE = 20.0  # seconds for the last upload; a pod that is told to end has 30
FETCHING = 600.0  # seconds for what S3 has, before a training starts without it
FIRST_RETRY = 5.0  # seconds after a failure, doubled with each further one up to the interval
LAST_TRIES = 3
CLIENT: dict[str, Any] = {
    "connect_timeout": 10, "read_timeout": 30, "retries": {"total_max_attempts": 3, "mode": "standard"},
}  # fmt: skip


@contextmanager
def backed_up(folder: Path, rank: int = 0) -> Iterator[None]:
    """Fetch the newest checkpoint of `folder` from S3 if it holds none; meanwhile keep its newest one in S3, too.

    Only rank 0 does. What S3 does, or fails to do, is told and stops nothing. Raises UserError when the variables
    make no sense.
    """
    place = os.environ.get(PLACE)
    if not place or rank != 0:
        yield
        return
    backup = Backup(place, folder, _minutes() * 60)
    backup.fetch()
    backup.start()
    try:
        yield
    finally:
        backup.finish()


class Backup:
    """What of `folder` is in S3 under `place`."""

    def __init__(self, place: str, folder: Path, every: float) -> None:
        from botocore.config import Config

        self.folder, self.every = folder, every
        self.uri = f"{place.rstrip('/')}/{folder.name}"
        self.bucket, self.prefix = bucket_and_key(self.uri)
        self.client = s3_client(Config(**CLIENT))
        self._kept = ""  # file that S3 is known to have
        self._away = False  # whether S3 failed and that was told
        self._ending = threading.Event()
        self._over = False
        self._thread = threading.Thread(target=self._work, daemon=True)

    def fetch(self) -> None:
        """Put the newest intact checkpoint of S3 into the folder, unless one is there."""
        if working_files(self.folder):
            return
        try:
            found = _within(FETCHING, self._newest)
        except Exception as error:
            self._tell(error, "nothing is fetched")
            return
        if found is not None:
            name, data = found
            self.folder.mkdir(parents=True, exist_ok=True)
            write_bytes(self.folder / name, data)
            self._kept = name
            _say(f"{self.uri}/{name}: fetched, since there is no checkpoint here")

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        """Have the newest checkpoint uploaded now, and wait no longer than PATIENCE."""
        self._ending.set()
        self._thread.join(PATIENCE)
        self._over = True
        left = next(iter(working_files(self.folder)), None)
        if left is not None and left.name != self._kept:
            _say(f"{self.uri}: lacks the last checkpoint, which is {left}")

    def upload(self) -> bool:
        """Put the newest checkpoint into S3, read it back, and only then remove those that are no further on.

        False when there is nothing new.
        """
        path = next(iter(working_files(self.folder)), None)
        if path is None or path.name == self._kept:
            return False
        try:
            data = path.read_bytes()
        except FileNotFoundError:  # the training has a newer one
            return self.upload()
        key = f"{self.prefix}/{path.name}"
        # One request, so that no unfinished parts of a large upload stay behind, unseen and paid for.
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)
        if not fits_name(path.name, self._read(path.name)):
            raise OSError(f"{path.name} reads back differently from what was written")
        self._kept = path.name
        for name in self._names():
            if name != path.name and progress_of(name) <= progress_of(path.name):
                self.client.delete_object(Bucket=self.bucket, Key=f"{self.prefix}/{name}")
        return True

    def _work(self) -> None:
        pause, failures = self.every, 0
        while not self._ending.wait(pause):
            failures = 0 if self._tried() else failures + 1
            pause = min(self.every, FIRST_RETRY * 2 ** (failures - 1)) if failures else self.every
        for _ in range(LAST_TRIES):
            if self._over or self._tried():
                return
            time.sleep(1)

    def _tried(self) -> bool:
        """Upload what is new; False when S3 did not take it."""
        try:
            anything = self.upload()
        except Exception as error:
            self._tell(error, f"training goes on, checkpoints stay in {self.folder}, uploads are tried again")
            return False
        if anything and self._away:
            self._away = False
            _say(f"{self.uri}: can be written again")
        return True

    def _newest(self) -> tuple[str, bytes] | None:
        for name in self._names():
            data = self._read(name)
            if fits_name(name, data):
                return name, data
            _say(f"{self.uri}/{name}: damaged, passed over")
        return None

    def _names(self) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=f"{self.prefix}/")
        return newest_first(item["Key"].rpartition("/")[2] for page in pages for item in page.get("Contents", []))

    def _read(self, name: str) -> bytes:
        return bytes(self.client.get_object(Bucket=self.bucket, Key=f"{self.prefix}/{name}")["Body"].read())

    def _tell(self, error: Exception, consequence: str) -> None:
        if not self._away:
            _say(f"{self.uri}: cannot be reached ({error}); {consequence}. Check bucket, credentials, AWS_ENDPOINT_URL")
        self._away = True


def _minutes() -> float:
    given = os.environ.get(MINUTES, "10")
    try:
        minutes = float(given)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise UserError(f"{MINUTES}: {given!r} must be a number of minutes above 0")
    return minutes


def _within(seconds: float, work: Callable[[], Any]) -> Any:
    """What `work` returns or raises; TimeoutError when it takes longer, as a server that trickles bytes would."""
    found: list[Any] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return found[0]


def _say(text: str) -> None:
    print(f"backup: {text}", file=sys.stderr, flush=True)
