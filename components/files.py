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
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not a JSON file ({error}); write it again") from None
