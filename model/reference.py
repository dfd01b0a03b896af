"""Original checkpoints (ProtoGCN, PYSKL, MMAction2, UmURL): their configurations and tensor names, to ours and back."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.errors import UserError
from model.layouts import Layout, load_layout
from model.nets import create_model
from model.reference_umurl import umurl_options

State = dict[str, Tensor]
Options = dict[str, Any]

# Our option -> the original's, for what every graph backbone has.
TRUNK = {
    "in_channels": "in_channels",
    "base_channels": "base_channels",
    "num_stages": "num_stages",
    "inflate_stages": "inflate_stages",
    "down_stages": "down_stages",
    "persons": "num_person",
}
RANDOM_GRAPH = {"graph_mode": "mode", "num_subsets": "num_filter", "init_off": "init_off", "init_std": "init_std"}
# Settings of training or of other tools, without effect on the network.
IGNORED = ("train_cfg", "test_cfg", "data_preprocessor", "loss_cls", "average_clips", "init_cfg", "norm_eval")


class Config:
    """A part of an original configuration. Options are taken one by one; what is left over is refused."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, dict):
            raise UserError(f"{where} must be a dictionary of options, not {values!r}")
        self.where = where
        self.values = {key: _tuples(value) for key, value in values.items() if key not in IGNORED}

    def take(self, key: str, default: Any = None) -> Any:
        return self.values.pop(key, default)

    def require(self, key: str) -> Any:
        if key not in self.values:
            raise UserError(f"{self.where}.{key} is missing: state it")
        return self.values.pop(key)

    def need(self, *keys: str) -> None:
        """Refuses the absence of options whose default differs between the originals and here."""
        for key in keys:
            if key not in self.values:
                raise UserError(f"{self.where}.{key} is missing: state it")

    def rename(self, names: dict[str, str]) -> Options:
        """The options present, by our names (keys) instead of theirs (values)."""
        return {ours: self.values.pop(theirs) for ours, theirs in names.items() if theirs in self.values}

    def expect(self, key: str, *allowed: Any, default: Any = None) -> None:
        """Takes an option of which only the values `allowed` exist here; `default` is what its absence means."""
        value = self.values.pop(key, allowed[0] if default is None else default)
        if value not in allowed:
            values = " or ".join(map(repr, allowed))
            raise UserError(f"{self.where}.{key} = {value!r} is not supported: only {values}")

    def finish(self) -> None:
        if self.values:
            raise UserError(f"{self.where}: option {', '.join(map(repr, self.values))} is not supported")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _graph_backbone(backbone: Config, names: dict[str, str], graph_names: dict[str, str], norm: str) -> Options:
    graph = Config(backbone.require("graph_cfg"), "backbone.graph_cfg")
    graph.need("layout", "mode", *(["num_filter"] if graph.values.get("mode") == "random" else []))
    backbone.expect("pretrained", None)
    dropout = backbone.values.get("tcn_dropout", 0)
    if isinstance(dropout, tuple):
        raise UserError("backbone.tcn_dropout per stage is not supported: give one number")
    data_norm = backbone.take("data_bn_type", norm)
    if data_norm not in ("VC", "MVC"):
        raise UserError(f"backbone.data_bn_type = {data_norm!r} is not supported: only 'VC' or 'MVC'")
    options = {
        **backbone.rename({**TRUNK, **names}),
        **graph.rename(graph_names),
        "layout": graph.take("layout"),
        "norm_per_person": data_norm == "MVC",
    }
    graph.finish()
    return options


def _stgcn(backbone: Config, head: Config) -> Options:
    temporal = backbone.take("tcn_type", "unit_tcn")
    kinds = {"unit_tcn": "single", "mstcn": "multi_scale"}
    if temporal not in kinds:
        raise UserError(f"backbone.tcn_type = {temporal!r} is not supported: only {' or '.join(kinds)}")
    names = {
        "ch_ratio": "ch_ratio",
        "adaptive": "gcn_adaptive",
        "with_residual": "gcn_with_res",
        "branches": "tcn_ms_cfg",
        "temporal_dropout": "tcn_dropout",
    }
    options = _graph_backbone(backbone, names, {"graph_mode": "mode", "max_hop": "max_hop"}, "VC")
    if options.get("adaptive") not in (None, "init", "importance"):
        raise UserError(f"backbone.gcn_adaptive = {options['adaptive']!r} is not supported: only init or importance")
    plus_plus = options.get("adaptive") == "init" and options.get("with_residual") and temporal == "mstcn"
    if plus_plus:
        del options["adaptive"], options["with_residual"]
        return {"name": "stgcnpp", **options}
    return {"name": "stgcn", "temporal": kinds[temporal], **options}


def _agcn(backbone: Config, head: Config) -> Options:
    backbone.expect("gcn_attention", False, default=True)
    backbone.expect("gcn_adaptive", True)
    names = {"temporal_dropout": "tcn_dropout"}
    return {"name": "agcn", **_graph_backbone(backbone, names, {"graph_mode": "mode"}, "MVC")}


def _ctrgcn(backbone: Config, head: Config) -> Options:
    return {"name": "ctrgcn", **_graph_backbone(backbone, {}, {"graph_mode": "mode"}, "MVC")}


def _dgstgcn(backbone: Config, head: Config) -> Options:
    backbone.need("gcn_ratio")
    return {"name": "dgstgcn", **_topology_backbone(backbone)}


def _topology_backbone(backbone: Config) -> Options:
    for key in ("gcn_ctr", "gcn_ada"):
        backbone.expect(key, "T")
    for key in ("gcn_subset_wise", "gcn_decompose"):
        backbone.expect(key, False)
    backbone.expect("tcn_type", "dgmstcn")
    names = {
        "ch_ratio": "ch_ratio",
        "branches": "tcn_ms_cfg",
        "subset_ratio": "gcn_ratio",
        "temporal_dropout": "tcn_dropout",
    }
    return _graph_backbone(backbone, names, RANDOM_GRAPH, "VC")


def _protogcn(backbone: Config, head: Config) -> Options:
    prototypes = backbone.require("num_prototype")
    options = {"name": "protogcn", "num_prototypes": prototypes, **_topology_backbone(backbone)}
    head.expect("joint_cfg", options["layout"])
    return {**options, **head.rename({"contrastive_weight": "weight"})}


def _slowonly(backbone: Config, head: Config) -> Options:
    backbone.expect("depth", 50)
    backbone.expect("pretrained", None)
    backbone.expect("frozen_stages", -1)
    backbone.expect("style", "pytorch")
    for stride in ("conv1_stride_t", "pool1_stride_t"):
        backbone.expect(stride, 1)
    for flag in ("with_pool2", "non_local"):
        backbone.expect(flag, False)
    stated = ("in_channels", "base_channels", "stage_blocks", "inflate", "spatial_strides", "temporal_strides")
    backbone.need(*stated)
    options = backbone.rename({**{key: key for key in stated}, "stem_kernel": "conv1_kernel"})
    options["stem_stride"] = _spatial_stride(backbone, "conv1_stride")
    options["pool_stride"] = _spatial_stride(backbone, "pool1_stride")
    stages = len(options["stage_blocks"])
    backbone.expect("num_stages", stages)
    backbone.expect("out_indices", (stages - 1,))
    backbone.expect("dilations", (1,) * stages)
    head.expect("spatial_type", "avg")
    return {"name": "posec3d", "layout": "coco", **options}


def _spatial_stride(backbone: Config, key: str) -> int:
    """The stride over height and width: `key`_s in MMAction2, `key` = (time, space) in PYSKL."""
    time, space = backbone.take(key, (1, backbone.take(f"{key}_s", 2)))
    if time != 1:
        raise UserError(f"backbone.{key} = {(time, space)} is not supported: only 1 over time")
    return space


BACKBONES: dict[str, Callable[[Config, Config], Options]] = {
    "STGCN": _stgcn,
    "AAGCN": _agcn,
    "CTRGCN": _ctrgcn,
    "DGSTGCN": _dgstgcn,
    "ProtoGCN": _protogcn,
    "ResNet3dSlowOnly": _slowonly,
}


def model_options(config: dict[str, Any], layout: str | Path | Layout | None = None) -> Options:
    """The arguments of `create_model` (with `name`) that an original model dictionary describes.

    `config` holds `type`, `backbone` and `cls_head`, in PYSKL's or MMAction2's spelling; `layout` replaces the one it
    names. Raises UserError naming an option that has no counterpart here.
    """
    recognizer = Config(config, "model")
    backbone = Config(recognizer.require("backbone"), "backbone")
    head = Config(recognizer.require("cls_head"), "cls_head")
    recognizer.expect("type", "RecognizerGCN", "Recognizer3D")
    recognizer.finish()
    kind = backbone.require("type")
    if kind not in BACKBONES:
        raise UserError(f"backbone.type = {kind!r} is not supported: only {', '.join(BACKBONES)}")
    options = BACKBONES[kind](backbone, head)
    backbone.finish()
    options["num_classes"] = head.require("num_classes")
    for key in ("dropout", "dropout_ratio"):
        options.update(head.rename({"head_dropout": key}))
    head.expect("type", "GCNHead", "SimpleHead", "I3DHead")
    head.expect("mode", "GCN", "3D")
    head.take("init_std")
    head.take("in_channels")  # follows from the backbone; load_reference compares
    head.finish()
    options["layout"] = load_layout(layout if layout is not None else options["layout"])
    return options


def original_parts(net: nn.Module) -> dict[str, list[tuple[str, int]]]:
    """Own tensor name -> the original tensors it holds, with their rows (-1: all)."""
    cuts: dict[str, list[tuple[str, int]]] = {}
    for prefix, module in net.named_modules():
        if hasattr(module, "reference_parts"):
            start = prefix + "." if prefix else ""
            for own, parts in module.reference_parts().items():
                cuts[start + own] = [(start + name, rows) for name, rows in parts]
    own_names = [name for name, _ in net.named_parameters()] + [name for name, _ in net.named_buffers()]
    if getattr(net, "reference_same_names", False):
        return {own: [(own, -1)] for own in own_names}
    renames = getattr(net, "reference_renames", ())
    return {
        own: [(_original_name(name, renames), rows) for name, rows in cuts.get(own, [(own, -1)])]
        for own in own_names
        if own != "contrast.bank"  # the original keeps it outside the state
    }


def _original_name(name: str, renames: tuple[tuple[str, str], ...]) -> str:
    for ours, theirs in renames:
        name = re.sub(ours, theirs, name)
    if name.startswith("fc."):
        return "cls_head.fc_cls." + name.removeprefix("fc.")
    if name.startswith("contrast."):
        return "cls_head.csc_loss." + name.removeprefix("contrast.")
    return "backbone." + name


def to_original(net: nn.Module, tensors: State, classifier: str = "fc_cls") -> State:
    """Tensors by our names (state or gradients of `net`) -> by original names, cut as the original's.

    `classifier` is "fc_cls" in PYSKL, ProtoGCN and PoseC3D, and "fc" in MMAction2's graph networks.
    """
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
    return {name.replace("cls_head.fc_cls.", f"cls_head.{classifier}."): value for name, value in result.items()}


def load_original(net: nn.Module, state: State) -> dict[str, list[str]]:
    """Loads original tensors into `net`; returns the report {missing, unused, shape} of original names.

    A tensor that is missing or of another shape leaves ours as initialised.
    """
    state = {_canonical(name): value for name, value in state.items()}
    own_state = net.state_dict()
    report: dict[str, list[str]] = {"missing": [], "unused": [], "shape": []}
    used: set[str] = set()
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


def reference_network(
    config: dict[str, Any], state: State, layout: str | Path | Layout | None = None, num_classes: int | None = None
) -> tuple[nn.Module, Options]:
    """The fresh network that an original model dictionary describes, and the `create_model` arguments it was made with.

    `state` holds the original tensors; `num_classes` replaces the dictionary's.
    """
    if config.get("type") == "UmURL":
        options = umurl_options(config, state, load_layout(layout or "nturgb+d"))
    else:
        options = model_options(config, layout)
    if num_classes is not None:
        options["num_classes"] = num_classes
    net: Any = create_model(**options)
    width = config.get("cls_head", {}).get("in_channels")
    if width is not None and width != net.fc.in_features:
        raise UserError(f"cls_head.in_channels = {width}, but the backbone ends with {net.fc.in_features} channels")
    return net, options


def load_reference(
    state: State | str | Path, config: dict[str, Any], layout: str | Path | Layout | None = None
) -> nn.Module:
    """The network of an original checkpoint, in eval mode, with `net.load_report` = {missing, unused, shape}.

    `state` is a state dict with original names or a file (read with weights_only). `config` is the original's
    model dictionary, for UmURL `{"type": "UmURL", "t_input_size": 150, …}`, its constructor's arguments. Raises
    UserError for an option or a file we cannot read.
    """
    if not isinstance(state, dict):
        state = read_state(Path(state))
    net: Any
    net, _ = reference_network(config, state, layout)
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
