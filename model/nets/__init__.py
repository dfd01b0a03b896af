"""The networks by name.

To add one: write its file here, name it below, and in model/reference.py if checkpoints of it were released.
"""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from model.errors import UserError
from model.layouts import Layout, load_layout
from model.nets.agcn import AGCN
from model.nets.ctrgcn import CTRGCN
from model.nets.dgstgcn import DGSTGCN
from model.nets.posec3d import PoseC3D
from model.nets.protogcn import ProtoGCN
from model.nets.stgcn import PLUS_PLUS, STGCN
from model.nets.umurl import UmURL

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "stgcn": STGCN,
    "stgcnpp": partial(STGCN, **PLUS_PLUS),
    "agcn": AGCN,
    "ctrgcn": CTRGCN,
    "dgstgcn": DGSTGCN,
    "protogcn": ProtoGCN,
    "posec3d": PoseC3D,
    "umurl": UmURL,
}


def takes_heatmaps(name: str) -> bool:
    """Whether the network `name` reads heat maps (N, C, T, H, W) rather than joints."""
    return bool(getattr(_network(name), "takes_heatmaps", False))


def _network(name: str) -> type:
    if name not in NETWORKS:
        raise UserError(f"network {name!r} is unknown: choose one of {', '.join(NETWORKS)}")
    builder = NETWORKS[name]
    return builder.func if isinstance(builder, partial) else builder  # type: ignore[return-value]


def option_defaults(name: str) -> dict[str, Any]:
    """The options that `create_model` takes for the network `name`, its base classes' included, and their defaults."""
    network, builder = _network(name), NETWORKS[name]
    options: dict[str, Any] = {}
    for ancestor in network.__mro__:
        if ancestor is nn.Module:
            break
        parameters = inspect.signature(ancestor).parameters.values()
        options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} | options
    return {**options, **(builder.keywords if isinstance(builder, partial) else {})}


def network_options(name: str) -> list[str]:
    """The names of the options that `create_model` takes for the network `name`."""
    return list(option_defaults(name))


def decisive_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """All options of a network, defaults written out, but those that the others leave without an effect.

    Networks of one name for which they agree are the same: from one seed they train to the same bits.
    """
    every = {**option_defaults(name), **options}
    decide = getattr(_network(name), "decisive", dict)
    return dict(decide(every))


def create_model(
    name: str, *, layout: str | Path | Layout, num_classes: int, in_channels: int | None = None, **options: Any
) -> nn.Module:
    """A fresh network by name.

    Graph networks: `net(x)` gives logits (N, num_classes) for float32 x (N, M, T, V, in_channels), three channels
    unless given. `posec3d`: x (N, in_channels, T, H, W) heat maps, one channel per joint unless given. All have
    `net.features(x)`, what the classifier sees, and `net.loss(x, labels)`, the total and its detached parts by name.
    `umurl`: x (N, in_channels, T, V, M) gives features; what it is trained on depends on its option `head`.
    Raises UserError for an unknown name, layout or option.
    """
    known = network_options(name)
    if num_classes < 1:
        raise UserError(f"num_classes is {num_classes}; it must be at least 1")
    unknown = [option for option in options if option not in known]
    if unknown:
        raise UserError(f"network {name!r} has no option {', '.join(map(repr, unknown))}; it takes {', '.join(known)}")
    if in_channels is not None:
        options["in_channels"] = in_channels
    return NETWORKS[name](load_layout(layout), num_classes, **options)
