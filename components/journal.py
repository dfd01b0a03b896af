"""Tracking that the server could not take: kept on disk, a line an operation, until it can be delivered."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.files import write_text


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` against other processes and threads; wait for it when it is taken."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Journal:
    """The undelivered operations of one run, oldest first. The first line says which run they belong to."""

    path: Path

    @property
    def pending(self) -> bool:
        return self.path.exists()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from adding or delivering lines meanwhile."""
        with locked(self.path.with_suffix(".lock")):
            yield

    def append(self, header: dict[str, Any], operation: str, payload: dict[str, Any]) -> None:
        """Add a line (and, to a new journal, its header), on disk before this returns."""
        with self.held():
            lines = [] if self.pending else [{"operation": "open", "payload": header}]
            lines.append({"operation": operation, "payload": payload})
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(line) + "\n" for line in lines)
                stream.flush()
                os.fsync(stream.fileno())

    def copy_of(self, source: Path) -> Path:
        """A copy of a file or folder beside the journal: its owner may have removed it when it is delivered."""
        kept = Path(tempfile.mkdtemp(dir=_made(self.path.with_suffix("")))) / source.name
        return Path(shutil.copytree(source, kept) if source.is_dir() else shutil.copyfile(source, kept))

    def lines(self) -> list[dict[str, Any]]:
        """Every whole line; a line cut short by a kill was never promised and is left out."""
        if not self.pending:
            return []
        found = []
        for text in self.path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(text))
            except json.JSONDecodeError:
                continue
        return found

    def keep(self, lines: list[dict[str, Any]]) -> None:
        """Leave only the header and `lines`; without lines the journal and its copies are removed."""
        if not lines:
            self.path.unlink(missing_ok=True)
            shutil.rmtree(self.path.with_suffix(""), ignore_errors=True)
            return
        header = self.lines()[0]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in [header, *lines]))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
