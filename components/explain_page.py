"""The figures and the page of what a member has learned."""

import base64
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from components import explain_figures, figures
from components.explain import Learned
from components.files import write_text
from components.page import Drawn, render_page
from components.skeletons import decode_clip, describe_layout, encode_clip, upright_axes

SCRIPTS = ("theme.js", "topology.js", "explain.js")
KINDS = {
    "A0": "A₀, shared by all clips",
    "enhanced": "enhanced: what clips are aggregated with",
    "added": "enhanced less A₀: what clips of the action add",
    "inter": "inter: differences of joints",
    "intra": "intra: similarity of joints",
    "Z": "Z, rebuilt from prototypes",
}


def draw(
    found: Learned, other: Learned | None, maps: dict[str, NDArray], classes: list[str], shown: list[int],
    mapped: list[int],
) -> Drawn:  # fmt: skip
    """Name -> (SVG, PNG) of every figure that the member has something to show for."""
    drawings: dict[str, Any] = {}
    names, rows = [classes[k] for k in mapped], [mapped.index(k) for k in shown]
    for each in (found, other):
        if each is not None and len(each.base):
            added = each.shown.get("added")
            lines = [] if added is None else [(classes[k], added[row]) for k, row in zip(shown, rows, strict=True)]
            title = f"{each.name}: A₀ and what clips of each action add to it"
            drawings[f"blocks_{each.name}"] = partial(explain_figures.blocks, each.base, lines, title)
    if len(found.base):
        drawings["last_block"] = partial(_last_block, found, other, [classes[k] for k in shown], rows)
    if found.use is not None and found.entropy is not None:
        drawings["prototypes"] = partial(explain_figures.prototypes, found.use, found.entropy, names)
    drawings["evidence"] = partial(_evidence, found, classes)
    labels = np.searchsorted(mapped, found.labels)
    drawings["features"] = partial(figures.feature_maps, maps, labels, names)
    return {name: figures.render(name, drawing) for name, drawing in drawings.items()}


def _last_block(found: Learned, other: Learned | None, actions: list[str], rows: list[int]) -> Any:
    columns: list[str] = []
    families: list[NDArray] = []  # of each column the matrices of all rows
    limits: list[tuple[float, float]] = []
    for each in (found, other):
        if each is None or not len(each.base):
            continue
        own = {"A₀": np.stack([each.base[-1]] * len(rows))}
        if "enhanced" in each.shown:
            own["enhanced"] = each.shown["enhanced"][rows, -1]
        limits += [explain_figures.spread(list(own.values()))] * len(own)
        if "enhanced" in each.shown:
            own["enhanced − A₀"] = each.shown["added"][rows, -1]
            limits.append(explain_figures.spread([own["enhanced − A₀"]]))
        if each.rebuilt is not None:
            own["Z"] = each.rebuilt[rows]
            limits.append(explain_figures.spread([own["Z"]]))
        columns += [f"{kind}\n{each.name}" for kind in own]
        families += list(own.values())
    lines = [(name, [family[i] for family in families]) for i, name in enumerate(actions)]
    return explain_figures.last_block(lines, columns, limits, found.layout.joints)


def _evidence(found: Learned, classes: list[str]) -> Any:
    layout = describe_layout(found.layout)
    axes = upright_axes([item.joints for item in found.evidence], found.layout, list(found.channels))
    rows, seen = [], set()
    for item in found.evidence:
        if item.label in seen:  # one clip of each class, its surest
            continue
        seen.add(item.label)
        encoded = encode_clip(item.joints, axes, list(found.channels), max_frames=item.joints.shape[1])
        body = decode_clip(encoded, found.layout.num_joints)[..., :2]
        said = "recognised" if item.predicted == item.label else f"taken for {classes[item.predicted]}"
        title = f"{classes[item.label]}, {said}, {100 * item.sure:.0f} % sure: {item.id}"
        rows.append((title, body, item.parts, item.frames))
    return explain_figures.evidence(rows, found.parts, part_names(found), layout["edges"])


def part_names(found: Learned) -> list[str]:
    """What a hidden part is called: a joint, or a limb by its two ends."""
    names = [name.replace("_", " ") for name in found.layout.joints]
    return ["–".join(names[v] for v in part) for part in found.parts]


def write_explanation(
    path: Path, found: Learned, other: Learned | None, classes: list[str], shown: list[int], mapped: list[int],
    drawn: Drawn,
) -> None:  # fmt: skip
    """Write the page; figures, and the topologies to be read joint by joint, are inside."""
    rows = [mapped.index(k) for k in shown]
    payload = {
        "joints": [name.replace("_", " ") for name in found.layout.joints],
        "classes": [classes[k] for k in shown],
        "kinds": list(KINDS.items()),  # in this order
        "members": [_packed(each, rows) for each in (found, other) if each is not None and len(each.base)],
    }
    html = render_page(
        "explain.html",
        SCRIPTS,
        payload,
        found=found,
        other=other,
        classes=classes,
        shown=shown,
        strongest=_strongest(found, classes),
        figures={name: Markup(svg) for name, (svg, _) in drawn.items()},
    )
    write_text(path, html)


def _packed(each: Learned, rows: list[int]) -> dict[str, Any]:
    """Topologies in 16 bits: kind -> {scale, data [class][block][sender][receiver], per class or not}."""
    kinds = {"A0": each.base[None], **{kind: values[rows] for kind, values in each.shown.items()}}
    if each.rebuilt is not None:
        kinds["Z"] = each.rebuilt[rows][:, None]
    packed = {}
    for kind, values in kinds.items():
        scale = max(float(np.abs(values).max()), 1e-9)
        data = np.round(values / scale * 32767).astype("<i2")
        packed[kind] = {
            "scale": scale,
            "limits": [explain_figures.spread([values[:, block]]) for block in range(values.shape[1])],
            "shape": list(values.shape[:2]),
            "data": base64.b64encode(data.tobytes()).decode(),
        }
    return {"name": each.name, "network": each.network, "blocks": len(each.base), "kinds": packed}


def _strongest(found: Learned, classes: list[str]) -> list[dict[str, Any]]:
    """Of each class shown the joints that its answers rested on most, over all clips looked at."""
    names, out = part_names(found), []
    for k in dict.fromkeys(item.label for item in found.evidence):
        own = [item for item in found.evidence if item.label == k]
        weights = np.mean([item.parts for item in own], axis=0)
        top = np.argsort(-weights, kind="stable")[:3]
        said = [f"{names[i]} ({weights[i]:+.2f})" for i in top]
        out.append({"name": classes[k], "clips": len(own), "parts": ", ".join(said)})
    return out
