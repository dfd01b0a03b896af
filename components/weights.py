"""Trained networks by name: a file, a bundle's folder, or a model of the registry."""

import sys
from pathlib import Path

from components.bundle import read_bundle
from model.errors import UserError

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
