"""Fusing score tables: joined by sample id, never by position, and summed with weights."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from model.errors import UserError
from model.metrics import mean_class_accuracy, top_k
from model.scoretable import ScoreTable


def fuse(tables: Sequence[ScoreTable], weights: Sequence[float], name: str) -> ScoreTable:
    """The weighted sum of the tables' scores, in the first table's order of samples.

    The sum is not divided by the weights' total, as in the original ensembles; arg-max does not depend on it.
    It is taken in double precision in the order given, then stored as float32. Raises UserError naming the
    tables and samples when they do not describe the same clips, labels, classes, data or split.
    """
    if not tables:
        raise UserError(f"ensemble {name!r}: names no member")
    if len(weights) != len(tables):
        raise UserError(f"ensemble {name!r}: {len(tables)} members but {len(weights)} weights")
    if not np.isfinite(weights).all() or not any(weights):
        raise UserError(f"ensemble {name!r}: weights {list(weights)} must be finite and not all zero")
    first = tables[0]
    total = np.zeros(first.scores.shape, dtype=np.float64)
    for table, weight in zip(tables, weights, strict=True):
        total += weight * aligned(table, first).scores.astype(np.float64)
    return replace(first, scores=total.astype(np.float32), member=name)


def aligned(table: ScoreTable, like: ScoreTable) -> ScoreTable:
    """`table` with its rows in the order of `like`. Raises UserError when the two cannot be joined."""
    pair = f"{table.member!r} and {like.member!r}"
    for field, what in (("split", "splits"), ("data_hash", "data"), ("classes", "classes")):
        mine, theirs = getattr(table, field), getattr(like, field)
        if mine != theirs:
            raise UserError(
                f"{pair} are scored on different {what}: {_difference(mine, theirs)}; score both again alike"
            )
    position = {sample: row for row, sample in enumerate(table.ids)}
    missing = [sample for sample in like.ids if sample not in position]
    if missing:
        raise UserError(f"{table.member!r} lacks {_some(missing)}, scored by {like.member!r}; score it again")
    if len(table) != len(like):
        known = set(like.ids)
        extra = [sample for sample in table.ids if sample not in known]
        raise UserError(f"{like.member!r} lacks {_some(extra)}, scored by {table.member!r}; score it again")
    rows = np.array([position[sample] for sample in like.ids])
    differing = np.flatnonzero(table.labels[rows] != like.labels)
    if len(differing):
        sample = like.ids[differing[0]]
        raise UserError(
            f"{pair} give sample {sample!r} the labels {int(table.labels[position[sample]])} and "
            f"{int(like.labels[differing[0]])} ({len(differing)} samples differ); score both on the same data"
        )
    return replace(table, ids=list(like.ids), labels=like.labels, scores=table.scores[rows])


def leave_one_out(tables: Sequence[ScoreTable], weights: Sequence[float]) -> dict[str, dict[str, float]]:
    """What each member adds: metrics of the fusion of all minus those of the fusion without it.

    Returns member -> {"top1", "mean_class"}, shares; positive means that the member helps. Members
    whose absence leaves nothing of weight (one member alone) have no entry.
    Raises UserError when two tables have the same member name.
    """
    names = [table.member for table in tables]
    if len(set(names)) != len(names):
        raise UserError(f"leave one out: a member occurs twice among {names}")
    if len(tables) < 2:
        return {}
    whole = _figures(fuse(tables, weights, "all"))
    contribution = {}
    for left in range(len(tables)):
        kept = [row for row in range(len(tables)) if row != left]
        rest = [weights[row] for row in kept]
        if not any(rest):
            continue
        without = _figures(fuse([tables[row] for row in kept], rest, "without"))
        contribution[names[left]] = {figure: whole[figure] - without[figure] for figure in whole}
    return contribution


def _figures(table: ScoreTable) -> dict[str, float]:
    return {
        "top1": top_k(table.scores, table.labels),
        "mean_class": mean_class_accuracy(table.scores, table.labels),
    }


def _some(samples: list[str]) -> str:
    shown = ", ".join(repr(sample) for sample in samples[:3])
    return f"{len(samples)} samples ({shown}{', ...' if len(samples) > 3 else ''})"


def _difference(mine: str | list[str], theirs: str | list[str]) -> str:
    if isinstance(mine, str) or isinstance(theirs, str) or len(mine) != len(theirs):
        return f"{_short(mine)} against {_short(theirs)}"
    row = next(row for row, pair in enumerate(zip(mine, theirs, strict=True)) if pair[0] != pair[1])
    return f"class {row} is {mine[row]!r} against {theirs[row]!r}"


def _short(value: str | list[str]) -> str:
    return repr(value) if isinstance(value, str) else f"{len(value)} classes"
