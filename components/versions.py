"""What a result depends on, as short hashes: the code, the parameters and the data."""

import hashlib
import json
from pathlib import Path
from typing import Any

import components
import model

# Science and the components that compute; a change in reports or tracking retrains nothing.
COMPUTING = (
    "train.py",
    "weights.py",
    "splits.py",
    "preprocess.py",
    "preparation.py",
    "readers.py",
    "annotations.py",
    "kinetics.py",
    "source.py",
    "pickles.py",
    "umurl_pretrain.py",
)


def code_version() -> str:
    """Hash of the source of `model/` and of the components that compute."""
    science = Path(str(model.__file__)).parent
    files = sorted(science.rglob("*.py")) + sorted(science.rglob("*.json"))
    files += [Path(str(components.__file__)).parent / name for name in COMPUTING]
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def content_key(*parts: Any) -> str:
    """Hash of plain values, equal for equal contents."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
