"""Working checkpoints: what a stopped training needs to go on as if nothing had happened.

A file is named `epoch-0007.<digest>.pt`. The digest in the name makes content and checksum appear in one
rename; the former file stays until the new one has been read back. Random states are not among the contents: every
step draws from a seed of its own (settings.derived_seed), so the epoch number stands for all of them.
"""

import fcntl
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model.atomic import write_bytes
from model.checkpoint import checkpoint_bytes, load_checkpoint
from model.errors import UserError

FORMAT = "sixstream-working/1"
_NAME = re.compile(r"epoch-(\d+)\.([0-9a-f]{32})\.pt")


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold the folder for one training. Raises UserError when another process is training in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{folder}: another process is training here; wait for it or stop it") from None
        yield


def save_working(folder: Path, epoch: int, content: dict[str, Any]) -> Path:
    """Write the checkpoint of a finished epoch, verify it, then remove the former ones."""
    data = checkpoint_bytes(content, FORMAT)
    path = write_bytes(folder / f"epoch-{epoch:04d}.{_digest(data)}.pt", data)
    if not _intact(path):
        raise UserError(f"{path}: reads back differently from what was written; check the disk")
    # A kill while writing leaves its unfinished file, named as by write_bytes.
    for other in (*_checkpoints(folder), *folder.glob(".epoch-*")):
        if other != path:
            other.unlink(missing_ok=True)
    return path


def load_working(folder: Path, fingerprint: dict[str, Any]) -> dict[str, Any] | None:
    """The newest intact checkpoint in `folder`, or None.

    Raises UserError showing the difference when it belongs to another fingerprint, that is to other settings,
    data or code.
    """
    for path in sorted(_checkpoints(folder), key=_epoch, reverse=True):
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


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("epoch-*.pt") if _NAME.fullmatch(path.name)]


def _epoch(path: Path) -> int:
    return int(path.name.split(".")[0].removeprefix("epoch-"))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _intact(path: Path) -> bool:
    name = _NAME.fullmatch(path.name)
    return name is not None and _digest(path.read_bytes()) == name[2]


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
