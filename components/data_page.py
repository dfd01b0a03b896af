"""The page of a data check: findings, numbers, figures, and clips that move."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from components import figures
from components.files import write_text
from components.page import render_page
from components.skeletons import decode_clip, describe_layout, encode_clip, upright_axes
from model.store import Store

CLASSES = 60  # of which clips are shown; the page must stay small
A_CLASS = 2
STRIP = 6


def write_data_page(path: Path, numbers: dict[str, Any], store: Store, suspects: list[int]) -> None:
    """Write the page; `suspects` are positions of clips that findings name, shown before others of their class."""
    parts = _disjoint(store)
    drawings = {
        "class_counts": partial(
            figures.class_counts, store.classes, {name: np.array(numbers["splits"][name]) for name in parts}
        ),
        "lengths": partial(figures.lengths, {name: store.frames[store.splits[name]] for name in parts}),
    }
    wanted = [i for label in range(len(store.classes)) for i in _of_class(store, label, suspects)]
    axes = upright_axes(
        [store.clip(i) for i in range(0, len(store), max(1, len(store) // 16))], store.layout, store.channels
    )
    clips = [
        {"id": store.ids[i], "label": int(store.labels[i]), "predicted": int(store.labels[i])}
        | encode_clip(store.clip(i), axes, store.channels)
        for i in wanted[: CLASSES * A_CLASS]
    ]
    layout = describe_layout(store.layout)
    rows = [
        (f"{store.classes[store.labels[i]]}: {store.ids[i]}", decode_clip(clip, store.layout.num_joints))
        for i, clip in list(zip(wanted, clips, strict=False))[::A_CLASS][:STRIP]
    ]
    if rows:
        drawings["strip"] = partial(figures.skeleton_strip, rows, layout)
    drawn = {name: Markup(figures.render(name, draw)[0]) for name, draw in drawings.items()}
    payload = {"classes": store.classes, "clips": clips, "layout": layout}
    write_text(
        path, render_page("data.html", ("theme.js", "skeleton.js", "data.js"), payload, numbers=numbers, figures=drawn)
    )


def _disjoint(store: Store) -> list[str]:
    """Splits of the first protocol, which do not share clips: figures stack them."""
    parts: list[str] = []
    for name, members in store.splits.items():
        if len(members) and all(not np.intersect1d(members, store.splits[other]).size for other in parts):
            parts.append(name)
    return parts


def _of_class(store: Store, label: int, suspects: list[int]) -> list[int]:
    own = np.flatnonzero(store.labels == label).tolist()
    first = [i for i in own if i in suspects]
    return [*first, *(i for i in own if i not in first)][:A_CLASS]
