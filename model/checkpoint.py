"""Published checkpoints: one file that is enough to rebuild a network and score clips with it."""

import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.atomic import write_bytes
from model.errors import UserError
from model.layouts import Layout, layout_from_dict, layout_to_dict

FORMAT = "sixstream/1"
_CARD = (
    "model",
    "layout",
    "num_classes",
    "in_channels",
    "options",
    "recipe",
    "classes",
    "data_hash",
)


def network_card(
    model: str,
    *,
    layout: Layout,
    in_channels: int,
    options: dict[str, Any],
    recipe: dict[str, Any],
    classes: list[str],
    data_hash: str,
) -> dict[str, Any]:
    """What a published checkpoint says besides weights and epoch, as plain values.

    `model`, `layout`, `in_channels` and `options` are create_model's; `recipe` says how clips are made for
    the network; `classes` are the names of its outputs; `data_hash` is that of the training data.
    """
    return {
        "model": model,
        "layout": layout_to_dict(layout),
        "num_classes": len(classes),
        "in_channels": in_channels,
        "options": options,
        "recipe": recipe,
        "classes": classes,
        "data_hash": data_hash,
    }


def publish(path: str | Path, card: dict[str, Any], state: dict[str, Tensor], epoch: int) -> Path:
    """Write a published checkpoint: `card` (see network_card), the weights after `epoch` epochs."""
    return save_checkpoint(path, {**card, "state": state, "epoch": epoch})


def save_checkpoint(path: str | Path, content: dict[str, Any], form: str = FORMAT) -> Path:
    """Write tensors and plain values to `path`, whole or not at all; equal contents give equal bytes."""
    return write_bytes(path, checkpoint_bytes(content, form))


def checkpoint_bytes(content: dict[str, Any], form: str = FORMAT) -> bytes:
    """The bytes of a checkpoint file of format `form`."""
    stream = io.BytesIO()
    torch.save({"format": form, **content}, stream)
    return stream.getvalue()


def load_checkpoint(path: str | Path, form: str = FORMAT) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without running code from it.

    Raises UserError naming the file when it is missing, damaged, foreign or of another format than `form`.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; train the member first")
    damaged = f"{path}: not a readable checkpoint; fetch the file again or train the member again"
    try:
        # torch does not verify every byte that it reads; the archive's checksums do.
        with zipfile.ZipFile(path) as archive:
            flawed = archive.testzip()
        if flawed is not None:
            raise UserError(f"{damaged} (checksum of {flawed} differs)")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # on damaged bytes zipfile, pickle and torch raise almost any type
        raise UserError(f"{damaged} ({type(error).__name__}: {str(error).splitlines()[0:1]})") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != form:
        raise UserError(f"{path}: format is {found!r}, expected {form!r}; it was written by something else")
    return content


def build_network(checkpoint: dict[str, Any], where: str = "checkpoint") -> nn.Module:
    """The network of a published checkpoint with its weights, in eval mode, on the CPU.

    Raises UserError naming `where` and the field when something is missing or the weights do not fit.
    """
    from model.nets import create_model

    missing = [field for field in (*_CARD, "state", "epoch") if field not in checkpoint]
    if missing:
        raise UserError(f"{where}: lacks {', '.join(missing)}; it is not a published checkpoint")
    net = create_model(
        checkpoint["model"],
        layout=layout_from_dict(checkpoint["layout"], where),
        num_classes=checkpoint["num_classes"],
        in_channels=checkpoint["in_channels"],
        **checkpoint["options"],
    )
    try:
        net.load_state_dict(checkpoint["state"])
    except RuntimeError as error:
        raise UserError(f"{where}: the weights do not fit {checkpoint['model']!r}: {error}") from None
    return net.eval()


def plain_state(net: nn.Module) -> dict[str, Tensor]:
    """A copy of the network's state on the CPU that later training steps do not change."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in net.state_dict().items()}
