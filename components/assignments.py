"""`KEY=VALUE` arguments of the command line: values are YAML, `a.b=1` sets `b` inside `a`."""

from collections.abc import Iterable
from typing import Any

import yaml

from model.errors import UserError


def assign(entry: dict[str, Any], assignment: str, option: str) -> None:
    """Set one value in `entry` from `a.b.c=VALUE`. Raises UserError naming the `option` that gave it."""
    path, equals, value = assignment.partition("=")
    if not equals or not path:
        raise UserError(f"{option} {assignment}: write a key and a value, such as base_channels=32")
    *parents, last = path.split(".")
    for key in parents:
        entry = entry.setdefault(key, {})
        if not isinstance(entry, dict):
            raise UserError(f"{option} {assignment}: {key} holds no parameters of its own")
    try:
        entry[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"{option} {assignment}: the value is not YAML: {error}") from None


def assigned(assignments: Iterable[str] | None, option: str) -> dict[str, Any]:
    """All assignments as one dictionary."""
    values: dict[str, Any] = {}
    for assignment in assignments or []:
        assign(values, assignment, option)
    return values
