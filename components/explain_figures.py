"""Figures of what a network has learned: topologies, prototypes, and the joints and frames that answers rest on."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from components.figures import LIGHT

NAMED = 30  # joints up to which a large matrix carries their names
PROTOTYPES = 48  # prototypes drawn, those that differ most between classes
FRAMES = 9
TOP_PARTS = 6


def _shades(low: float = -1, high: float = 1) -> ListedColormap:
    """Orange below zero, blue above, transparent at zero, so that one drawing serves light and dark pages."""
    steps = np.linspace(low, high, 257)
    colours = np.where(steps[:, None] < 0, to_rgb(LIGHT["warn"]), to_rgb(LIGHT["accent"]))
    return ListedColormap(np.concatenate([colours, np.abs(steps)[:, None] ** 0.8], axis=1))


def _matrix(axes: Axes, matrix: NDArray, limits: tuple[float, float]) -> Any:
    colours = _shades(0 if limits[0] >= 0 else -1, 0 if limits[1] <= 0 else 1)  # one sign: all shades of its half
    image = axes.imshow(matrix, cmap=colours, vmin=limits[0], vmax=limits[1], interpolation="nearest", rasterized=True)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(True)
    return image


def spread(values: Sequence[NDArray]) -> tuple[float, float]:
    """The scale of a family of matrices: about zero where they have both signs, else from their least to their most.

    1 % of the entries may lie outside, so that a diagonal drowns nothing.
    """
    low, high = np.quantile(np.concatenate([v.reshape(-1) for v in values]), [0.005, 0.995])
    if low < 0 < high:
        most = float(max(-low, high))
        return -most, most
    return float(low), float(max(high, low + 1e-9))


def blocks(base: NDArray, added: Sequence[tuple[str, NDArray]], title: str) -> Figure:
    """A_0 of every block, a column each, and below what clips of each action add to it: a row per (name, (B, V, V)).

    A_0 has one scale, what is added one of each block's own, written above it; colours of both as `spread` says.
    """
    count, lines = len(base), [("A₀", base), *added]
    figure = Figure(figsize=(0.8 * count + 2.2, 0.86 * len(lines) + 0.75), layout="constrained")
    grid = figure.subplots(len(lines), count, squeeze=False)
    shared = spread([base])
    for number in range(count):
        own = max(map(abs, spread([values[number] for _, values in added]))) if added else 0.0
        grid[0, number].set_title(f"block {number + 1}", fontsize=7.5, fontweight="normal", loc="center", pad=3)
        for axes, (_, values) in zip(grid[:, number], lines, strict=True):
            _matrix(axes, values[number], shared if values is base else (-own, own))
        if added:
            grid[1, number].set_title(f"±{own:.2g}", fontsize=6.5, fontweight="normal", loc="center", pad=2)
    for axes, (name, _) in zip(grid[:, 0], lines, strict=True):
        label = name if name == "A₀" else f"{name}: added"
        axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8, color=LIGHT["ink"])
    figure.suptitle(title, fontsize=9.5, fontweight="bold", x=0.01, ha="left")
    return figure


def last_block(
    rows: Sequence[tuple[str, Sequence[NDArray]]], columns: Sequence[str], limits: Sequence[tuple[float, float]],
    joints: Sequence[str],
) -> Figure:  # fmt: skip
    """The last block's topologies side by side (ProtoGCN, Figs. 1 and 4): a row per action, a column per kind.

    Row of a matrix: the joint that sends; column: the one that receives. Each column has its own scale, `limits`.
    """
    named = len(joints) <= NAMED
    width = 1.75 * len(columns) + (1.5 if named else 0.9)
    figure = Figure(figsize=(width, 1.95 * len(rows) + (1.1 if named else 0.6)), layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for place, (line, (name, matrices)) in enumerate(zip(grid, rows, strict=True)):
        for axes, matrix, column, ends in zip(line, matrices, columns, limits, strict=True):
            image = _matrix(axes, matrix, ends)
            if place == 0:
                axes.set_title(column, fontsize=8, loc="center", pad=4)
            if place == len(rows) - 1:
                bar = figure.colorbar(image, ax=axes, orientation="horizontal", shrink=0.75, pad=0.03, aspect=18)
                bar.outline.set_visible(False)
                bar.ax.tick_params(labelsize=6)
                bar.ax.locator_params(nbins=3)
        line[0].set_ylabel(name, fontsize=8, color=LIGHT["ink"])
        if named:
            places = [name.replace("_", " ") for name in joints]
            line[0].set_yticks(range(len(joints)), places, fontsize=4.2)
    return figure


def prototypes(use: NDArray, entropy: NDArray, classes: Sequence[str]) -> Figure:
    """How much more or less each prototype answers to a class than on average; response entropy of each class.

    use (K, P): mean responses, rows add up to one; entropy (K,): share of log P.
    """
    share = np.log2(np.maximum(use, 1e-12) / np.maximum(use.mean(0), 1e-12))
    kept = np.argsort(-share.std(0), kind="stable")[:PROTOTYPES]
    kept = kept[np.lexsort((-share[:, kept].max(0), share[:, kept].argmax(0)))]
    figure = Figure(figsize=(8.6, 1.5 + 0.28 * len(classes)), layout="constrained")
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [4, 1.25]})
    image = _matrix(left, share[:, kept], spread([share[:, kept]]))
    left.set_aspect("auto")
    left.set_yticks(range(len(classes)), classes, fontsize=7.5)
    left.tick_params(axis="y", labelcolor=LIGHT["ink"])
    every = max(1, len(kept) // 24)
    left.set_xticks(range(0, len(kept), every), kept[::every], fontsize=6, rotation=90)
    left.set_xlabel(f"prototype ({len(kept)} of {use.shape[1]}, by the class that they answer to most)")
    left.set_title("response, times that over all classes (log2)")
    bar = figure.colorbar(image, ax=left, pad=0.01, aspect=25)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7)
    right.barh(range(len(classes)), entropy, height=0.65, color=LIGHT["accent"], alpha=0.85)
    right.invert_yaxis()
    right.set_yticks([])
    low = float(entropy.min())
    right.set_xlim(max(0, low - 1.5 * max(float(np.ptp(entropy)), 0.02)), 1)
    right.grid(visible=False, axis="y")
    right.set_title("response entropy")
    right.set_xlabel("share of log P")
    return figure


def evidence(
    rows: Sequence[tuple[str, NDArray, NDArray, NDArray]], parts: Sequence[tuple[int, ...]], names: Sequence[str],
    edges: Sequence[Sequence[int]],
) -> Figure:  # fmt: skip
    """Joints and frames that carried an answer: a strip of bodies, the weight of frames below, top joints beside.

    rows: (title, (T, M, V, 2) upright joints with NaN for unseen, weights of parts (P,), of frames (T,)); weights are
    falls of the log probability when hidden. A part is a joint or the two ends of a limb; large and blue spoke for
    the answer, orange against it.
    """
    figure = Figure(figsize=(9.2, 2.75 * len(rows)), layout="constrained")
    grid = figure.subplots(
        2 * len(rows), 2, squeeze=False,
        gridspec_kw={"width_ratios": [5, 1.5], "height_ratios": [3.2, 1] * len(rows)},
    )  # fmt: skip
    for (title, body, weights, frames), strip, below in zip(rows, grid[::2], grid[1::2], strict=True):
        _strip(strip[0], title, body, weights, parts, edges)
        _times(below[0], frames)
        below[1].axis("off")
        side = strip[1]
        top = np.argsort(-np.abs(weights), kind="stable")[:TOP_PARTS][::-1]
        side.barh(range(len(top)), weights[top], height=0.65, color=[_shade(v) for v in weights[top]])
        side.set_yticks(range(len(top)), [names[i] for i in top], fontsize=6.5)
        side.tick_params(axis="y", labelcolor=LIGHT["ink"])
        side.tick_params(axis="x", labelsize=6.5)
        side.axvline(0, color=LIGHT["muted"], linewidth=0.8)
        side.grid(visible=False, axis="y")
        side.locator_params(axis="x", nbins=4)
        side.set_title("log probability lost", fontsize=7.5, fontweight="normal")
    return figure


def _shade(value: float) -> str:
    return LIGHT["accent" if value > 0 else "warn"]


def _times(axes: Axes, frames: NDArray) -> None:
    axes.bar(range(len(frames)), frames, width=1.0, color=[_shade(v) for v in frames], alpha=0.8)
    axes.axhline(0, color=LIGHT["muted"], linewidth=0.6)
    axes.set_xlim(-0.5, len(frames) - 0.5)
    axes.set_xlabel("frame of the clip as sampled", fontsize=7)
    axes.tick_params(labelsize=6.5)
    axes.grid(visible=False, axis="x")
    axes.locator_params(axis="y", nbins=3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _strip(
    axes: Axes, title: str, body: NDArray, weights: NDArray, parts: Sequence[tuple[int, ...]],
    edges: Sequence[Sequence[int]],
) -> None:  # fmt: skip
    chosen = body[np.linspace(0, len(body) - 1, FRAMES).round().astype(int)]
    chosen = chosen[np.isfinite(chosen[..., 0]).any(axis=(1, 2))]
    axes.axis("off")
    axes.set_title(title, fontsize=8.5)
    if not len(chosen):
        return
    low, high = np.nanmin(chosen, axis=(1, 2)), np.nanmax(chosen, axis=(1, 2))  # (frames, 2)
    width, height = (high - low).max(0)
    # Every body stands in the middle of its own column, wherever it has walked.
    columns = 1.15 * max(float(width), 0.35 * float(height)) * np.arange(len(chosen)) - (low + high)[:, 0] / 2
    places = chosen + np.stack([columns, np.zeros(len(chosen))], 1)[:, None, None]
    child, parent = np.array(edges).T
    lines = np.stack([places[..., child, :], places[..., parent, :]], axis=-2).reshape(-1, 2, 2)
    axes.add_collection(LineCollection(list(lines), colors=LIGHT["muted"], linewidths=0.8, zorder=1))
    strength = np.abs(weights) / max(float(np.abs(weights).max()), 1e-9)
    for part, value, share in zip(parts, weights, strength, strict=True):
        if share < 0.05:
            continue
        if len(part) == 1:
            at = places[..., part[0], :].reshape(-1, 2)
            axes.scatter(at[:, 0], at[:, 1], s=36 * share, color=_shade(value), linewidths=0, zorder=2)
        else:
            limb = places[..., list(part), :].reshape(-1, 2, 2)
            axes.add_collection(LineCollection(list(limb), colors=_shade(value), linewidths=3.5 * share, zorder=2))
    axes.autoscale_view()
    axes.set_aspect("equal")
