"""The science of skeleton action recognition: torch, numpy and the standard library only.

Axis legend, everywhere: `N` clip, `M` person, `T` frame, `V` joint, `C` channel.
"""

from typing import Any

__all__ = ["create_model", "load_reference"]


def __getattr__(name: str) -> Any:
    # Importing torch takes seconds; layouts, stores and score tables must not pay for it.
    if name == "create_model":
        from model.nets import create_model

        return create_model
    if name == "load_reference":
        from model.reference import load_reference

        return load_reference
    raise AttributeError(f"module 'model' has no attribute {name!r}")
