"""Files that appear whole or not at all: everything is written aside and renamed into place."""

import json
from pathlib import Path
from typing import Any

from model.atomic import staged_dir, write_bytes, writing
from model.errors import UserError

__all__ = ["read_json", "staged_dir", "write_bytes", "write_json", "write_text", "writing"]


def write_text(path: str | Path, content: str) -> Path:
    """Write text as UTF-8, atomically."""
    return write_bytes(path, content.encode())


def write_json(path: str | Path, content: Any) -> Path:
    """Write JSON with sorted keys, so that equal contents are equal bytes."""
    return write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_json(path: str | Path) -> Any:
    """Read JSON. Raises UserError naming the file when it is missing or not JSON."""
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    return parse_json(content, str(path))


def parse_json(content: bytes, where: str) -> Any:
    """The value of a JSON text. Raises UserError naming `where` it is from when it is not one, or nested too deeply."""
    try:
        return json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # not UTF-8 and not JSON are both ValueErrors
        raise UserError(f"{where}: not a JSON file ({error}); write it again") from None
