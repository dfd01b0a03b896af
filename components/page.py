"""The report page: one HTML file with its style, scripts, figures, confusion counts and moving skeletons inside."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray

from components import analysis, figures
from components.files import write_text
from components.findings import Row, headline
from components.skeletons import decode_clip, describe_layout, encode_clip, upright_axes
from components.splits import DEVELOPMENT
from components.volumes import heatmap_volumes, volume_strips
from model.store import Store

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("theme.js", "skeleton.js", "volumes.js", "matrix.js", "classes.js", "report.js")
PAIRS_WITH_CLIPS = 10
MISTAKES = 2  # mistaken clips kept for each direction of a confused pair
GALLERY = 120  # classes of which a clip is shown; the page must stay small
STRIP_PAIRS = 4
VOLUME_CLIPS = 4  # clips whose heat maps are shown, of each member that sees them

TRAINING_COLUMNS = [
    ("parameters", "Parameters"),
    ("macs", "MACs a test clip"),
    ("epochs", "Epochs"),
    ("best_epoch", "Best epoch"),
    ("seconds", "Seconds"),
    ("device_hours", "Device hours"),
    ("samples_per_s", "Samples/s"),
    ("device", "Device"),
]
CURVES = {
    "train/loss": "Training loss",
    "dev/loss": "Loss on the split that chooses the epoch",
    "dev/top1": "Top-1 on the split that chooses the epoch",
    "train/contrast": "Contrastive loss",
}

Drawn = dict[str, tuple[str, bytes]]


def draw_figures(
    numbers: dict[str, Any],
    rows: list[Row],
    histories: dict[str, list[dict[str, float]]],
    frames: dict[str, NDArray],
) -> Drawn:
    """Name -> (SVG, PNG) of every figure but the skeletons, as far as there are numbers for it.

    `frames` holds the lengths of each split's clips.
    """
    classes, shown = numbers["classes"], headline(rows)
    counts = {name: np.array(values) for name, values in numbers["data"]["splits"].items()}
    low, high = analysis.wilson(np.diag(shown.matrix), shown.matrix.sum(axis=1))
    called = {row["name"]: row["label"] for row in numbers["rows"]}
    calibration = next(row["calibration"] for row in numbers["rows"] if row["name"] == shown.name)
    histories = {called[name]: history for name, history in histories.items()}
    drawings: dict[str, Callable[[], Figure]] = {
        "accuracy": partial(figures.accuracy, numbers["rows"]),
        "confusion": partial(figures.confusion, shown.matrix, classes),
        "per_class": partial(figures.per_class, classes, analysis.class_accuracy(shown.matrix), low, high),
        "reliability": partial(figures.reliability, calibration, called[shown.name]),
        "clip_lengths": partial(figures.lengths, frames),
        "class_counts": partial(figures.class_counts, classes, counts),
    }
    for part in numbers["contributions"]:
        drawings[f"contribution_{part['name']}"] = partial(figures.contribution, part)
    changes = numbers["changes"]
    if changes["classes"]:
        heading = f"{called[changes['of']]} against {called[changes['against']]}"
        drawings["class_changes"] = partial(figures.class_changes, changes["classes"], heading)
    if "difficulty" in numbers:
        drawings["difficulty"] = partial(figures.difficulty, numbers["difficulty"], called)
    best = {called[name]: train.get("best_epoch") for name, train in numbers["training"].items()}
    for key, title in CURVES.items():
        if any(entry.get(key) is not None for history in histories.values() for entry in history):
            drawings[f"curve_{key.replace('/', '_')}"] = partial(figures.curves, histories, key, title, best)
    return {name: figures.render(name, draw) for name, draw in drawings.items()}


def write_page(
    path: Path, numbers: dict[str, Any], rows: list[Row], packed: Store, positions: NDArray, drawn: Drawn, runs: Path,
    heatmaps: Sequence[str],
) -> Drawn:  # fmt: skip
    """Write the page; returns its figures of clips: the confused pairs' key frames, and heat maps, if there are any."""
    called = {row["name"]: row["label"] for row in numbers["rows"]}
    shown = next(row for row in numbers["rows"] if row["name"] == numbers["headline"])
    clips = _clips(shown["confused"], headline(rows), packed, positions)
    volumes: list[dict[str, Any]] = []
    if heatmaps:
        places = [packed.ids.index(clip["id"]) for clip in clips["clips"][:VOLUME_CLIPS]]
        volumes = heatmap_volumes(packed, places, {name: called[name] for name in heatmaps}, runs)
    payload = {
        "classes": numbers["classes"],
        "volumes": volumes,
        "headline": numbers["headline"],
        "baseline": numbers["changes"]["against"],
        "rows": [{**_counts(row), "label": called[row.name]} for row in rows],
        "pairs": shown["confused"],
        **clips,
    }
    scored = {split for row in numbers["rows"] for split in row["by_checkpoint"][row["checkpoint"]]}
    html = render_page(
        "report.html",
        SCRIPTS,
        payload,
        numbers=numbers,
        shown=shown,
        figures={name: Markup(svg) for name, (svg, _) in drawn.items()},
        volumes=volumes,
        other_splits=sorted(scored - {numbers["split"]}),
        development=DEVELOPMENT,
        called=called,
        training_columns=[
            column for column in TRAINING_COLUMNS if any(column[0] in train for train in numbers["training"].values())
        ],
    )
    write_text(path, html)
    figures_of_clips = _strips(shown["confused"], numbers["classes"], clips, packed.layout.num_joints)
    if volumes:
        figures_of_clips["heatmaps"] = figures.render("heatmaps", partial(volume_strips, volumes, numbers["classes"]))
    return figures_of_clips


def render_page(template: str, scripts: Sequence[str], payload: Any, **values: Any) -> str:
    """A page from a template in the assets, with style, scripts and data inside."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "span": _span, "amount": _amount, "scaled": _scaled, "flat": _flat}
    return environment.get_template(template).render(
        light=figures.LIGHT,
        dark=figures.DARK,
        css=Markup((ASSETS / "report.css").read_text(encoding="utf-8")),
        scripts=Markup("\n".join((ASSETS / name).read_text(encoding="utf-8") for name in scripts)),
        # Inside a script element only "</" and "<!--" could end the data; JSON may escape the bracket.
        payload=Markup(json.dumps(payload, separators=(",", ":"), sort_keys=True).replace("<", "\\u003c")),
        **values,
    )


def _counts(row: Row) -> dict[str, Any]:
    matrix = row.matrix
    cells = [[int(i), int(j), int(matrix[i, j])] for i, j in zip(*np.nonzero(matrix), strict=True)]
    return {"name": row.name, "cells": cells, "order": analysis.similar_order(matrix)}


def _clips(pairs: list[dict[str, Any]], row: Row, packed: Store, positions: NDArray) -> dict[str, Any]:
    """Clips to show: of each class the surest right one, of each confused pair the surest mistakes."""
    table = row.table
    share = table.scores / np.maximum(table.scores.sum(axis=1, keepdims=True), 1e-12)
    predicted = table.scores.argmax(axis=1)
    sure = share[np.arange(len(table)), predicted]
    wanted: list[int] = []

    def surest(mask: NDArray, many: int) -> list[int]:
        found = np.flatnonzero(mask)
        return found[np.argsort(-sure[found], kind="stable")][:many].tolist()

    pairs = pairs[:PAIRS_WITH_CLIPS]
    for pair in pairs:
        for true, taken in ((pair["a"], pair["b"]), (pair["b"], pair["a"])):
            wanted += surest((table.labels == true) & (predicted == taken), MISTAKES)
    named = [k for pair in pairs for k in (pair["a"], pair["b"])]
    for k in [*named, *range(len(table.classes))][: GALLERY + len(named)]:
        wanted += surest((table.labels == k) & (predicted == k), 1) or surest(table.labels == k, 1)
    sample = positions[:: max(1, len(positions) // 16)]
    axes = upright_axes([packed.clip(int(p)) for p in sample], packed.layout, list(packed.channels))
    shown = []
    for i in dict.fromkeys(wanted):
        encoded = encode_clip(packed.clip(int(positions[i])), axes, list(packed.channels))
        about = {"label": int(table.labels[i]), "predicted": int(predicted[i]), "sure": round(float(sure[i]), 4)}
        shown.append({"id": table.ids[i], **about, **encoded})
    return {"clips": shown, "layout": describe_layout(packed.layout)}


def _strips(pairs: list[dict[str, Any]], classes: list[str], clips: dict[str, Any], joints: int) -> Drawn:
    """Key frames of the most confused pairs: a mistaken clip above a right one of the class it was taken for."""
    rows = []
    for pair in pairs[:STRIP_PAIRS]:
        first = (pair["a"], pair["b"]) if pair["a_as_b"] else (pair["b"], pair["a"])
        for true, taken, words in ((*first, "{} taken for {}"), (first[1], first[1], "{}, recognised")):
            clip = next((c for c in clips["clips"] if (c["label"], c["predicted"]) == (true, taken)), None)
            if clip is not None:
                rows.append((words.format(classes[true], classes[taken]), decode_clip(clip, joints)))
    if not rows:
        return {}
    return {"confused_pairs": figures.render("confused_pairs", partial(figures.skeleton_strip, rows, clips["layout"]))}


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def _span(bounds: tuple[float, float]) -> str:
    return f"{100 * bounds[0]:.1f}{' to ' if bounds[0] < 0 else '–'}{100 * bounds[1]:.1f}"


def _amount(value: Any) -> str:
    """A number as a person writes it: 1 234 567, 3.21, or what else it is as text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}".replace(",", "\u202f")
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}".replace(",", "\u202f")


def _scaled(value: Any) -> str:
    """A count of work with its unit: 3.21 G."""
    if not isinstance(value, int | float):
        return "–"
    unit, name = next((unit, name) for unit, name in ((1e9, " G"), (1e6, " M"), (1, "")) if value >= unit or unit == 1)
    return f"{value / unit:.3g}{name}"


def _flat(values: Any, name: str = "") -> list[tuple[str, str]]:
    """(dotted name, text) of nested plain values; an inner dictionary of plain values is one line."""
    if isinstance(values, dict):
        if name and not any(value and isinstance(value, dict) for value in values.values()):
            return [
                (name, ", ".join(f"{key} {_plain(value)}" for key, value in values.items() if value not in ({}, None)))
            ]
        return [pair for key, value in values.items() for pair in _flat(value, f"{name}.{key}" if name else str(key))]
    return [(name, _plain(values))]


def _plain(value: Any) -> str:
    return " + ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
