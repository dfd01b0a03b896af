"""One report of a run: a page to look at, figures as PNG, and the same numbers as Markdown, CSV and JSON."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components import analysis
from components.files import read_json, staged_dir, write_bytes, write_json, write_text
from model.ensemble import aligned
from model.errors import UserError
from model.metrics import confusion_matrix, summary
from model.scoretable import ScoreTable, load_table
from model.store import Store, open_store

DEVELOPMENT = "development"
METRICS = ("top1", "top5", "mean_class")
SHOWN_PAIRS = 12
MOST_EXACT = 12  # members up to which every subset is fused for exact Shapley values


@dataclass(frozen=True)
class Row:
    """One line of the overview: a member's chosen checkpoint, or an ensemble of them, on the split reported."""

    name: str
    kind: str
    table: ScoreTable
    metrics: dict[str, Any]  # checkpoint -> split -> summary
    chosen: str
    weights: dict[str, float]

    @property
    def matrix(self) -> NDArray:
        table = self.table
        return confusion_matrix(table.scores.argmax(axis=1), table.labels, classes=len(table.classes)).astype(int)


def report(
    root: Path,
    store: Path,
    out: Path,
    *,
    title: str,
    protocol: str,
    split: str,
    lineage: dict[str, Any],
    members: list[str],
    ensembles: list[str],
    baseline: str = "",
    ranked_by: str = "",
) -> dict[str, Any]:
    """Gather a run's scores and write `report.html`, `table.{md,csv,json}` and `figures/*.png` into `out`.

    Args:
        root: run folder with `<member>/{history,train}.json`, `<member>/scores/{best,last}-<split>.npz` and
            `<member>/scores/metrics.json`, and `ensemble/<name>/<split>.npz` and `ensemble/metrics.json`.
        store: packed store that was scored.
        out: folder to write; it is replaced whole.
        title: headline of the page, usually dataset and split.
        protocol: how the epoch was chosen and what was tested, in a sentence.
        split: the test split reported; the others that were scored are listed beside it.
        lineage: where the numbers come from (commit, hashes, versions), nested plain values.
        members: member names in the order shown.
        ensembles: ensemble names in the order shown.
        baseline: member or ensemble against which class changes are drawn (empty: the first member).
        ranked_by: a member of `root` outside `members` whose class accuracies rank the classes by difficulty
            (empty: no difficulty table).

    Returns:
        The numbers of `table.json`, with `files`: what was written.

    Raises:
        UserError: a file is missing or damaged, tables were scored on other data than `store`, metrics and tables
            disagree, or a name is unknown.
    """
    packed = open_store(store)
    rows = _gather(root, split, members, ensembles)
    like = rows[0].table
    positions = _positions(packed, like, store)
    groups = analysis.performances(like.labels, {name: values[positions] for name, values in packed.factors.items()})
    numbers = {
        "title": title,
        "protocol": protocol,
        "split": split,
        "classes": like.classes,
        "definitions": DEFINITIONS,
        "headline": _headline(rows).name,
        **_score_numbers(rows, groups),
        "changes": _changes(rows, baseline),
        "difficulty": _difficulty(root, split, rows, members, ranked_by),
        "training": {name: read_json(root / name / "train.json") for name in members},
        "data": _data_card(packed),
        "lineage": lineage,
    }
    histories = {name: read_json(root / name / "history.json") for name in members}

    # Drawing imports matplotlib, which callers that only need the function's name must not pay for.
    from components.page import draw_figures, write_page

    with staged_dir(out) as aside:
        drawn = draw_figures(numbers, {row.name: row.matrix for row in rows}, histories, packed)
        payload = write_page(aside / "report.html", numbers, rows, packed, positions, drawn)
        for name, (_, png) in {**drawn, **payload}.items():
            write_bytes(aside / "figures" / f"{name}.png", png)
        write_json(aside / "table.json", numbers)
        write_text(aside / "table.md", markdown(numbers))
        write_text(aside / "table.csv", comma_separated(numbers))
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    return {**numbers, "files": files}


DEFINITIONS = {
    "top1": "share of clips whose highest score is the true class",
    "top5": "share of clips whose true class is among the five highest scores",
    "mean_class": "mean over the classes that occur in the labels of the share of their clips that are right",
    "mean_class_union": "as mean_class, but classes that are only predicted count with 0 (MMAction2, PYSKL, ProtoGCN)",
    "interval": "95 % bootstrap over performances: a subject's takes of one action are drawn together, all views "
    "and repeats; single clips where subjects are unknown",
}


def _gather(root: Path, split: str, members: list[str], ensembles: list[str]) -> list[Row]:
    if not members:
        raise UserError("report: names no member; list at least one")
    rows = []
    for name in members:
        metrics = read_json(root / name / "scores" / "metrics.json")
        chosen = metrics["chosen"]
        table = load_table(root / name / "scores" / f"{chosen}-{split}.npz")
        rows.append(Row(name, "member", table, {k: metrics[k] for k in ("best", "last")}, chosen, {}))
    fused = read_json(root / "ensemble" / "metrics.json")["ensembles"] if ensembles else {}
    for name in ensembles:
        if name not in fused:
            raise UserError(f"{root / 'ensemble' / 'metrics.json'}: holds no ensemble {name!r}; fuse it first")
        entry = dict(fused[name])
        weights = entry.pop("members")
        unknown = [member for member in weights if member not in members]
        if unknown:
            raise UserError(f"ensemble {name!r}: member {unknown[0]!r} is not among the members reported; name it")
        table = load_table(root / "ensemble" / name / f"{split}.npz")
        rows.append(Row(name, "ensemble", table, {"chosen": entry}, "chosen", weights))
    for position, row in enumerate(rows):
        rows[position] = row = Row(**{**vars(row), "table": aligned(row.table, rows[0].table)})
        written = row.metrics[row.chosen].get(split, {})
        found = summary(row.table)
        if any(abs(found[metric] - written.get(metric, -1)) > 1e-6 for metric in METRICS):
            raise UserError(f"{root}: metrics and score table of {row.name!r} on {split!r} disagree; evaluate it again")
    return rows


def _positions(packed: Store, table: ScoreTable, where: Path) -> NDArray:
    if table.data_hash != packed.data_hash:
        raise UserError(
            f"{where}: its data hash {packed.data_hash} is not that of the scores ({table.data_hash}); "
            "evaluate the members on this store"
        )
    place = {sample: position for position, sample in enumerate(packed.ids)}
    missing = [sample for sample in table.ids if sample not in place]
    if missing:
        raise UserError(f"{where}: has no sample {missing[0]!r}, which was scored; evaluate on this store")
    return np.array([place[sample] for sample in table.ids])


def _headline(rows: list[Row]) -> Row:
    # The widest ensemble, not the best one: the choice must not look at the test split.
    return max(rows, key=lambda row: len(row.weights))


def _score_numbers(rows: list[Row], groups: NDArray) -> dict[str, Any]:
    labels = rows[0].table.labels
    scores = {row.name: row.table.scores for row in rows}
    if len(scores) != len(rows):
        raise UserError(f"report: a name occurs twice among {[row.name for row in rows]}; rename an ensemble")
    parts = {}
    for row in rows:
        if 2 <= len(row.weights) <= MOST_EXACT:
            names, weights = list(row.weights), list(row.weights.values())
            parts[row.name] = analysis.contributions(labels, [scores[name] for name in names], weights)
            for left in names:
                rest = sum(np.float32(row.weights[name]) * scores[name] for name in names if name != left)
                scores[f"{row.name} without {left}"] = rest
    drawn = analysis.resample(labels, scores, groups)
    independent = len(np.unique(groups))
    overview = []
    for row in rows:
        found = summary(row.table)
        spans = {m: analysis.interval(drawn[row.name][m], found[m], independent) for m in METRICS}
        overview.append(
            {
                "name": row.name,
                "kind": row.kind,
                "members": row.weights,
                "checkpoint": row.chosen,
                "test": found,
                "interval": spans,
                "by_checkpoint": row.metrics,
                "calibration": analysis.reliability(labels, row.table.scores),
                "class_accuracy": [None if np.isnan(v) else v for v in analysis.class_accuracy(row.matrix).tolist()],
                "confused": analysis.confused_pairs(row.matrix, SHOWN_PAIRS),
            }
        )
    contributions = []
    for row in rows:
        if row.name not in parts:
            continue
        part, names = parts[row.name], list(row.weights)
        mine = drawn[row.name]["top1"]
        best = names[int(np.argmax(part["alone"]))]
        gains = {name: mine - drawn[f"{row.name} without {name}"]["top1"] for name in names}
        contributions.append(
            {
                "name": row.name,
                "members": names,
                "weights": list(row.weights.values()),
                **part,
                "lost": [part["fused"] - without for without in part["without"]],
                "lost_interval": [np.percentile(gains[name], [2.5, 97.5]).tolist() for name in names],
                "best_member": best,
                "gain": part["fused"] - max(part["alone"]),
                "gain_interval": np.percentile(mine - drawn[best]["top1"], [2.5, 97.5]).tolist(),
            }
        )
    return {"rows": overview, "contributions": contributions, "independent": independent}


def _changes(rows: list[Row], baseline: str) -> dict[str, Any]:
    names = {row.name: row for row in rows}
    if baseline and baseline not in names:
        raise UserError(f"report: baseline {baseline!r} is not reported; name one of {', '.join(names)}")
    against, headline = names[baseline] if baseline else rows[0], _headline(rows)
    change = analysis.class_accuracy(headline.matrix) - analysis.class_accuracy(against.matrix)
    order = [int(k) for k in np.argsort(-change, kind="stable") if abs(change[k]) > 0.01]
    return {
        "of": headline.name,
        "against": against.name,
        "classes": [[headline.table.classes[k], float(change[k])] for k in order],
    }


def _difficulty(root: Path, split: str, rows: list[Row], members: list[str], ranked_by: str) -> dict[str, Any] | None:
    if not ranked_by:
        return None
    if ranked_by in members:
        raise UserError(f"report: ranked_by {ranked_by!r} is itself compared; name a baseline outside the members")
    (baseline,) = _gather(root, split, [ranked_by], [])
    aligned(baseline.table, rows[0].table)
    accuracies = {row.name: analysis.class_accuracy(row.matrix) for row in rows}
    bands = analysis.difficulty_bands(analysis.class_accuracy(baseline.matrix), accuracies)
    return {"ranked_by": ranked_by, "bands": bands}


def _data_card(packed: Store) -> dict[str, Any]:
    counts = {
        name: np.bincount(packed.labels[positions], minlength=len(packed.classes)).tolist()
        for name, positions in sorted(packed.splits.items())
    }
    seconds_person = packed.persons > 1
    return {
        "clips": len(packed),
        "layout": packed.layout.name,
        "joints": packed.layout.num_joints,
        "channels": list(packed.channels),
        "data_hash": packed.data_hash,
        "splits": counts,
        "frames": dict(zip(("min", "q25", "median", "q75", "max"),
                           np.percentile(packed.frames, [0, 25, 50, 75, 100]).tolist(), strict=True)),
        "total_frames": int(packed.frames.sum()),
        "several_persons": int(seconds_person.sum()),
        "most_persons": int(packed.persons.max()),
        "factors": {name: int(len(np.unique(values))) for name, values in sorted(packed.factors.items())},
    }  # fmt: skip


def markdown(numbers: dict[str, Any]) -> str:
    """The overview as a Markdown table, with its protocol and definitions."""
    lines = [
        f"# {numbers['title']}",
        "",
        f"Protocol: {numbers['protocol']}. Split `{numbers['split']}`, {numbers['rows'][0]['test']['count']} clips.",
        "",
        "| | checkpoint | top-1 % | 95 % | top-5 % | mean class % | dev top-1 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in numbers["rows"]:
        low, high = row["interval"]["top1"]
        dev = row["by_checkpoint"][row["checkpoint"]].get(DEVELOPMENT)
        shown = [f"{100 * row['test'][metric]:.2f}" for metric in METRICS]
        lines.append(
            f"| {row['name']} | {row['checkpoint']} | {shown[0]} | {100 * low:.1f} to {100 * high:.1f} "
            f"| {shown[1]} | {shown[2]} | {100 * dev['top1']:.2f} |" if dev else
            f"| {row['name']} | {row['checkpoint']} | {shown[0]} | {100 * low:.1f} to {100 * high:.1f} "
            f"| {shown[1]} | {shown[2]} | |"
        )  # fmt: skip
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
