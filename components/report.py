"""One report of a run: a page to look at, figures as PNG, and the same numbers as Markdown, CSV and JSON."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.environment import code_commit
from components.files import read_json, staged_dir, write_bytes, write_json, write_text
from components.findings import METRICS, difficulty, find, gather, positions_in
from components.params import Params
from components.splits import DEVELOPMENT, parts_of, scored_splits
from components.tracked import track_report
from model.errors import UserError
from model.store import open_store
from model.streams import HEATMAP_STREAMS


def report(
    params: Params, data: Path, runs: Path, ensembles: Path, out: Path, baseline: str = "", ranked_by: str = ""
) -> None:
    """Write `report.html`, `table.md`, `table.csv`, `table.json` and `figures/*.png` for all members and ensembles.

    Args:
        params: the parameters; members, ensembles and the protocol are named there.
        data: folder of the packed store.
        runs: folder with `<member>/train` and `<member>/scores`.
        ensembles: folder of the fused tables.
        out: folder for the report; it is replaced whole.
        baseline: member or ensemble against which class changes are drawn (default: the parameters', else the first).
        ranked_by: a member of the run folder whose accuracies rank the classes; it is left out of the comparison
            (default: the parameters').

    Raises:
        UserError: a file is missing or damaged, or was made from other data than `data`.
    """
    split = params.entry.split
    ranked_by = ranked_by or params.report.ranked_by
    members = {name: member for name, member in params.members.items() if name != ranked_by}
    using = [name for name, fused in params.ensembles.items() if ranked_by in fused.members]
    if using:
        raise UserError(
            f"report: ranked_by {ranked_by!r} must be outside the comparison, but it is a member of the ensemble "
            f"{using[0]!r}; name another"
        )
    store = open_store(data)
    parts = parts_of(store, params)
    lineage = {
        "dataset": params.dataset,
        "data": {"source": store.meta["source"], "store version": store.meta["version"]},
        "split": split.model_dump(),
        "code commit": code_commit(Path(__file__).parent.parent),
        "members": {name: member.model_dump() for name, member in params.members.items()},
        "tracked in": f"experiment {params.experiment}",
        "once registered": f"sixstream lineage models:/{params.dataset}-{split.name}-ensemble@champion",
    }
    write_report(
        runs,
        ensembles,
        data,
        out,
        title=f"{params.dataset} {split.name}",
        protocol=parts.description,
        split=split.test[0],
        splits={"train": parts.train, **scored_splits(parts)},
        lineage=lineage,
        members=list(members),
        ensembles=list(params.ensembles),
        baseline=baseline or params.report.baseline,
        ranked_by=ranked_by,
        heatmaps=[name for name, member in members.items() if member.stream in HEATMAP_STREAMS],
    )
    track_report(params, store, out)


def write_report(
    runs: Path,
    fused: Path,
    store: Path,
    out: Path,
    *,
    title: str,
    protocol: str,
    split: str,
    splits: dict[str, NDArray],
    lineage: dict[str, Any],
    members: list[str],
    ensembles: list[str],
    baseline: str = "",
    ranked_by: str = "",
    heatmaps: Sequence[str] = (),
) -> dict[str, Any]:
    """Gather a run's scores and write the report into `out`, which is replaced whole.

    runs: `<member>/train/{history,train}.json`, `<member>/scores/…`; fused: ensembles' tables and metrics;
    store: the packed store that was scored. `protocol` says in a sentence how the epoch was chosen and what was
    tested; `split` is the test split reported, others that were scored are listed beside it; `splits` are the parts
    of the store that the run used, as positions; `lineage` holds nested plain values. `baseline` and `ranked_by` as
    in `report`; of the members `heatmaps` the maps of some clips are drawn as `<member>/train/best.pt` sees them.
    Returns the numbers of `table.json`. Raises UserError as `report` does.
    """
    packed = open_store(store)
    rows = gather(runs, fused, split, members, ensembles)
    positions = positions_in(packed, rows[0].table, store)
    histories = {name: read_json(runs / name / "train" / "history.json") for name in members}
    numbers = {
        "title": title,
        "protocol": protocol,
        "split": split,
        **find(rows, packed, positions, splits, baseline),
        "training": {name: _cost(runs / name / "train", histories[name]) for name in members},
        "lineage": lineage,
    }
    if ranked_by in members:
        raise UserError(f"report: ranked_by {ranked_by!r} is itself compared; name a baseline outside the members")
    if ranked_by:
        numbers["difficulty"] = difficulty(rows, gather(runs, fused, split, [ranked_by], [])[0])
    # Drawing imports matplotlib, which a caller that reads the options must not pay for.
    from components.page import draw_figures, write_page

    with staged_dir(out) as aside:
        drawn = draw_figures(numbers, rows, histories, {name: packed.frames[chosen] for name, chosen in splits.items()})
        drawn |= write_page(aside / "report.html", numbers, rows, packed, positions, drawn, runs, heatmaps)
        for name, (_, png) in drawn.items():
            write_bytes(aside / "figures" / f"{name}.png", png)
        write_json(aside / "table.json", numbers)
        write_text(aside / "table.md", markdown(numbers))
        write_text(aside / "table.csv", comma_separated(numbers))
    return numbers


def _cost(trained: Path, history: list[dict[str, float]]) -> dict[str, Any]:
    """Facts of a training; what `train.json` does not say follows from the epochs."""
    cost: dict[str, Any] = {"epochs": len(history), **read_json(trained / "train.json")}
    if history and "seconds" in history[0]:
        cost["seconds"] = round(sum(entry["seconds"] for entry in history), 1)
    if "seconds" in cost:
        cost["device_hours"] = round(cost["seconds"] * cost.get("processes", 1) / 3600, 4)
    if history and "samples_per_s" in history[0]:
        cost["samples_per_s"] = round(float(np.median([entry["samples_per_s"] for entry in history])), 1)
    return cost


def markdown(numbers: dict[str, Any]) -> str:
    """The overview as a Markdown table, with its protocol and definitions."""
    lines = [
        f"# {numbers['title']}",
        "",
        f"Protocol {numbers['protocol']}. Split `{numbers['split']}`, {numbers['rows'][0]['test']['count']} clips.",
        "",
        "| | checkpoint | top-1 % | 95 % | top-5 % | mean class % | dev top-1 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in numbers["rows"]:
        low, high = row["interval"]["top1"]
        dev = row["by_checkpoint"][row["checkpoint"]].get(DEVELOPMENT)
        shown = [f"{100 * row['test'][metric]:.2f}" for metric in METRICS]
        cells = [row["name"], row["checkpoint"], shown[0], f"{100 * low:.1f} to {100 * high:.1f}", *shown[1:]]
        lines.append("| " + " | ".join([*cells, f"{100 * dev['top1']:.2f}" if dev else ""]) + " |")
    lines += ["", *(f"- {name}: {text}" for name, text in numbers["definitions"].items()), ""]
    return "\n".join(lines)


def comma_separated(numbers: dict[str, Any]) -> str:
    """Every row, checkpoint and split, one line each; fractions. Intervals where the split was resampled."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    bounds = [f"{metric}_{side}" for metric in METRICS for side in ("low", "high")]
    writer.writerow(["name", "kind", "checkpoint", "chosen", "split", "count", *METRICS, "mean_class_union", *bounds])
    for row in numbers["rows"]:
        for checkpoint, splits in row["by_checkpoint"].items():
            for split, found in splits.items():
                chosen = checkpoint == row["checkpoint"]
                values = [found.get(metric) for metric in (*METRICS, "mean_class_union")]
                spans = [""] * len(bounds)
                if chosen and split == numbers["split"]:
                    spans = [bound for metric in METRICS for bound in row["interval"][metric]]
                start = [row["name"], row["kind"], checkpoint, int(chosen), split, found.get("count")]
                writer.writerow([*start, *values, *spans])
    return text.getvalue()
