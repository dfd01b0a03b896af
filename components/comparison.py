"""Which of several runs is better: paired on the same clips, over seeds and independent people. Plain numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components import analysis
from model.ensemble import aligned
from model.errors import UserError
from model.metrics import confusion_matrix, summary
from model.ntu import parse_name
from model.scoretable import ScoreTable

FEWEST_SEEDS = 5  # with four, even unanimous seeds prove little: a sign test gives p = 1/8
FEWEST_SUBJECTS = 5
LEVEL = 0.05
CHANGED = 0.01  # classes listed lose or gain more than this share, as in ProtoGCN's Fig. 5
FIGURES = ("top1", "top5", "mean_class")
DEFINITIONS = {
    "±": "standard deviation over seeds",
    "gain": "difference in top-1 to the first row, in points, on the same clips and seeds; then its 95 % interval",
    "p": "two-sided paired t-test over seeds and independent units, whose variances add up; p (Holm): adjusted for the "
    "number of rows tested",
    "verdict": f"better or worse at p (Holm) < {LEVEL}; undecided under {FEWEST_SEEDS} seeds, whatever p says",
}


@dataclass(frozen=True)
class Entry:
    """One candidate: a score table per seed, all of one split. `title` is what tables call it."""

    title: str
    tables: dict[int, ScoreTable]
    published: float | None = None  # percent


@dataclass(frozen=True)
class Units:
    """What counts as independent evidence: `of` (N,) numbers each clip's unit from 0."""

    of: NDArray
    kind: str  # subject, performance or clip
    notice: str = ""


def independent_units(ids: Sequence[str], labels: NDArray, factors: Mapping[str, NDArray]) -> Units:
    """Units of clips, never smaller than a performance where anything is known of the performers.

    `factors` (N,) arrays subject, camera, setup of the store; else the ids are read as NTU file names. A unit is a
    subject, with all actions and views; a performance (a subject's takes of one action in one setup, all views and
    repeats) where there are under FEWEST_SUBJECTS of them; a clip where nothing is known.
    """
    if "subject" not in factors:
        try:
            names = [parse_name(name) for name in ids]
        except UserError:
            notice = "who performs is not known of these clips: each counts as independent, so p is too small"
            return Units(np.arange(len(ids)), "clip", notice)
        factors = {key: np.array([name[key] for name in names]) for key in ("subject", "setup")}
    subjects = np.unique(factors["subject"], return_inverse=True)[1].reshape(-1)
    if subjects.max() + 1 >= FEWEST_SUBJECTS:
        return Units(subjects, "subject")
    notice = f"only {subjects.max() + 1} subjects: a subject's performances count as independent, so p is too small"
    return Units(analysis.performances(labels, factors), "performance", notice)


def paired_test(gain: NDArray, units: NDArray) -> dict[str, float | None]:
    """Is the mean of `gain` (S seeds, N clips) zero? Two-sided t-test with both seeds and units drawn at random.

    Variances of the mean over seeds and over units add up, which counts what they share twice and so errs on the safe
    side (on such crossed factors: Owen, "The pigeonhole bootstrap", 2007); degrees of freedom after Satterthwaite.
    Clips of a unit stay together; units differ in size, so the mean is a ratio, linearised. One seed: units only.
    Returns gain, low, high (95 %) and p, as shares; None where there is one unit only.
    """
    from scipy.stats import t as student

    seeds, clips = gain.shape
    mean = float(gain.mean())
    size = np.bincount(units)
    count = len(size)
    if count < 2:
        return {"gain": mean, "low": None, "high": None, "p": None}
    residual = np.bincount(units, weights=gain.mean(axis=0)) - mean * size
    parts = [(count / (count - 1) * float((residual**2).sum()) / clips**2, count - 1)]
    if seeds > 1:
        parts.append((float(gain.mean(axis=1).var(ddof=1)) / seeds, seeds - 1))
    variance = sum(part for part, _ in parts)
    if variance == 0:  # every unit and seed says the same
        return {"gain": mean, "low": mean, "high": mean, "p": 1.0 if mean == 0 else 0.0}
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    half = float(student.ppf(0.975, freedom)) * variance**0.5
    p = 2 * float(student.sf(abs(mean) / variance**0.5, freedom))
    return {"gain": mean, "low": mean - half, "high": mean + half, "p": p}


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for their number (Holm 1979); None stays and does not count."""
    known = sorted((p, place) for place, p in enumerate(values) if p is not None)
    adjusted: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[place] = highest
    return adjusted


def compare_entries(entries: Sequence[Entry], units: Units) -> dict[str, Any]:
    """All numbers of a comparison; each entry after the first is tested against it on their common seeds.

    Raises UserError when tables cannot be joined by their ids or two entries share no seed.
    """
    first = next(iter(entries[0].tables.values()))
    tables = [{seed: aligned(table, first) for seed, table in entry.tables.items()} for entry in entries]
    titles = [entry.title for entry in entries]
    rows: list[dict[str, Any]] = []
    for entry, own in zip(entries, tables, strict=True):
        figures = {seed: summary(table) for seed, table in own.items()}
        row: dict[str, Any] = {"title": entry.title, "seeds": list(own), "published": entry.published}
        for name in FIGURES:
            values = np.array([found[name] for found in figures.values()])
            row[name] = {"mean": float(values.mean()), "spread": _spread(values), "values": values.tolist()}
        rows.append(row)
    for row, own in zip(rows[1:], tables[1:], strict=True):
        row |= _against(tables[0], own, units, titles[0], row["title"])
    for row, p in zip(rows[1:], holm([row["p"] for row in rows[1:]]), strict=True):
        row["p_holm"] = p
        row["verdict"], row["sentence"] = _verdict(row, titles[0], units.kind, len(rows) - 1)
    return {
        "split": first.split,
        "clips": len(first),
        "classes": first.classes,
        "unit": units.kind,
        "units": int(units.of.max()) + 1,
        "notice": units.notice,
        "against": titles[0],
        "definitions": DEFINITIONS,
        "rows": rows,
    }


def _spread(values: NDArray) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None


def _against(
    base: dict[int, ScoreTable], own: dict[int, ScoreTable], units: Units, base_title: str, title: str
) -> dict[str, Any]:
    common = [seed for seed in base if seed in own]
    if not common:
        raise UserError(
            f"{title!r} and {base_title!r} share no seed ({', '.join(map(str, own))} against "
            f"{', '.join(map(str, base))}); compare runs of the same seeds"
        )
    gain = np.stack([_right(own[seed]).astype(float) - _right(base[seed]) for seed in common])
    change = _class_accuracy([own[seed] for seed in common]) - _class_accuracy([base[seed] for seed in common])
    classes = base[common[0]].classes
    order = [int(k) for k in np.argsort(-change, kind="stable") if abs(change[k]) > CHANGED]
    return {
        "common_seeds": len(common),
        **paired_test(gain, units.of),
        "same_scores": all(np.array_equal(own[seed].scores, base[seed].scores) for seed in common),
        "changes": [[classes[k], float(change[k])] for k in order],
    }


def _right(table: ScoreTable) -> NDArray:
    return table.scores.argmax(axis=1) == table.labels


def _class_accuracy(tables: Sequence[ScoreTable]) -> NDArray:
    """(K,) recall of each class, mean over tables; NaN for a class without clips."""
    classes = len(tables[0].classes)
    matrices = [confusion_matrix(t.scores.argmax(axis=1), t.labels, classes=classes) for t in tables]
    return np.mean([analysis.class_accuracy(matrix) for matrix in matrices], axis=0)


def _verdict(row: dict[str, Any], base: str, unit: str, tests: int) -> tuple[str, str]:
    """(one word, one sentence) on whether a row is better than the first."""
    asked = f"Is {row['title']} better than {base}?"
    if row["same_scores"]:
        return "same", f"{asked} No: both give the same scores, to the bit."
    points = f"{100 * row['gain']:+.2f} points of top-1"
    if row["p"] is None:
        return "undecided", f"{asked} Undecided: {points}, but the clips are all of one {unit}."
    seen = f"{points} (95 % {100 * row['low']:+.2f} to {100 * row['high']:+.2f})"
    seeds = f"{row['common_seeds']} seed{'s' if row['common_seeds'] != 1 else ''}"
    if row["common_seeds"] < FEWEST_SEEDS:
        return "undecided", f"{asked} Undecided: {seen} over {seeds}, and a verdict takes {FEWEST_SEEDS}."
    sure = f"p = {row['p_holm']:.3g}" + (f" after Holm over {tests} comparisons" if tests > 1 else "")
    if row["p_holm"] >= LEVEL:
        return "not shown", f"{asked} Not shown: {seen} over {seeds}, {sure}."
    word = "better" if row["gain"] > 0 else "worse"
    return word, f"{asked} {'Yes' if row['gain'] > 0 else 'No, worse'}: {seen} over {seeds}, {sure}."
