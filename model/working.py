"""Working checkpoints: what a stopped training needs to go on as if nothing had happened.

A file is named `epoch-0007.<digest>.pt` after seven epochs, `epoch-0007-step-000020.<digest>.pt` after 20 steps more.
The digest in the name makes content and checksum appear in one rename; the former file stays until the new one has been
read back. Random states are not among the contents: every step draws from a seed of its own (settings.derived_seed),
so the numbers of epoch and step stand for all of them.
"""

import fcntl
import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from model.atomic import write_bytes, writing
from model.checkpoint import checkpoint_bytes, load_checkpoint
from model.errors import UserError

FORMAT = "sixstream-working/2"
PATIENCE = 20.0  # seconds
_NAME = re.compile(r"epoch-(\d+)(?:-step-(\d+))?\.([0-9a-f]{32})\.pt")


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold the folder for one training.

    Raises UserError when another process is training in it, and has not ended after `PATIENCE`: one whose parent was
    killed saves first.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / "lock").open("w")
    with stream:
        limit = time.monotonic() + PATIENCE
        while not _locked(stream):
            if time.monotonic() > limit:
                raise UserError(f"{folder}: another process is training here; wait for it or stop it")
            time.sleep(0.1)
        # A kill while writing leaves its unfinished file, named as by write_bytes.
        for unfinished in folder.glob(".*.pt.*"):
            unfinished.unlink()
        yield


def _locked(stream: IO[str]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def save_working(folder: Path, epoch: int, step: int, content: dict[str, Any]) -> Path:
    """Write the checkpoint of `epoch` whole epochs and `step` steps more, verify it, then remove the former ones."""
    data = checkpoint_bytes(content, FORMAT)
    within = f"-step-{step:06d}" if step else ""
    path = write_bytes(folder / f"epoch-{epoch:04d}{within}.{_digest(data)}.pt", data)
    if not _intact(path):
        raise UserError(f"{path}: reads back differently from what was written; check the disk")
    for other in working_files(folder):
        if other != path:
            other.unlink(missing_ok=True)
    return path


def load_working(folder: Path, fingerprint: dict[str, Any]) -> dict[str, Any] | None:
    """The newest intact checkpoint in `folder`, or None.

    Raises UserError showing the difference when it belongs to another fingerprint, that is to other settings,
    data or code.
    """
    for path in working_files(folder):
        if not _intact(path):
            continue
        content = load_checkpoint(path, FORMAT)
        differing = _differences(content["fingerprint"], normalised(fingerprint))
        if differing:
            raise UserError(
                f"{path}: belongs to another training ({'; '.join(differing)}); "
                f"put the settings back or remove {folder}"
            )
        return content
    return None


def normalised(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """The fingerprint as it reads back from JSON, so that tuples equal lists."""
    return json.loads(json.dumps(fingerprint, sort_keys=True))


def working_files(folder: Path) -> list[Path]:
    """The working checkpoints in `folder`, the newest first."""
    return [folder / name for name in newest_first(path.name for path in folder.glob("epoch-*.pt"))]


def newest_first(names: Iterable[str]) -> list[str]:
    """Those of the names that are working checkpoints', the furthest on first."""
    return sorted((name for name in names if _NAME.fullmatch(name)), key=progress_of, reverse=True)


def progress_of(name: str) -> tuple[int, int]:
    """(whole epochs, further steps) of a working checkpoint by its file name."""
    found = _NAME.fullmatch(name)
    return (int(found[1]), int(found[2] or 0)) if found is not None else (-1, 0)


def fits_name(name: str, data: bytes) -> bool:
    """Whether these bytes have the checksum in the name of a working checkpoint."""
    found = _NAME.fullmatch(name)
    return found is not None and _digest(data) == found[3]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _intact(path: Path) -> bool:
    return fits_name(path.name, path.read_bytes())


def _differences(stored: Any, now: Any, field: str = "") -> list[str]:
    if isinstance(stored, dict) and isinstance(now, dict):
        return [
            line
            for key in sorted({*stored, *now})
            for line in _differences(
                stored.get(key, "absent"), now.get(key, "absent"), f"{field}.{key}" if field else key
            )
        ]
    return [] if stored == now else [f"{field}: {stored!r} there, {now!r} now"]
