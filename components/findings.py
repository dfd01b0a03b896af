"""What a run's score tables and files say, as plain numbers: the content of every report."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components import analysis
from components.files import read_json
from model.ensemble import aligned
from model.errors import UserError
from model.metrics import confusion_matrix, summary
from model.scoretable import ScoreTable, load_table
from model.store import Store

METRICS = ("top1", "top5", "mean_class")
SHOWN_PAIRS = 12
MOST_EXACT = 12  # members up to which every subset is fused for exact Shapley values
DEFINITIONS = {
    "top1": "share of clips whose highest score is the true class",
    "top5": "share of clips whose true class is among the five highest scores",
    "mean_class": "mean over the classes that occur in the labels of the share of their clips that are right",
    "mean_class_union": "as mean_class, but classes that are only predicted count with 0 (MMAction2, PYSKL, ProtoGCN)",
    "interval": "95 % bootstrap over performances: a subject's takes of one action are drawn together, all views "
    "and repeats; single clips where subjects are unknown",
}


@dataclass(frozen=True)
class Row:
    """One line of the overview: a member's chosen checkpoint, or an ensemble of them, on the split reported.

    `by_checkpoint` is checkpoint -> split -> summary; `weights` the members' weights, empty for a member.
    """

    name: str
    kind: str
    table: ScoreTable
    by_checkpoint: dict[str, dict[str, Any]]
    chosen: str
    weights: dict[str, float]

    @property
    def matrix(self) -> NDArray:
        """(K, K) confusion counts, rows the true classes."""
        table = self.table
        return confusion_matrix(table.scores.argmax(axis=1), table.labels, classes=len(table.classes)).astype(int)


def find(
    rows: list[Row], packed: Store, positions: NDArray, splits: dict[str, NDArray], baseline: str = ""
) -> dict[str, Any]:
    """All numbers of a report but its title, curves and lineage.

    rows from `gather`, `positions` (N,) of their clips in the store, `splits` the parts of the store that the run
    used, as positions. `baseline` names the row that class changes
    are taken against (empty: the first). Raises UserError when it is unknown.
    """
    labels = rows[0].table.labels
    groups = analysis.performances(labels, {name: values[positions] for name, values in packed.factors.items()})
    return {
        "classes": rows[0].table.classes,
        "definitions": DEFINITIONS,
        "headline": headline(rows).name,
        **_score_numbers(rows, groups),
        "changes": _changes(rows, baseline),
        "data": _data_card(packed, splits),
    }


def gather(runs: Path, fused: Path, split: str, members: list[str], ensembles: list[str]) -> list[Row]:
    """Rows for the members, then the ensembles, all in one order of clips.

    Reads `runs/<member>/scores/{metrics.json,<chosen>-<split>.npz}` and `fused/{metrics.json,<name>/<split>.npz}`.
    Raises UserError when something is missing or damaged, when tables cannot be joined or disagree with the metrics.
    """
    if not members:
        raise UserError("report: names no member; list at least one")
    rows = []
    for name in members:
        scores = runs / name / "scores"
        metrics = read_json(scores / "metrics.json")
        chosen = metrics["chosen"]
        by_checkpoint = {which: _splits(metrics[which]) for which in ("best", "last") if which in metrics}
        rows.append(Row(name, "member", load_table(scores / f"{chosen}-{split}.npz"), by_checkpoint, chosen, {}))
    known = read_json(fused / "metrics.json")["ensembles"] if ensembles else {}
    for name in ensembles:
        if name not in known:
            raise UserError(f"{fused / 'metrics.json'}: holds no ensemble {name!r}; run `sixstream ensemble`")
        entry = dict(known[name])
        given = entry.pop("members")
        unknown = [member for member in given if member not in members]
        if unknown:
            raise UserError(f"ensemble {name!r}: member {unknown[0]!r} is not among the members reported; name it")
        weights = {member: given[member] for member in members if member in given}
        table = load_table(fused / name / f"{split}.npz")
        rows.append(Row(name, "ensemble", table, {"fused": _splits(entry)}, "fused", weights))
    for position, row in enumerate(rows):
        rows[position] = row = replace(row, table=aligned(row.table, rows[0].table))
        written = row.by_checkpoint[row.chosen].get(split, {})
        found = summary(row.table)
        if any(abs(found[metric] - written.get(metric, -1)) > 1e-6 for metric in METRICS):
            raise UserError(f"{runs}: metrics and score table of {row.name!r} on {split!r} disagree; evaluate it again")
    return rows


def _splits(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: found for name, found in entry.items() if isinstance(found, dict) and "top1" in found}


def positions_in(packed: Store, table: ScoreTable, where: Path) -> NDArray:
    """(N,) positions in the store of a table's clips. Raises UserError when it scored other data."""
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


def labels_of(names: list[str]) -> dict[str, str]:
    """Name -> what a page calls it: the dash-separated parts that all of several names share at either end left out.

    protogcn-joint-s0, protogcn-bone-s0 become joint, bone.
    """
    parts = [name.split("-") for name in names]
    shortest = min(len(part) for part in parts)
    same = [len({part[i] for part in parts}) == 1 for i in range(shortest)]
    begin = same.index(False) if False in same else 0
    same = [len({part[-1 - i] for part in parts}) == 1 for i in range(shortest - begin)]
    end = same.index(False) if False in same else 0
    short = ["-".join(part[begin : len(part) - end]) for part in parts]
    return dict(zip(names, short if all(short) and len(set(short)) == len(names) else names, strict=True))


def headline(rows: list[Row]) -> Row:
    """The row that the page opens with: the widest ensemble, a choice that does not look at the test split."""
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
                rest = [np.float64(row.weights[name]) * scores[name] for name in names if name != left]
                scores[f"{row.name} without {left}"] = np.sum(rest, axis=0).astype(np.float32)
    drawn = analysis.resample(labels, scores, groups)
    independent = len(np.unique(groups))
    members = [row.name for row in rows if row.kind == "member"]
    called = {name: name for name in scores} | labels_of(members)
    if len({called[row.name] for row in rows}) < len(rows):  # an ensemble has a member's short name
        called = {name: name for name in scores}
    overview = []
    for row in rows:
        found = summary(row.table)
        spans = {m: analysis.interval(drawn[row.name][m], found[m], independent) for m in METRICS}
        overview.append(
            {
                "name": row.name,
                "label": called[row.name],
                "kind": row.kind,
                "members": row.weights,
                "checkpoint": row.chosen,
                "test": found,
                "interval": spans,
                "by_checkpoint": row.by_checkpoint,
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
                "labels": [called[name] for name in names],
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
    against, shown = names[baseline] if baseline else rows[0], headline(rows)
    change = analysis.class_accuracy(shown.matrix) - analysis.class_accuracy(against.matrix)
    order = [int(k) for k in np.argsort(-change, kind="stable") if abs(change[k]) > 0.01]
    return {
        "of": shown.name,
        "against": against.name,
        "classes": [[shown.table.classes[k], float(change[k])] for k in order],
    }


def difficulty(rows: list[Row], ranking: Row) -> dict[str, Any]:
    """Mean class accuracy in bands of difficulty; `ranking`, a run outside `rows`, orders the classes."""
    table = aligned(ranking.table, rows[0].table)
    accuracies = {row.name: analysis.class_accuracy(row.matrix) for row in rows}
    bands = analysis.difficulty_bands(analysis.class_accuracy(replace(ranking, table=table).matrix), accuracies)
    return {"ranked_by": ranking.name, "bands": bands}


def _data_card(packed: Store, splits: dict[str, NDArray]) -> dict[str, Any]:
    counts = {
        name: np.bincount(packed.labels[positions], minlength=len(packed.classes)).tolist()
        for name, positions in splits.items()
    }
    quartiles = np.percentile(packed.frames, [0, 25, 50, 75, 100]).tolist()
    return {
        "clips": len(packed),
        "layout": packed.layout.name,
        "joints": packed.layout.num_joints,
        "channels": list(packed.channels),
        "data_hash": packed.data_hash,
        "splits": counts,
        "frames": dict(zip(("min", "q25", "median", "q75", "max"), quartiles, strict=True)),
        "total_frames": int(packed.frames.sum()),
        "several_persons": int((packed.persons > 1).sum()),
        "most_persons": int(packed.persons.max()),
        "factors": {name: int(len(np.unique(values))) for name, values in sorted(packed.factors.items())},
    }
