"""`sixstream compare`: runs named on the command line, paired on the same clips."""

import re
from pathlib import Path
from typing import Any

from components.comparison import Entry, compare_entries, independent_units
from components.comparison_tables import write_comparison
from components.files import read_json
from components.findings import positions_in
from components.params import Params
from model.errors import UserError
from model.scoretable import ScoreTable, load_table
from model.store import open_store


def compare(
    runs: list[str], /, params: Params, split: str = "", data: Path | None = None, out: Path = Path("comparison")
) -> dict[str, Any]:
    """Say which of several runs is better: paired test, classes that changed; writes `table.{md,html,csv,json}`.

    Every run after the first is tested against the first. A run is a member or ensemble of params.yaml, a member's
    name without `-sSEED` for all its seeds, a folder with score tables or one such file; `A,B` puts several seeds of
    one candidate together, and `TITLE=` before it names it in tables.

    Args:
        runs: two or more runs, the one to beat first.
        params: the parameters; names are looked up in them.
        split: split to compare on (default: the main test split).
        data: folder of the packed store, which knows who performs (default: data/packed/<dataset>, where it is).
        out: folder for the tables.

    Raises:
        UserError: a run is not found, or the runs did not score the same clips.
    """
    if len(runs) < 2:
        raise UserError("compare: name at least two runs, the one to beat first")
    split = split or params.entry.split.test[0]
    entries = [_entry(run, params, split) for run in runs]
    titles = [entry.title for entry in entries]
    if len(set(titles)) < len(titles):
        raise UserError(f"compare: two runs are called alike among {', '.join(titles)}; give titles, TITLE=RUN")
    first = next(iter(entries[0].tables.values()))
    numbers = compare_entries(entries, independent_units(first.ids, first.labels, _factors(params, first, data)))
    numbers = {"title": f"{', '.join(titles[1:])} against {titles[0]}", **numbers}
    print(write_comparison(out, numbers))
    print(f"page: {out / 'table.html'}")
    return numbers


def _factors(params: Params, table: ScoreTable, data: Path | None) -> dict[str, Any]:
    """Who performs each clip of a table, as far as a store of the same data says."""
    folder = data or Path("data") / "packed" / params.dataset
    if data is None and not folder.is_dir():
        return {}
    store = open_store(folder)
    if data is None and store.data_hash != table.data_hash:
        return {}
    positions = positions_in(store, table, folder)
    return {name: values[positions] for name, values in store.factors.items()}


def _entry(run: str, params: Params, split: str) -> Entry:
    title, equals, rest = run.partition("=")
    parts = (rest if equals else run).split(",")
    tables: dict[int, ScoreTable] = {}
    for part in parts:
        for name in _seeds_of(part, params):
            table = _table(name, params, split)
            seed = _seed(name, params, len(tables))
            if seed in tables:
                raise UserError(f"compare {run}: seed {seed} occurs twice")
            tables[seed] = table
    return Entry(title if equals else parts[0].rstrip("/"), tables)


def _seeds_of(part: str, params: Params) -> list[str]:
    """A name, or all seeds of a member that is named without one."""
    if part in params.members or part in params.ensembles or Path(part).exists():
        return [part]
    seeds = [name for name in params.members if re.fullmatch(re.escape(part) + r"-s\d+", name)]
    if not seeds:
        known = ", ".join([*params.members, *params.ensembles])
        raise UserError(f"compare {part}: no such member, ensemble, folder or file; there are {known}")
    return seeds


def _seed(name: str, params: Params, position: int) -> int:
    if name in params.members:
        return params.member(name).seed
    match = re.search(r"-s(\d+)(?=$|/)", name)
    return int(match[1]) if match else position


def _table(name: str, params: Params, split: str) -> ScoreTable:
    place = Path(params.dataset) / params.protocol
    if name in params.members:
        return chosen_table(Path("runs") / place / name / "scores", split)
    if name in params.ensembles:
        return load_table(Path("ensembles") / place / name / f"{split}.npz")
    path = Path(name)
    if path.is_file():
        return load_table(path)
    for folder in (path, path / "scores"):
        if (folder / "metrics.json").is_file():
            return chosen_table(folder, split)
    return load_table(path / f"{split}.npz")


def chosen_table(scores: Path, split: str) -> ScoreTable:
    """The score table of the checkpoint that the protocol counts, in the folder that `evaluate` wrote."""
    return load_table(scores / f"{read_json(scores / 'metrics.json')['chosen']}-{split}.npz")
