"""Writing a file whole or not at all."""

import os
import secrets
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
