"""What a network costs: parameters, multiply-accumulates as published and as executed here, and time."""

import statistics
import time
from typing import Any

from components.assignments import assigned
from components.environment import device_name

REPETITIONS = 5  # timed forward passes, after one that warms up


def info(
    model: str,
    /,
    *,
    layout: str,
    classes: int = 60,
    in_channels: int | None = None,
    clip_length: int | None = None,
    persons: int = 2,
    size: int = 64,
    stream: str = "joint",
    options: list[str] | None = None,
    training: bool = False,
) -> dict[str, Any]:
    """Print parameters, multiply-accumulates and measured forward time of a network for one clip.

    `published` counts as the model zoos do (fvcore), in the released form; `executed` is what runs here, less where
    our form saves work. The time is the median of five passes of one clip, on the GPU where there is one.

    Args:
        model: name of the network.
        layout: shipped layout, or a JSON file with joints and parents.
        classes: number of classes.
        in_channels: values per joint, or heat maps per clip (default: the network's own).
        clip_length: frames per clip (default: 100, heat maps 48).
        persons: persons per clip.
        size: height and width of heat maps.
        stream: stream whose released options count, as ProtoGCN's number of prototypes.
        options: options of the network, such as num_prototypes=100 base_channels=32.
        training: count the path of training instead, for one clip, with ProtoGCN's prototype branch.

    Raises:
        UserError: an unknown network, layout, stream or option.
    """
    import torch

    from model.complexity import complexity, usual_input
    from model.nets import NETWORKS, create_model, network_options
    from model.nets.defaults import stream_options
    from model.streams import base_of

    base_of(stream)  # refuses an unknown one
    given = {**stream_options(model, stream), **assigned(options, "--options")}
    if persons != 2 and model in NETWORKS and "persons" in network_options(model):
        given.setdefault("persons", persons)
    net = create_model(model, layout=layout, num_classes=classes, in_channels=in_channels, **given).eval()
    shape = usual_input(net, persons=persons, frames=clip_length, size=size)
    counted = complexity(net, shape, with_loss=training)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    seconds = _forward_seconds(net.to(device), torch.randn(shape, device=device))
    figures = {
        "model": model,
        "layout": layout,
        "classes": classes,
        "input": list(shape),
        "parameters": counted.parameters,
        "published": counted.published,
        "executed": counted.executed,
        "seconds": seconds,
        "device": device_name(device),
    }
    print(table(figures))
    return figures


def table(figures: dict[str, Any]) -> str:
    """The figures as lines for people; G is 10^9."""
    shape = " x ".join(map(str, figures["input"]))
    rows = [
        ("network", f"{figures['model']}, layout {figures['layout']}, {figures['classes']} classes"),
        ("input", shape),
        ("parameters", f"{figures['parameters']:,}"),
        ("multiply-accumulates, published", f"{figures['published'] / 1e9:.3f} G"),
        ("multiply-accumulates, executed", f"{figures['executed'] / 1e9:.3f} G"),
        ("forward pass", f"{1000 * figures['seconds']:.1f} ms ({figures['device']})"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows)


def _forward_seconds(net: Any, x: Any) -> float:
    import torch

    # Fresh statistics let activations decay to denormal numbers, which a CPU computes many times slower.
    torch.set_flush_denormal(True)
    seconds = []
    with torch.inference_mode():
        for _ in range(1 + REPETITIONS):
            began = time.perf_counter()
            net(x)
            if x.is_cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])
