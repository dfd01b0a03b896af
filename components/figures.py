"""The report's figures: drawn once with matplotlib, kept as PNG files and as SVG that follows the page's theme."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

# In SVG each light colour becomes the CSS variable of its name, so one drawing serves both themes.
LIGHT = {
    "ink": "#1b2126", "muted": "#5f6b76", "line": "#d9dee3", "surface": "#fffffe", "page": "#f6f7f8",
    "accent": "#0b66c2", "warn": "#c8431a", "good": "#1a7f4c",
    "s0": "#0b66c3", "s1": "#c8431b", "s2": "#1a7f4b", "s3": "#7d3fd1", "s4": "#9a7500", "s5": "#c22a75",
}  # fmt: skip
DARK = {
    "ink": "#e7eaed", "muted": "#9aa5b0", "line": "#323a42", "surface": "#191d21", "page": "#101316",
    "accent": "#62adf7", "warn": "#ff8d5c", "good": "#4fc68a",
    "s0": "#62adf7", "s1": "#ff8d5c", "s2": "#4fc68a", "s3": "#b99af8", "s4": "#e3c04a", "s5": "#f781b8",
}  # fmt: skip
WIDTH = 4.6  # inches; on a phone the text stays legible
SERIES = ("s0", "s1", "s2", "s3", "s4", "s5")
DASHES = ("-", "--", ":", "-.")

_STYLE: dict[Any, Any] = {
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "font.family": "DejaVu Sans", "text.parse_math": False, "font.size": 9, "svg.fonttype": "none",
    "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 8,
    "text.color": LIGHT["ink"], "axes.labelcolor": LIGHT["muted"], "axes.titlecolor": LIGHT["ink"],
    "xtick.color": LIGHT["muted"], "ytick.color": LIGHT["muted"], "axes.edgecolor": LIGHT["line"],
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.grid": True, "grid.color": LIGHT["line"], "grid.linewidth": 0.6,
    "xtick.major.size": 0, "ytick.major.size": 0, "legend.frameon": False, "legend.fontsize": 8,
}  # fmt: skip


def style(position: int) -> dict[str, Any]:
    """Colour and dash of the member at `position`; the dash changes when the colours run out."""
    return {
        "color": LIGHT[SERIES[position % len(SERIES)]],
        "linestyle": DASHES[position // len(SERIES) % len(DASHES)],
    }


def render(name: str, draw: Callable[[], Figure]) -> tuple[str, bytes]:
    """(SVG for a page, PNG bytes) of the figure that `draw` makes; the same drawing gives the same bytes."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = draw()
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        FigureCanvasAgg(figure)
        figure.savefig(png, format="png", dpi=180, facecolor=LIGHT["surface"], metadata={"Software": None})
    return _themed(svg.getvalue(), name), png.getvalue()


def _themed(svg: str, name: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="([\d.]+)pt"', r'\1 style="max-width:\2pt;--natural:\2pt"', svg, count=1)
    # Several figures share one page: identifiers must not collide.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    for variable, colour in LIGHT.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg.strip()


def _new(width: float, height: float, **grid: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**grid)


def _percent(axes: Axes, which: str = "x") -> None:
    getattr(axes, f"{which}axis").set_major_formatter(lambda value, _: f"{100 * value:g} %")


def accuracy(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Top-1 with its interval and mean class accuracy of every member and ensemble."""
    figure, axes = _new(WIDTH, 1.1 + 0.3 * len(rows))
    for place, row in enumerate(reversed(rows)):
        colour = LIGHT["accent" if row["kind"] == "ensemble" else "muted"]
        low, high = row["interval"]["top1"]
        axes.plot([low, high], [place, place], color=colour, linewidth=2, alpha=0.45, solid_capstyle="round")
        axes.plot(row["test"]["top1"], place, "o", color=colour, markersize=6)
        axes.plot(row["test"]["mean_class"], place - 0.26, "^", color=LIGHT["warn"], markersize=4)
    axes.plot([], [], "o", color=LIGHT["muted"], label="top-1, 95 %")
    axes.plot([], [], "^", color=LIGHT["warn"], markersize=4, label="mean class")
    axes.set_yticks(range(len(rows)), [row["label"] for row in reversed(rows)])
    axes.tick_params(axis="y", labelcolor=LIGHT["ink"])
    axes.grid(visible=False, axis="y")
    axes.set_ylim(-0.6, len(rows) - 0.4)
    _percent(axes)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def contribution(part: Mapping[str, Any]) -> Figure:
    """Shapley values, and what is lost without each member, for one ensemble."""
    names = part["labels"]
    figure, (left, right) = _new(WIDTH, 0.95 + 0.33 * len(names), ncols=2, sharey=True)
    places = np.arange(len(names))[::-1]
    left.barh(places, part["shapley"], height=0.6, color=[style(i)["color"] for i in range(len(names))])
    left.set_title("Shapley value (top-1)")
    left.set_yticks(places, names)
    left.tick_params(axis="y", labelcolor=LIGHT["ink"])
    for place, lost, (low, high) in zip(places, part["lost"], part["lost_interval"], strict=True):
        colour = LIGHT["good"] if low > 0 else LIGHT["warn"] if high < 0 else LIGHT["muted"]
        right.plot([low, high], [place, place], color=colour, linewidth=2, alpha=0.5, solid_capstyle="round")
        right.plot(lost, place, "o", color=colour, markersize=6)
    right.axvline(0, color=LIGHT["muted"], linewidth=0.8)
    right.set_title("Lost without it, 95 %")
    for axes in (left, right):
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}")
        axes.set_xlabel("percentage points")
        axes.locator_params(axis="x", nbins=5)
    return figure


def confusion(matrix: NDArray, classes: Sequence[str]) -> Figure:
    """Row-normalised confusion matrix."""
    size = float(np.clip(2.2 + 0.24 * len(classes), 4.5, 16))
    figure, axes = _new(size + 0.6, size)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    ramp = LinearSegmentedColormap.from_list("share", [LIGHT["surface"], LIGHT["accent"]])
    image = axes.imshow(shares, cmap=ramp, vmin=0, vmax=1, interpolation="nearest", rasterized=True)
    axes.grid(visible=False)
    font = float(np.clip(160 / len(classes), 3.5, 8))
    axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=font)
    axes.set_yticks(range(len(classes)), classes, fontsize=font)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(classes) <= 25:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            bright = shares[row, column] > 0.55
            axes.text(
                column, row, f"{100 * shares[row, column]:.0f}", ha="center", va="center", fontsize=font - 1,
                color=LIGHT["surface" if bright else "ink"],
            )  # fmt: skip
    bar = figure.colorbar(image, ax=axes, shrink=0.6, label="share of the true class")
    bar.outline.set_visible(False)
    return figure


def per_class(classes: Sequence[str], values: NDArray, low: NDArray, high: NDArray) -> Figure:
    """Accuracy of every class, hardest first, with Wilson intervals."""
    order = np.argsort(values, kind="stable")
    order = order[np.isfinite(values[order])]
    figure, axes = _new(WIDTH, 0.8 + 0.19 * len(order))
    places = np.arange(len(order))[::-1]
    axes.barh(places, values[order], height=0.65, color=LIGHT["accent"], alpha=0.85)
    axes.hlines(places, low[order], high[order], color=LIGHT["ink"], linewidth=0.9)
    axes.set_yticks(places, [classes[i] for i in order], fontsize=7)
    axes.tick_params(axis="y", labelcolor=LIGHT["ink"])
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.8, len(order) - 0.2)
    axes.grid(visible=False, axis="y")
    _percent(axes)
    return figure


def class_changes(changes: Sequence[tuple[str, float]], title: str) -> Figure:
    """Classes that gained or lost against a baseline (ProtoGCN, Fig. 5). changes: (class, difference), sorted."""
    figure, axes = _new(WIDTH, 0.9 + 0.2 * max(len(changes), 2))
    places = np.arange(len(changes))[::-1]
    values = [change for _, change in changes]
    axes.barh(places, values, height=0.65, color=[LIGHT["good" if v > 0 else "warn"] for v in values])
    axes.axvline(0, color=LIGHT["muted"], linewidth=0.8)
    axes.set_yticks(places, [name for name, _ in changes], fontsize=7.5)
    axes.tick_params(axis="y", labelcolor=LIGHT["ink"])
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:+g}" if value else "0")
    axes.set_xlabel("percentage points")
    axes.set_title(title)
    return figure


def difficulty(found: Mapping[str, Any], called: Mapping[str, str]) -> Figure:
    """Mean class accuracy in four bands of difficulty (ProtoGCN, Table 5), a line a member or ensemble."""
    figure, axes = _new(WIDTH, 3.3)
    bands = found["bands"]
    for position, name in enumerate(bands[0]["mean"]):
        values = [band["mean"][name] for band in bands]
        axes.plot(
            range(len(bands)), values, marker="o", markersize=4, linewidth=1.5, label=called[name], **style(position)
        )
    ranking = [band["ranking"] for band in bands]
    axes.plot(range(len(bands)), ranking, color=LIGHT["muted"], linewidth=1, label=f"{found['ranked_by']} (ranks)")
    axes.set_xticks(
        range(len(bands)),
        [f"{band['from']}–{band['to']}" if band["to"] > band["from"] else band["to"] for band in bands],
    )
    axes.set_xlabel("classes, hardest first")
    _percent(axes, "y")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def reliability(bins: Mapping[str, Any], name: str) -> Figure:
    """Reliability diagram over the histogram of confidences."""
    figure, (top, bottom) = _new(4.6, 4.1, nrows=2, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    count = np.array(bins["count"])
    edges = np.linspace(0, 1, len(count) + 1)
    width, middle, used = edges[1], (edges[:-1] + edges[1:]) / 2, count > 0
    hit, sure = np.array(bins["accuracy"]), np.array(bins["confidence"])
    top.plot([0, 1], [0, 1], color=LIGHT["muted"], linewidth=0.9, linestyle="--")
    top.bar(middle[used], hit[used], width * 0.88, color=LIGHT["accent"], alpha=0.55, label="accuracy")
    left, right = middle[used] - width * 0.44, middle[used] + width * 0.44
    top.hlines(sure[used], left, right, color=LIGHT["warn"], linewidth=2.2, label="confidence")
    top.set_ylabel("accuracy")
    top.set_ylim(0, 1)
    figure.legend(loc="outside lower center", ncols=2)
    top.set_title(f"{name}: ECE {100 * bins['ece']:.1f} %, mean confidence {100 * bins['mean_confidence']:.1f} %")
    bottom.bar(middle, count, width * 0.88, color=LIGHT["muted"], alpha=0.6)
    bottom.set_ylabel("clips")
    bottom.set_xlabel("confidence (highest share)")
    bottom.set_xlim(0, 1)
    return figure


def curves(histories: Mapping[str, Sequence[Mapping[str, float]]], key: str, title: str,
           best: Mapping[str, int]) -> Figure:  # fmt: skip
    """One quantity over the epochs, a line a member; the chosen epoch carries a dot."""
    figure, axes = _new(WIDTH, 3.3)
    for position, (name, history) in enumerate(histories.items()):
        points = [(entry["epoch"], entry[key]) for entry in history if entry.get(key) is not None]
        if not points:
            continue
        epochs, values = zip(*points, strict=True)
        axes.plot(epochs, values, linewidth=1.5, label=name, **style(position))
        if best.get(name) in epochs:
            value = values[epochs.index(best[name])]
            axes.plot(best[name], value, "o", color=style(position)["color"], markersize=5)
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if key.endswith(("top1", "mean_class")):
        _percent(axes, "y")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def lengths(frames: Mapping[str, NDArray]) -> Figure:
    """Histogram of clip lengths per split."""
    figure, axes = _new(WIDTH, 3.0)
    everything = np.concatenate(list(frames.values()))
    edges = np.histogram_bin_edges(everything, bins=min(40, max(5, len(np.unique(everything)))))
    shown = [style(i)["color"] for i in range(len(frames))]
    axes.hist(list(frames.values()), edges, stacked=True, color=shown, label=list(frames))
    axes.set_xlabel("frames per clip")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("clips")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def class_counts(classes: Sequence[str], counts: Mapping[str, NDArray]) -> Figure:
    """Clips per class, stacked by split."""
    named = len(classes) <= 25
    figure, axes = _new(WIDTH, 3.6 if named else 3.0)
    bottom = np.zeros(len(classes))
    for position, (split, values) in enumerate(counts.items()):
        axes.bar(range(len(classes)), values, 0.75, bottom, color=style(position)["color"], label=split)
        bottom = bottom + values
    if named:
        axes.set_xticks(range(len(classes)), classes, rotation=60, ha="right", rotation_mode="anchor", fontsize=7.5)
    else:
        axes.set_xlabel("class number")
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("clips")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def feature_maps(maps: Mapping[str, NDArray], labels: NDArray, classes: Sequence[str]) -> Figure:
    """Points (N, 2) of each map side by side, coloured by their class; labels (N,) count in `classes`."""
    figure, axes = _new(3.4 * len(maps) + 1.6, 3.6, ncols=len(maps))
    for panel, (title, points) in zip(np.atleast_1d(axes), maps.items(), strict=True):
        for number, name in enumerate(classes):
            mine = points[labels == number]
            look = {"color": style(number)["color"], "marker": "ox^s"[number // len(SERIES) % 4]}
            panel.scatter(mine[:, 0], mine[:, 1], s=12, linewidths=0.8, label=name, **look)
        panel.set(title=title, xticks=[], yticks=[])
    handles, names = np.atleast_1d(axes)[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", fontsize=7)
    return figure


def skeleton_strip(clips: Sequence[tuple[str, NDArray]], layout: Mapping[str, Any], frames: int = 9) -> Figure:
    """Key frames of clips (title, (T, M, V, D) with NaN for unseen), a row each."""
    extents = np.array([np.nanmax(clip, axis=(0, 1, 2)) - np.nanmin(clip, axis=(0, 1, 2)) for _, clip in clips])
    width, height = 1.1 * float(extents[:, 0].max()), float(extents[:, 1].max())
    row_height = min(1.5, 9.0 / frames * height / width)
    across = max(4.0, row_height / height * width * frames)
    figure, axes = _new(across, (row_height + 0.3) * len(clips), nrows=len(clips), squeeze=False)
    colours = {-1: LIGHT["s0"], 0: LIGHT["ink"], 1: LIGHT["s1"]}
    child, parent = np.array(layout["edges"]).T
    shades = [colours[layout["sides"][joint]] for joint in child]
    for row, (title, clip) in zip(axes[:, 0], clips, strict=True):
        bodies = clip[np.linspace(0, len(clip) - 1, frames).round().astype(int), ..., :2]
        bodies = bodies + np.array([width, 0]) * np.arange(frames)[:, None, None, None]
        lines = np.stack([bodies[..., child, :], bodies[..., parent, :]], axis=-2)  # frame, person, bone, end, xy
        repeated = shades * (lines.shape[0] * lines.shape[1])
        row.add_collection(LineCollection(list(lines.reshape(-1, 2, 2)), colors=repeated, linewidths=1.1))
        row.autoscale_view()
        row.set_title(title, fontsize=8)
        row.set_aspect("equal")
        row.axis("off")
    return figure
