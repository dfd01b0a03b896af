"""Writing files and folders whole or not at all."""

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.errors import UserError

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk, a read-only folder or missing rights into a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); free space there or allow writing, then give the same "
            "command again. What was saved before is as it was"
        ) from None


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write `content` beside `path`, force it to disk, and rename it into place; makes the parent folders."""
    path = Path(path)
    with writing(path):
        _write(path, content)
    return path


def _write(path: Path, content: bytes) -> None:
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


@contextmanager
def staged_dir(folder: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`: on success it takes the place of `folder`, on failure it is removed."""
    folder = Path(folder)
    with writing(folder):
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
