"""The networks by name. To add one: write its file here, name it below, and in model/reference.py if released."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from model.errors import UserError
from model.layouts import Layout, load_layout
from model.nets.protogcn import PAPER, STREAM_DEFAULTS, ProtoGCN

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "protogcn": ProtoGCN,
}


def create_model(
    name: str, *, layout: str | Path | Layout, num_classes: int, in_channels: int = 3, **options: Any
) -> nn.Module:
    """A fresh network by name.

    Graph networks: `net(x)` gives logits (N, num_classes) for float32 x (N, M, T, V, in_channels),
    `net.features(x)` what the classifier sees, `net.loss(x, labels)` (total, detached parts by name).
    Raises UserError for an unknown name, layout or option.
    """
    if name not in NETWORKS:
        raise UserError(f"network {name!r} is unknown: choose one of {', '.join(NETWORKS)}")
    if num_classes < 1:
        raise UserError(f"num_classes is {num_classes}; it must be at least 1")
    known = [p.name for p in inspect.signature(NETWORKS[name]).parameters.values() if p.kind is p.KEYWORD_ONLY]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise UserError(
            f"network {name!r} has no option {', '.join(map(repr, unknown))}; it takes {', '.join(known)}"
        )
    return NETWORKS[name](load_layout(layout), num_classes, in_channels, **options)


def stream_options(name: str, stream: str, setting: str = "released") -> dict[str, Any]:
    """Options in which a network's recipes differ by stream: the `released` values, or the `paper`'s single setting."""
    if name != "protogcn":
        return {}
    return dict(PAPER if setting == "paper" else STREAM_DEFAULTS[stream])
