"""A named grid of `ablations:`: every cell and seed a member of one workspace, run by DVC, ending in a table."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.ablation_params import Ablation, Cell
from components.params import Params, parse_params
from model.errors import UserError
from pipeline.graph import plain
from pipeline.run import local_server
from pipeline.workspace import assign, compared, fill_workspace, run_in


def ablate(
    name: str,
    /,
    params: Params,
    seeds: list[int] | None = None,
    stream: str = "",
    set: list[str] | None = None,
    jobs: int = 1,
    gpus: str = "",
    folder: Path | None = None,
) -> int:
    """Train and test every cell of a grid from every seed, then write `table.{md,html,csv,json}` and print the table.

    Cells that are the same network by construction are trained once. What is finished is kept: the same command goes
    on where it was stopped. Every cell and seed is one MLflow run in the experiment <dataset>/<protocol>/<name>.

    Args:
        name: entry of `ablations` in params.yaml.
        params: the parameters; the grid runs on their dataset and protocol.
        seeds: seeds in place of the grid's.
        stream: stream in place of the grid's.
        set: parameters of the dataset's entry to change, such as recipe.epochs=6.
        jobs: members trained side by side.
        gpus: indices of the GPUs to spread the jobs over, comma separated.
        folder: the workspace (default: ablations/<dataset>-<split>/<name>).

    Raises:
        UserError: no such grid, stream or option, or a cell failed.
    """
    if name not in params.ablations:
        raise UserError(f"ablate {name}: no such grid; there are {', '.join(params.ablations) or 'none'}")
    grid = params.ablations[name]
    changes: dict[str, Any] = {"seeds": seeds} if seeds else {}
    grid = grid.model_copy(update=changes | ({"stream": stream} if stream else {}))
    content = plain(params)
    for assignment in set or []:
        assign(content["datasets"][params.dataset], assignment)
    content, trained_as = grid_content(content, name, grid)
    home = Path.cwd()
    place = f"{params.dataset}-{params.entry.split.name}"
    folder = (folder or home / "ablations" / place / name).resolve()
    fill_workspace(folder, content)
    _bring_raw(home, folder, params.dataset)
    jobs = max(jobs, len([gpu for gpu in gpus.split(",") if gpu]))
    with _tracked_in(home, jobs):
        if run_in(folder, jobs, "--until", "evaluate", *(["--gpus", gpus] if gpus else [])):
            raise UserError(f"{folder}: a cell failed; its message stands above. Run the same again to go on")
    from components.tracking import connect
    from pipeline.ablation_table import write_table

    params = parse_params(content, name)
    text = write_table(folder, params, grid, trained_as)
    connect(home).describe(params.experiment, text)
    print(f"{text}\npage: {folder / 'table.html'}")
    return 0


def grid_content(content: dict[str, Any], name: str, grid: Ablation) -> tuple[dict[str, Any], dict[str, str]]:
    """Parameters whose members are the cells of a grid, and cell -> the cell that is trained for it.

    Raises UserError naming the cell with an option that its network has not.
    """
    whole = {**content, "members": _members(grid, list(grid.cells), grid.seeds[:1])}
    whole |= {"ensembles": {"all": {"members": dict.fromkeys(whole["members"], 1)}}, "register": {"ensemble": "all"}}
    whole = compared(whole)
    params = parse_params(whole, f"ablation {name}")
    options = {cell: resolved_options(params, f"{cell}-s{grid.seeds[0]}", name) for cell in grid.cells}
    trained_as = first_alike(options)
    trained = list(dict.fromkeys(trained_as.values()))
    named = {"model": 0, "stream": 0} | {key: 0 for cell in grid.cells.values() for key in cell.network}
    differing = [key for key in named if len({json.dumps(o.get(key, "-")) for o in options.values()}) > 1]
    cells = {}
    for cell in trained:
        titles = [grid.cells[c].title or c for c in grid.cells if trained_as[c] == cell]
        settings = {key: options[cell].get(key, "-") for key in differing}
        cells[cell] = {"title": " = ".join(titles), "settings": settings}
    members = _members(grid, trained, grid.seeds)
    whole |= {"members": members, "ensembles": {"all": {"members": dict.fromkeys(members, 1)}}}
    return {**whole, "ablation": {"name": name, "cells": cells}}, trained_as


def _members(grid: Ablation, cells: list[str], seeds: list[int]) -> dict[str, dict[str, Any]]:
    def member(cell: Cell, seed: int) -> dict[str, Any]:
        spec = {"model": cell.model or grid.model, "stream": cell.stream or grid.stream, "seed": seed}
        options = {**grid.network, **cell.network}
        return {**spec, "network": options} if options else spec

    return {f"{name}-s{seed}": member(grid.cells[name], seed) for name in cells for seed in seeds}


def resolved_options(params: Params, member: str, where: str) -> dict[str, Any]:
    """Model, stream and every option with an effect of a member's network, defaults written out."""
    from model.nets import decisive_options, network_options
    from model.nets.defaults import stream_options

    spec = params.member(member)
    given = {**stream_options(spec.model, spec.stream, params.entry.recipe.setting), **params.network_options(member)}
    unknown = given.keys() - network_options(spec.model)
    if unknown:
        raise UserError(
            f"{where}, {member}: network {spec.model!r} has no option {', '.join(sorted(unknown))}; "
            f"it takes {', '.join(network_options(spec.model))}"
        )
    return {"model": spec.model, "stream": spec.stream, **decisive_options(spec.model, given)}


def first_alike(options: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Name -> the first name whose options are the same."""
    first: dict[str, str] = {}
    return {name: first.setdefault(json.dumps(o, sort_keys=True), name) for name, o in options.items()}


def _bring_raw(home: Path, folder: Path, dataset: str) -> None:
    """Let the workspace see the raw files; the sample's are made by its own graph."""
    source, raw = home / "data" / "raw" / dataset, folder / "data" / "raw" / dataset
    if dataset == "sample":
        return
    if not source.is_dir():
        raise UserError(f"{source}: no raw files; bring them in with `sixstream data import`")
    if not raw.exists():
        raw.parent.mkdir(parents=True, exist_ok=True)
        raw.symlink_to(source.resolve(), target_is_directory=True)


@contextmanager
def _tracked_in(home: Path, jobs: int) -> Iterator[None]:
    """Have the cells' runs appear in the tracking of the folder that the grid was started in."""
    former = dict(os.environ)
    os.environ["SIXSTREAM_WORKSPACE"] = str(home)
    try:
        if jobs == 1:
            yield
        else:
            with local_server(home) as address:
                os.environ["MLFLOW_TRACKING_URI"] = address
                yield
    finally:
        os.environ.clear()
        os.environ.update(former)
