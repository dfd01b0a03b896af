"""Original checkpoints: their configurations and tensor names, to ours and back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.errors import UserError
from model.layouts import Layout, load_layout
from model.nets import create_model
from model.nets.blocks import convert

State = dict[str, Tensor]


class Config:
    """A part of an original configuration; options are taken one by one, what is left over is refused."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.values = {key: convert(value) for key, value in values.items()}
        self.where = where

    def take(self, key: str, default: Any = None) -> Any:
        return self.values.pop(key, default)

    def rename(self, **names: str) -> dict[str, Any]:
        """Options present under their original names (values) by our names (keys)."""
        return {ours: self.values.pop(theirs) for ours, theirs in names.items() if theirs in self.values}

    def expect(self, key: str, *allowed: Any) -> None:
        """Takes an option of which only `allowed` values exist here; absent counts as allowed."""
        if key in self.values and self.values[key] not in allowed:
            raise UserError(
                f"{self.where}.{key} = {self.values[key]!r} is not supported: only {' or '.join(map(repr, allowed))}"
            )
        self.values.pop(key, None)

    def finish(self) -> None:
        if self.values:
            raise UserError(f"{self.where}: option {', '.join(map(repr, self.values))} is not supported")


def _trunk_options(backbone: Config) -> dict[str, Any]:
    """Options that every graph backbone of PYSKL and MMAction2 has."""
    options = backbone.rename(
        in_channels="in_channels",
        base_channels="base_channels",
        num_stages="num_stages",
        inflate_stages="inflate_stages",
        down_stages="down_stages",
        ch_ratio="ch_ratio",
        persons="num_person",
    )
    backbone.expect("pretrained", None)
    return options


def _norm_option(backbone: Config, default: str) -> dict[str, Any]:
    norm = backbone.take("data_bn_type", default)
    if norm not in ("VC", "MVC"):
        raise UserError(f"backbone.data_bn_type = {norm!r} is not supported: only 'VC' or 'MVC'")
    return {"norm_per_person": norm == "MVC"}


def _graph(backbone: Config) -> Config:
    if "graph_cfg" not in backbone.values:
        raise UserError("backbone.graph_cfg is missing: it names layout and mode")
    return Config(backbone.take("graph_cfg"), "backbone.graph_cfg")


def _protogcn(backbone: Config, head: Config) -> dict[str, Any]:
    graph = _graph(backbone)
    options = {
        **_trunk_options(backbone),
        **_norm_option(backbone, "VC"),
        **backbone.rename(
            num_prototypes="num_prototype",
            branches="tcn_ms_cfg",
            subset_ratio="gcn_ratio",
            temporal_dropout="tcn_dropout",
        ),
        "layout": graph.take("layout"),
        **graph.rename(graph_mode="mode", num_subsets="num_filter", init_off="init_off", init_std="init_std"),
        **head.rename(contrastive_weight="weight"),
    }
    head.expect("joint_cfg", options["layout"])
    graph.finish()
    return {"name": "protogcn", **options}


BACKBONES: dict[str, Callable[[Config, Config], dict[str, Any]]] = {
    "ProtoGCN": _protogcn,
}


def model_options(config: dict[str, Any], layout: str | Path | Layout | None = None) -> dict[str, Any]:
    """The arguments of `create_model` (with `name`) that an original model dictionary describes.

    `config` holds `type`, `backbone` and `cls_head`; `layout` replaces the one it names. Raises UserError naming an
    option that has no counterpart here.
    """
    if "backbone" not in config or "cls_head" not in config:
        raise UserError("a reference configuration needs 'backbone' and 'cls_head'")
    recognizer = Config({k: v for k, v in config.items() if k not in ("backbone", "cls_head")}, "model")
    recognizer.expect("type", "RecognizerGCN")
    for ignored in ("train_cfg", "test_cfg", "data_preprocessor"):
        recognizer.take(ignored)
    recognizer.finish()
    backbone, head = Config(config["backbone"], "backbone"), Config(config["cls_head"], "cls_head")
    kind = backbone.take("type")
    if kind not in BACKBONES:
        raise UserError(f"backbone.type {kind!r} is not supported: only {', '.join(BACKBONES)}")
    options = BACKBONES[kind](backbone, head)
    backbone.finish()
    options["num_classes"] = head.take("num_classes")
    options.update(head.rename(head_dropout="dropout"))
    head_width = head.take("in_channels")
    head.expect("type", "GCNHead", "SimpleHead")
    head.finish()
    if layout is not None:
        options["layout"] = layout
    options["layout"] = load_layout(options["layout"])
    net = {"options": options, "head_width": head_width}
    return net["options"]


def original_parts(net: nn.Module) -> dict[str, list[tuple[str, int]]]:
    """Own tensor name -> the original tensors it holds, with their rows (-1: all)."""
    cuts: dict[str, list[tuple[str, int]]] = {}
    for prefix, module in net.named_modules():
        if hasattr(module, "reference_parts"):
            start = prefix + "." if prefix else ""
            for own, parts in module.reference_parts().items():
                cuts[start + own] = [(start + name, rows) for name, rows in parts]
    names = [name for name, _ in net.named_parameters()] + [name for name, _ in net.named_buffers()]
    return {
        own: [(_with_prefix(name), rows) for name, rows in cuts.get(own, [(own, -1)])]
        for own in names
        if own != "contrast.bank"  # the original keeps it outside the state
    }


def _with_prefix(name: str) -> str:
    if name.startswith("fc."):
        return "cls_head.fc_cls." + name.removeprefix("fc.")
    if name.startswith("contrast."):
        return "cls_head.csc_loss." + name.removeprefix("contrast.")
    return "backbone." + name


def to_original(net: nn.Module, tensors: State) -> State:
    """Tensors by our names (state or gradients of `net`) -> by original names, cut as the original has them."""
    result: State = {}
    for own, parts in original_parts(net).items():
        if own not in tensors:
            continue
        value = tensors[own]
        if len(parts) == 1 or value.dim() == 0:
            result.update({name: value for name, _ in parts})
        else:
            pieces = value.split([rows for _, rows in parts])
            result.update({name: piece for (name, _), piece in zip(parts, pieces, strict=True)})
    return result


def load_original(net: nn.Module, state: State) -> dict[str, list[str]]:
    """Loads original tensors into `net`; returns the report {missing, unused, shape} of original names.

    A tensor that is missing or of another shape leaves ours as initialised.
    """
    state = {_canonical(name): value for name, value in state.items()}
    own_state = net.state_dict()
    report: dict[str, list[str]] = {"missing": [], "unused": [], "shape": []}
    used = set()
    for own, parts in original_parts(net).items():
        missing = [name for name, _ in parts if name not in state]
        used.update(name for name, _ in parts)
        if missing:
            report["missing"] += missing
            continue
        pieces = [state[name] for name, _ in parts]
        joined = pieces[0] if len(pieces) == 1 or pieces[0].dim() == 0 else torch.cat(pieces)
        if joined.shape != own_state[own].shape:
            report["shape"] += [name for name, _ in parts]
            continue
        own_state[own].copy_(joined)
    report["unused"] = [name for name in state if name not in used]
    return report


def _canonical(name: str) -> str:
    name = name.removeprefix("module.")
    return name.replace("cls_head.fc.", "cls_head.fc_cls.", 1)


def load_reference(
    state: State | str | Path, config: dict[str, Any], layout: str | Path | Layout | None = None
) -> nn.Module:
    """The network of an original checkpoint, in eval mode, with `net.load_report` = {missing, unused, shape}.

    `state` is a state dict with original names or a file (read with weights_only). `config` is the original's
    model dictionary. Raises UserError for an option or a file we cannot read.
    """
    if not isinstance(state, dict):
        state = read_state(Path(state))
    options = model_options(config, layout)
    net = create_model(**options)
    net.load_report = load_original(net, state)
    return net.eval()


def read_state(path: Path) -> State:
    """The state dict in an original checkpoint file (`state_dict` inside it, or the file itself)."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: cannot be read as a checkpoint of plain tensors ({error})") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path}: holds no state dict (names to tensors)")
    return content
