"""Writing files and folders whole or not at all."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write `content` beside `path`, force it to disk, and rename it into place; makes the parent folders."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with aside.open("xb") as stream:
            stream.write(content)
            stream.flush()
            # Without this a power cut may leave the new name on an empty file.
            os.fsync(stream.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return path


@contextmanager
def staged_dir(folder: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`: on success it takes the place of `folder`, on failure it is removed."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    # A temporary folder is its maker's alone; this one is to be like any other.
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(aside, 0o777 & ~umask)
    try:
        yield aside
        former = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            if folder.exists():
                os.replace(folder, former / "former")
            os.replace(aside, folder)
        finally:
            shutil.rmtree(former, ignore_errors=True)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
