"""Heat maps of a few clips made small enough to travel in a page: what PoseC3D members see."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread, imsave
from numpy.typing import NDArray

from components.figures import LIGHT
from components.skeletons import describe_layout
from model.store import Store

FRAMES = 16  # of a clip, evenly spread


def heatmap_volumes(store: Store, positions: Sequence[int], labels: dict[str, str], runs: Path) -> list[dict[str, Any]]:
    """Per member of `labels` (name -> what the page calls it) the maps of the clips at `positions`.

    {"label", "stream", "side", "frames": frame numbers of the network's clip, "clips": [{"id", "data"}]}; `data` is a
    PNG of FRAMES squares side by side, in which red, green and blue hold the strongest map of a left, middle and right
    key point (or limb). The recipe is that of `runs/<member>/train/best.pt`.
    """
    from model.checkpoint import load_checkpoint
    from model.feeding import validation_clips

    found = []
    for member, label in labels.items():
        recipe = load_checkpoint(runs / member / "train" / "best.pt")["recipe"]
        feed: Any = validation_clips(store, np.asarray(positions), recipe)
        sides = np.array(describe_layout(store.layout)["sides"])
        if recipe["stream"] == "limb":
            start, end = np.array(store.layout.limbs).T
            sides = np.where(sides[start] == sides[end], sides[start], sides[start] + sides[end])
        maps = feed.batch(np.arange(len(positions))).numpy()  # (N, channels, T, H, W)
        frames = np.unique(np.linspace(0, maps.shape[2] - 1, FRAMES).astype(int))
        found.append(
            {
                "label": label,
                "stream": recipe["stream"],
                "side": maps.shape[-1],
                "frames": frames.tolist(),
                "length": maps.shape[2],
                "clips": [
                    {"id": store.ids[p], "label": int(store.labels[p]), "data": _strip(clip[:, frames], sides)}
                    for p, clip in zip(positions, maps, strict=True)
                ],
            }
        )
    return found


def volume_strips(volumes: Sequence[dict[str, Any]], classes: Sequence[str]) -> Figure:
    """Every second frame of the first clips of each member, a row a clip; left limbs blue, right ones orange."""
    rows = [(found, clip) for found in volumes for clip in found["clips"][:2]]
    figure = Figure(figsize=(9.2, 1.45 * len(rows)), layout="constrained")
    for axes, (found, clip) in zip(figure.subplots(len(rows), squeeze=False)[:, 0], rows, strict=True):
        strength = imread(io.BytesIO(base64.b64decode(clip["data"])))[..., :3]
        squares = np.split(strength, len(found["frames"]), axis=1)[::2]
        strength = np.concatenate(squares, axis=1)
        colours = np.array([to_rgb(LIGHT[name]) for name in ("s0", "ink", "s1")])
        mixed = strength @ colours / np.maximum(strength.sum(-1, keepdims=True), 1e-6)
        axes.imshow(np.concatenate([mixed, strength.max(-1, keepdims=True)], -1), rasterized=True)
        for number in range(1, len(squares)):
            axes.axvline(number * found["side"] - 0.5, color=LIGHT["line"], linewidth=0.8)
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        kind = "limbs" if found["stream"] == "limb" else "key points"
        axes.set_title(f"{found['label']} ({kind}): {classes[clip['label']]}, {clip['id']}", fontsize=8)
    return figure


def _strip(maps: NDArray, sides: NDArray) -> str:
    """(channels, T, H, W) as a PNG of T squares, base64."""
    none = np.zeros((1, *maps.shape[1:]), maps.dtype)
    colours = [np.concatenate([none, maps[sides == side]]).max(0) for side in (-1, 0, 1)]
    picture = np.stack(colours, -1).transpose(1, 0, 2, 3).reshape(maps.shape[2], -1, 3)  # (H, T*W, 3)
    png = io.BytesIO()
    imsave(png, np.round(255 * picture.clip(0, 1)).astype(np.uint8), format="png")
    return base64.b64encode(png.getvalue()).decode()
