"""Original checkpoints → ours and back: `sixstream checkpoint import` and `sixstream checkpoint export`."""

import io
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from components.assignments import assigned
from components.bundle import BundleMember, Described, write_bundle
from components.files import write_bytes
from components.original_pipeline import Feeding, feeding_of
from components.pyconfig import read_config
from components.registration import register_import
from components.storage import file_md5
from components.torch_files import TorchFile, read_torch_file
from components.tracking import connect
from components.weights import checkpoint_file
from model import ntu
from model.checkpoint import build_network, load_checkpoint, network_card, plain_state, publish
from model.errors import UserError
from model.layouts import Layout, load_layout
from model.nets import create_model, takes_heatmaps
from model.reference import load_original, original_parts, reference_network, to_original

BACKBONE = "backbone."  # what lies outside it in an original is its head
CLASSIFIER = re.compile(r"(module\.)?(cls_head\.fc(_cls)?|fc)\.")
FLAT = ("coco", "openpose", "handmp", "penn")  # layouts of images, whose third channel is a score
LISTED = {"missing": "missing in the file", "unused": "left over", "shape": "of another shape"}


def import_checkpoint(
    file: Path,
    /,
    *,
    config: Path | None = None,
    model: str = "",
    layout: str = "",
    classes: int | None = None,
    in_channels: int | None = None,
    options: list[str] | None = None,
    stream: str = "",
    new_head: bool = False,
    name: str = "",
    out: Path | None = None,
) -> dict[str, Any]:
    """Turn a checkpoint of ProtoGCN, PYSKL, MMAction2 or UmURL into ours, and register it in MLflow.

    The network follows from the original's configuration (read, not executed), or from model, layout and classes.
    Every tensor must find its place: what is missing, left over or of another shape is listed and refused.

    Args:
        file: the original checkpoint: .pth, .pt or .pth.tar.
        config: its Python configuration file.
        model: name of the network, where there is no configuration.
        layout: shipped layout or JSON file; with a configuration it replaces the layout named there.
        classes: number of classes; with a configuration it replaces the number there (see new_head).
        in_channels: values per joint, where there is no configuration (default: the network's own).
        options: options of the network, such as num_prototypes=100, where there is no configuration.
        stream: stream of the skeleton that the network takes (default: the configuration's, else joint).
        new_head: replace the classifier by a fresh one; what else of the head does not fit is left and said.
        name: name in the registry (default: the file's).
        out: the checkpoint to write (default: weights/<name>.pt).

    Returns:
        "checkpoint" (its path), "uri" in the registry, "placeholders" (names that were not imported), "not_loaded".

    Raises:
        UserError: a file that cannot be read, an option that does not exist here, tensors that do not fit.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", name or file.name.split(".pt")[0])
    out = out or Path("weights") / f"{name}.pt"
    original = read_torch_file(file)
    state = _state_of(original, file)
    values = read_config(config) if config is not None else {}
    torch.manual_seed(0)  # for a new head
    if config is not None:
        if model or options or in_channels:
            raise UserError("with --config leave --model, --in-channels and --options out: it states them")
        if not isinstance(values.get("model"), dict):
            raise UserError(
                f"{config}: assigns no dictionary `model`; name the configuration that describes the network"
            )
        net, chosen = reference_network(values["model"], state, layout or None, classes)
    else:
        if not model or not layout or not classes:
            raise UserError(f"{file}: say what it holds with --config, or with --model, --layout and --classes")
        chosen = {"name": model, "layout": load_layout(layout), "num_classes": classes}
        chosen |= assigned(options, "--options") | ({"in_channels": in_channels} if in_channels else {})
        net = create_model(**chosen)
    not_loaded = _load(net, state, new_head, file)
    feeding = feeding_of(values, _family(chosen["name"], values, state), takes_heatmaps(chosen["name"]))
    feeding.recipe["stream"] = stream or feeding.recipe["stream"]
    skeleton: Layout = chosen["layout"]
    channels: Any = chosen.get("in_channels") or getattr(net, "in_channels", 3)
    card = network_card(
        chosen["name"],
        layout=skeleton,
        in_channels=channels,
        options={k: v for k, v in chosen.items() if k not in ("name", "layout", "num_classes", "in_channels")},
        recipe=feeding.recipe,
        classes=class_names(original.content, chosen["num_classes"], skeleton),
        data_hash="",
    )
    origin = {
        "file": file.name,
        "md5": file_md5(file),
        "config": config.name if config is not None else "",
        "classifier": "fc" if any(".fc." in key for key in state) else "fc_cls",
        "prefix": "module." if all(key.startswith("module.") for key in state) else "",
    }
    publish(out, {**card, "origin": origin}, plain_state(net), _epoch(original.content))
    uri = _register(name, out, card, skeleton, feeding, {**origin, "placeholders": ", ".join(original.placeholders)})
    parameters = sum(p.numel() for p in net.parameters())
    print(f"{file} → {out}: {card['model']}, {skeleton.name}, {card['num_classes']} classes, {parameters:,} parameters")
    for title, lines in (
        ("not imported, inert placeholders", original.placeholders),
        ("not loaded", not_loaded),
        ("note", feeding.notes),
    ):
        for line in lines:
            print(f"  {title}: {line}")
    print(f"  md5: {file_md5(out)}")
    print(f"  registered: {uri}")
    return {"checkpoint": str(out), "uri": uri, "placeholders": original.placeholders, "not_loaded": not_loaded}


def export_checkpoint(checkpoint: str, out: Path, /, *, classifier: str = "") -> None:
    """Write a checkpoint of ours with the tensor names of the original systems, as `{"state_dict": …, "meta": …}`.

    Args:
        checkpoint: a published checkpoint, or models:/NAME/VERSION of a single network.
        out: the file to write.
        classifier: fc (MMAction2's graph networks) or fc_cls (all others); default: as it was imported, else fc_cls.

    Raises:
        UserError: no such checkpoint, or another name of a classifier.
    """
    if classifier not in ("", "fc", "fc_cls"):
        raise UserError(f"--classifier {classifier}: the originals call it fc or fc_cls")
    with tempfile.TemporaryDirectory(prefix="sixstream-") as scratch:
        content = load_checkpoint(checkpoint_file(checkpoint, Path(scratch)))
    net = build_network(content, checkpoint)
    origin = content.get("origin", {"classifier": "fc_cls", "prefix": ""})
    state = to_original(net, net.state_dict(), classifier or origin["classifier"])
    meta = {"epoch": content["epoch"], "CLASSES": tuple(content["classes"])}
    stream = io.BytesIO()
    torch.save({"meta": meta, "state_dict": {origin["prefix"] + key: value for key, value in state.items()}}, stream)
    write_bytes(out, stream.getvalue())
    print(f"{checkpoint} → {out}: {len(state)} tensors")
    for own in net.state_dict().keys() - original_parts(net).keys():
        print(f"  not written: {own}, which the originals do not keep")


def class_names(content: Any, count: int, layout: Layout) -> list[str]:
    """Names that the checkpoint gives its classes, else NTU's for its 60 or 120, else numbers."""
    meta = content.get("meta") if isinstance(content, dict) else None
    meta = meta if isinstance(meta, dict) else {}
    about = meta.get("dataset_meta")
    for names in (meta.get("CLASSES"), about.get("classes") if isinstance(about, dict) else None):
        if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
            if len(names) == len(set(names)) == count:
                return list(names)
    if layout.name == "nturgb+d" and count in (60, 120):
        return list(ntu.action_names()[:count])
    return [f"class {k}" for k in range(count)]


def _state_of(original: TorchFile, file: Path) -> dict[str, Tensor]:
    content = original.content
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not state:
        raise UserError(f"{file}: holds no state dict (names to tensors); save the network's with torch.save")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(f"{file}: {key!r} in its state dict is {value!r:.60}, no tensor; save the state dict alone")
    return state


def _load(net: nn.Module, state: dict[str, Tensor], new_head: bool, file: Path) -> list[str]:
    """Load `state` into `net`; what of the head was not loaded. Raises UserError listing what does not fit."""
    kept = {key: value for key, value in state.items() if not (new_head and CLASSIFIER.match(key))}
    report = load_original(net, kept)
    shapes = {key: tuple(value.shape) for key, value in to_original(net, net.state_dict()).items()}
    shapes |= {key.replace(".fc_cls.", ".fc."): shape for key, shape in shapes.items()}
    refused: dict[str, list[str]] = {}
    not_loaded = [f"{key}: replaced by a new head" for key in state if key not in kept]
    for what, names in report.items():
        for key in names:
            text = f"{key} {shapes[key]} here" if what == "shape" else key
            if new_head and not key.startswith(BACKBONE):
                if what != "missing":  # a fresh head is what was asked for
                    not_loaded.append(f"{text}: {LISTED[what]}")
            else:
                refused.setdefault(what, []).append(text)
    if refused:
        lists = "; ".join(f"{len(names)} tensors {LISTED[what]}: {', '.join(names)}" for what, names in refused.items())
        head = any(not key.startswith(BACKBONE) for names in report.values() for key in names)
        remedy = "state the network that was trained" + (", or replace the classifier with --new-head" if head else "")
        raise UserError(f"{file}: does not fit the network. {lists}. {remedy[0].upper() + remedy[1:]}")
    return not_loaded


def _family(model: str, values: dict[str, Any], state: dict[str, Tensor]) -> str:
    if model == "protogcn":
        return "protogcn"
    theirs = values.get("default_scope") == "mmaction" or any(key.startswith("cls_head.fc.") for key in state)
    return "mmaction2" if theirs else "pyskl"


def _epoch(content: Any) -> int:
    """The epoch that the checkpoint says it is of; 0 when it says none."""
    places = [content.get("meta"), content] if isinstance(content, dict) else []
    found = [place.get("epoch") for place in places if isinstance(place, dict)]
    return next((epoch for epoch in found if type(epoch) is int and epoch > 0), 0)


def _register(
    name: str, checkpoint: Path, card: dict[str, Any], skeleton: Layout, feeding: Feeding, origin: dict[str, str]
) -> str:
    """Register the checkpoint as a model that takes raw joints; its URI."""
    recipe = feeding.recipe
    solid = any(step["name"] == "normalise_3d" for step in feeding.prepare) or not skeleton.name.startswith(FLAT)
    channels = ["x", "y"] if card["in_channels"] == 2 else ["x", "y", "z" if solid else "score"]
    # A clip's last joints are derived after it was read.
    raw = load_layout("coco") if recipe.get("finish") else skeleton
    data = Described(raw, card["classes"], channels, np.array([recipe["persons"]]), "", checkpoint.parent)
    with tempfile.TemporaryDirectory(prefix="sixstream-") as scratch:
        preparation = {"prepare": feeding.prepare, "dtype": "float32"}
        bundle = write_bundle(
            Path(scratch) / "bundle", name, [BundleMember(name, checkpoint)], data, preparation, origin
        )
        tags = {f"origin.{key}": value[:5000] for key, value in origin.items() if value}
        return register_import(connect(Path.cwd()), name, bundle, tags)
