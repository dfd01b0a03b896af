"""The stages of dvc.yaml as plain values: what another orchestrator needs to run the same graph.

Understood are `foreach` over a mapping or a list and `${…}` with a key of the parameters or of `vars`, `key` or `item`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.params import Params, read_params
from model.errors import UserError

GOALS = ("report", "register")  # not everything: the sample data are made only for the dataset that needs them
# Pipeline → its goals, and a further file of stages. The cells of a grid are not fused.
PIPELINES: dict[str, tuple[tuple[str, ...], str | None]] = {
    "members": (GOALS, None),
    "umurl": (("linear", "retrieve", "plot"), "pipeline/unsupervised/dvc.yaml"),
    "ablation": (("evaluate",), None),
}
NOT_IN_GRAPH = {"compute", "umurl", "ablations", "tune"}
PLACE = re.compile(r"\$\{([^}]+)\}")


@dataclass(frozen=True)
class Stage:
    """One stage, every name and number filled in."""

    name: str  # as DVC calls it: train@protogcn-joint-s0
    command: str  # sixstream VERB …
    out: str  # path of what it makes
    inputs: tuple[str, ...]  # paths that it reads; code is not among them
    params: dict[str, Any]  # key → value, those of another stage's file as FILE:KEY
    needs: dict[str, str] = field(default_factory=dict)  # stage whose output is read → path of that output
    follows: tuple[str, ...] = ()  # stages of which only parameters are read

    @property
    def verb(self) -> str:
        """The verb of the command line that it runs."""
        return self.command.split()[1]


def plain(params: Params, pipeline: str = "members") -> dict[str, Any]:
    """The parameters as they would stand in params.yaml, for the dataset that is run without what no stage reads."""
    others = NOT_IN_GRAPH - {pipeline}
    content = params.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude=others)
    return {**content, "datasets": {params.dataset: content["datasets"][params.dataset]}}


def stages(params: Params, graph: Path, pipeline: str = "members") -> list[Stage]:
    """The stages that the goals of a pipeline need, in an order in which they can run.

    The parameters that stages read from the file of the stage `entry` are those of `params`, where recipes are
    written out. Raises UserError when `graph` is missing or uses what this reader does not know.
    """
    content, entry = plain(params, pipeline), params.entry.model_dump(mode="json")
    goals, further = PIPELINES[pipeline]
    found: dict[str, Stage] = {}
    for file in [graph] + ([graph.parent / further] if further else []):
        written = read_params(file)
        own = {key: value for one in written.get("vars", []) if isinstance(one, Mapping) for key, value in one.items()}
        values = {**content, **own}
        for name, stage in written["stages"].items():
            for full, body, item in _items(name, stage, values, file):
                found[full] = _stage(full, body, {**values, **item}, entry)
    return _ordered(_joined(list(found.values())), goals)


def _items(name: str, stage: Any, values: Mapping[str, Any], file: Path) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """(full name, body, what `key` and `item` are) of every stage that one entry of the file stands for."""
    if "foreach" not in stage:
        yield name, stage, {}
        return
    items = _filled(stage["foreach"], values)
    if isinstance(items, Mapping):
        for key, item in items.items():
            yield f"{name}@{key}", stage["do"], {"key": key, "item": item}
    elif isinstance(items, list) and all(isinstance(item, str) for item in items):
        for item in items:
            yield f"{name}@{item}", stage["do"], {"item": item}
    else:
        raise UserError(f"{file}: stages.{name}.foreach: only a mapping or a list of names is understood")


def _stage(name: str, stage: Mapping[str, Any], values: Mapping[str, Any], entry: Mapping[str, Any]) -> Stage:
    stage = _filled(stage, values)
    outs = stage["outs"]
    if len(outs) != 1 or "matrix" in stage:
        raise UserError(f"stage {name}: one output and no matrix are understood")
    command = " ".join(stage["cmd"].split())
    params: dict[str, Any] = {}
    follows = []
    for item in stage.get("params", []):
        if isinstance(item, str):
            params[item] = _value(item, values)
        else:
            for file, keys in item.items():
                follows.append(file)
                params |= {f"{file}:{key}": _value(key, entry) for key in keys}
    # A path that the command names is data; the others are code, which the image holds.
    inputs = tuple(path for path in stage["deps"] if path in command.split())
    return Stage(name, command, outs[0], inputs, params, follows=tuple(follows))


def _joined(found: list[Stage]) -> list[Stage]:
    """The same with `needs` and `follows` naming stages."""
    joined = []
    for stage in found:
        needs = {}
        for other in found:
            if other is not stage and any(_overlap(other.out, path) for path in stage.inputs):
                needs[other.name] = other.out
        follows = tuple(other.name for other in found if other.out in stage.follows)
        joined.append(Stage(stage.name, stage.command, stage.out, stage.inputs, stage.params, needs, follows))
    return joined


def _overlap(one: str, other: str) -> bool:
    return Path(one).is_relative_to(other) or Path(other).is_relative_to(one)


def _ordered(found: list[Stage], goals: tuple[str, ...]) -> list[Stage]:
    """The goals and what they need, every stage behind those it needs."""
    by_name = {stage.name: stage for stage in found}
    order: dict[str, Stage] = {}

    def visit(name: str) -> None:
        if name not in order:
            for before in (*by_name[name].needs, *by_name[name].follows):
                visit(before)
            order[name] = by_name[name]

    for name in by_name:
        if name.partition("@")[0] in goals:
            visit(name)
    return list(order.values())


def _filled(node: Any, values: Mapping[str, Any]) -> Any:
    """`node` with every ${…} replaced; a text that is nothing but one of them becomes the value itself."""
    if isinstance(node, Mapping):
        return {_filled(key, values): _filled(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(item, values) for item in node]
    if not isinstance(node, str):
        return node
    whole = PLACE.fullmatch(node)
    if whole:
        return _value(whole[1], values)
    return PLACE.sub(lambda match: str(_value(match[1], values)), node)


def _value(path: str, values: Any) -> Any:
    """The value at a path such as `members.protogcn-joint-s0`; None where there is none.

    Names may hold dots, so the longest key that fits is taken.
    """
    if not path:
        return values
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        key = ".".join(parts[:length])
        if isinstance(values, Mapping) and key in values:
            return _value(".".join(parts[length:]), values[key])
    return None
