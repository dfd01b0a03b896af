"""The table that a grid ends in: every cell, those that are the same by construction said to be so."""

from pathlib import Path

from components.ablation_params import Ablation
from components.compare import chosen_table
from components.comparison import Entry, compare_entries, independent_units
from components.comparison_tables import write_comparison
from components.findings import positions_in
from components.params import Params
from model.store import open_store


def write_table(folder: Path, params: Params, grid: Ablation, trained_as: dict[str, str]) -> str:
    """Compare the cells of a finished workspace; writes `table.{md,html,csv,json}` there and returns the Markdown."""
    split, runs = params.entry.split, folder / "runs" / params.dataset / params.protocol
    store = open_store(folder / "data" / "packed" / params.dataset)
    titles = {name: cell.title or name for name, cell in grid.cells.items()}
    known = grid.published
    told = known is not None and (known.classes, known.split, known.stream) == (
        len(store.classes),
        split.name,
        grid.stream,
    )
    published = known.top1 if known and told else {}
    entries = []
    for cell in dict.fromkeys(trained_as.values()):
        scores = {seed: runs / f"{cell}-s{seed}" / "scores" for seed in grid.seeds}
        tables = {seed: chosen_table(path, split.test[0]) for seed, path in scores.items()}
        entries.append(Entry(titles[cell], tables, published.get(cell)))
    first = entries[0].tables[grid.seeds[0]]
    positions = positions_in(store, first, folder)
    factors = {name: values[positions] for name, values in store.factors.items()}
    numbers = compare_entries(entries, independent_units(first.ids, first.labels, factors))
    rows = dict(zip(dict.fromkeys(trained_as.values()), numbers["rows"], strict=True))
    assert params.ablation is not None
    numbers["title"] = f"{params.ablation.name}: {params.dataset} {split.name}, {grid.stream}"
    numbers["about"] = f"{grid.about}. Protocol {params.protocol}, {params.entry.recipe.epochs} epochs."
    if known is not None:
        numbers["published"] = known.source
    numbers["rows"] = [
        rows[cell]
        if trained_as[cell] == cell
        else {"title": titles[cell], "same_as": titles[trained_as[cell]], "published": published.get(cell)}
        for cell in grid.cells
    ]
    return write_comparison(folder, numbers)
