"""Networks small enough to try on every layout, and clips for them."""

import torch

from model import create_model
from model.nets.umurl import UmURL

CLASSES = 5


def small(name, layout, **options):
    torch.manual_seed(0)
    if name == "posec3d":
        options = {"base_channels": 4, "stage_blocks": (1, 1, 1), **options}
    elif name == "umurl":
        options = {"hidden": 8, "frames": 11, "projector_width": 12, "head": "classifier", **options}
    else:
        options = {"base_channels": 12, "num_stages": 3, "inflate_stages": (2,), "down_stages": (3,), **options}
    return create_model(name, layout=layout, num_classes=CLASSES, **options)


def scores(net, x):
    """Class scores; UmURL's own output are features."""
    return net.fc(net(x)) if isinstance(net, UmURL) else net(x)


def clips(net, seed=0, number=3):
    generator = torch.Generator().manual_seed(seed)
    if isinstance(net, UmURL):
        return torch.randn(number, *net.shape, generator=generator)
    if not hasattr(net, "num_joints"):
        return torch.rand(number, net.in_channels, 6, 16, 16, generator=generator)
    return torch.randn(number, 2, 11, net.num_joints, net.in_channels, generator=generator)
