"""UmURL's released checkpoints: their constructor arguments to ours. Tensor names need no translation."""

from typing import Any

from torch import Tensor

from model.errors import UserError
from model.layouts import Layout

FIELDS = ("t_input_size", "s_input_size", "hidden_size", "num_head", "num_layer", "num_class")
CHANNELS = (3, 2)  # UmURL's data have three; sizes that only two can explain are those of flat poses


def umurl_options(config: dict[str, Any], state: dict[str, Tensor], layout: Layout) -> dict[str, Any]:
    """The arguments of `create_model` (with `name`) for UmURL's constructor arguments and the tensors in `state`.

    Persons and frames follow from the token widths and the layout, the head and its width from the tensors.
    Raises UserError naming an argument that is missing, unknown or does not fit the layout.
    """
    values = {key: value for key, value in config.items() if key != "type"}
    unknown = [key for key in values if key not in FIELDS]
    if unknown:
        raise UserError(f"model: option {', '.join(map(repr, unknown))} is not supported; UmURL takes {FIELDS}")
    for key in ("t_input_size", "s_input_size", "hidden_size"):
        if key not in values:
            raise UserError(f"model.{key} is missing: state it")
    temporal, spatial = values["t_input_size"], values["s_input_size"]
    channels = next((c for c in CHANNELS if temporal % (layout.num_joints * c) == 0 and spatial % c == 0), None)
    if channels is None:
        raise UserError(
            f"model.t_input_size = {temporal} and s_input_size = {spatial} are no multiples for the "
            f"{layout.num_joints} joints of layout '{layout.name}': name the layout of the checkpoint"
        )
    shapes = {name.removeprefix("module."): tensor.shape for name, tensor in state.items()}
    options: dict[str, Any] = {
        "name": "umurl",
        "layout": layout,
        "in_channels": channels,
        "persons": temporal // (layout.num_joints * channels),
        "frames": spatial // channels,
        "hidden": values["hidden_size"],
        "attention_heads": values.get("num_head", 1),
        "layers": values.get("num_layer", 1),
        "num_classes": values.get("num_class", 60),
    }
    if "fc.weight" in shapes:
        return {**options, "head": "classifier", "num_classes": shapes["fc.weight"][0]}
    if "j_projector.6.weight" in shapes:
        options["projector_width"] = shapes["j_projector.6.weight"][0]
    return options
