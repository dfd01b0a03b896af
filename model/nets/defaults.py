"""Network options in which recipes differ by stream."""

from typing import Any

from model.nets.protogcn import PAPER, STREAM_DEFAULTS


def stream_options(name: str, stream: str, setting: str = "released") -> dict[str, Any]:
    """Options of network `name` for a stream: the `released` recipes' or the `paper`'s single setting.

    Only ProtoGCN's recipes differ by stream: in the number of prototypes and the weight of the contrastive loss.
    """
    if name != "protogcn":
        return {}
    return dict(PAPER if setting == "paper" else STREAM_DEFAULTS[stream])
