"""Trained networks by name: a file, a bundle's folder, or a model of the registry; and members that start from one."""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.bundle import read_bundle
from components.params import Member
from components.storage import file_md5
from model.errors import UserError
from model.layouts import Layout, layout_from_dict

REGISTERED = ("models:", "runs:")


def bundle_folder(uri: str, scratch: Path) -> Path:
    """The folder of the bundle at `uri`; models of the registry are copied into `scratch`."""
    from components.servable import fetch_bundle

    if uri.startswith(REGISTERED):
        from components.tracking import connect

        connect(Path.cwd())
        print(f"fetching {uri}", file=sys.stderr)
    return fetch_bundle(uri, scratch / "model")


def checkpoint_file(named: str, scratch: Path) -> Path:
    """The published checkpoint that `named` means: a file, or models:/NAME/VERSION of a single network.

    Raises UserError when the model is missing or an ensemble of several networks.
    """
    if not named.startswith(REGISTERED):
        return Path(named)
    folder = bundle_folder(named, scratch)
    members = read_bundle(folder)["members"]
    if len(members) != 1:
        raise UserError(f"{named}: holds {len(members)} networks; name a version of one of them")
    return folder / str(members[0]["checkpoint"])


@dataclass(frozen=True)
class Given:
    """A network made from given weights: `options` are create_model's, `said` is what the log should say."""

    net: Any
    options: dict[str, Any]
    epoch: int
    md5: str
    said: str


def network_from(spec: Member, where: str, layout: Layout, classes: list[str], in_channels: int, persons: int) -> Given:
    """The network of a member that names weights, for clips of this layout and these channels and persons.

    Its options are those of the weights, and of the member's own where it has any. With `train: finetune` other
    classes get a new head; with `train: none` they are refused. Names that only number the classes fit any.

    Raises UserError naming the member and the weights that are missing, other than stated, or of other data.
    """
    from model.checkpoint import build_network, load_checkpoint
    from model.nets import create_model

    named = str(spec.weights)
    with tempfile.TemporaryDirectory(prefix="sixstream-") as scratch:
        file = checkpoint_file(named, Path(scratch))
        if not file.is_file():
            raise UserError(f"{where}.weights: {named}: no such file")
        md5 = file_md5(file)
        if spec.weights_md5 not in (None, md5):
            raise UserError(f"{where}.weights: {named} has md5 {md5}, not {spec.weights_md5}; fetch the file again")
        try:
            checkpoint = load_checkpoint(file)
        except UserError as error:
            hint = "an original checkpoint becomes ours by `sixstream checkpoint import`"
            raise UserError(f"{where}.weights: {error}; {hint}") from None
    trained = build_network(checkpoint, named)
    for what, theirs, ours in (
        ("network", checkpoint["model"], spec.model),
        ("joints", layout_from_dict(checkpoint["layout"], named).joints, layout.joints),
        ("number of channels", checkpoint["in_channels"], in_channels),
        ("number of persons", checkpoint["options"].get("persons", persons), persons),
    ):
        if theirs != ours:
            raise UserError(f"{where}.weights: {named} has another {what} than the member: {theirs}, not {ours}")
    options = {**checkpoint["options"], **spec.network}
    fits = checkpoint["num_classes"] == len(classes) and (
        _numbered(checkpoint["classes"]) or _numbered(classes) or list(checkpoint["classes"]) == classes
    )
    if not fits and spec.train == "none":
        raise UserError(
            f"{where}.weights: {named} knows {checkpoint['num_classes']} classes ({checkpoint['classes'][0]}, …), the "
            f"data have {len(classes)} ({classes[0]}, …); `train: finetune` gives it a new head"
        )

    def fresh(count: int) -> Any:
        return create_model(spec.model, layout=layout, num_classes=count, in_channels=in_channels, **options)

    net = fresh(len(classes))
    state = net.state_dict()
    # What a network has per class is what changes its shape with their number.
    other = fresh(len(classes) + 1).state_dict()
    head = [] if fits else [key for key, value in state.items() if other[key].shape != value.shape]
    given = trained.state_dict()
    flawed = [k for k in state if k not in head and (k not in given or given[k].shape != state[k].shape)]
    if flawed or given.keys() - state.keys():
        names = ", ".join([*flawed, *sorted(given.keys() - state.keys())])
        raise UserError(f"{where}.network: with {spec.network} the weights of {named} do not fit: {names}")
    net.load_state_dict({key: state[key] if key in head else given[key] for key in state})
    said = f"starts from {named} (md5 {md5}, epoch {checkpoint['epoch']})"
    if head:
        said += (
            f" with a new head for {len(classes)} classes in place of {checkpoint['num_classes']}: {', '.join(head)}"
        )
    return Given(net, options, checkpoint["epoch"], md5, said)


def _numbered(classes: list[str]) -> bool:
    """Whether the names were made up here, for want of any."""
    return list(classes) == [f"class {k}" for k in range(len(classes))]
