"""A scratch workspace: the same graph and code on another dataset, the repository's own files left alone."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from components import assignments
from components.files import read_json, write_text
from components.params import parse_params
from model.errors import UserError
from pipeline.catalogue import expand

ROOT = Path(__file__).resolve().parent.parent
CARRIED = ("model", "components", "pipeline/recipes", "pipeline/unsupervised", "dvc.yaml", ".dvcignore")


def workspace(
    dataset: str,
    split: str = "",
    protocol: str = "",
    only: str = "",
    set: list[str] | None = None,
    folder: Path | None = None,
    jobs: int = 1,
) -> int:
    """Run the pipeline on the annotation pickle and JSON of a dataset, found in the folder SIXSTREAM_DATA.

    Args:
        dataset: entry of `datasets` in params.yaml; the files are <dataset>.pkl and <dataset>.json.
        split: split to run instead of the entry's own, for instance larp1.
        protocol: development, last or published instead of the one in params.yaml.
        only: members to run, comma separated; MODEL-STREAM-sSEED makes one that is not listed (default: all).
        set: parameters of the entry to change, such as recipe.epochs=40 or recipe.network.agcn.base_channels=32.
        folder: the workspace (default: scratch/<dataset>-<split>).
        jobs: members trained side by side.

    Raises:
        UserError: no such data, split or member.
    """
    source = Path(os.environ.get("SIXSTREAM_DATA") or ".")
    files = [source / f"{dataset}.pkl", source / f"{dataset}.json"]
    for path in files:
        if not path.is_file():
            raise UserError(f"{path}: not there; set SIXSTREAM_DATA to the folder with {dataset}.pkl and .json")
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["dataset"] = dataset
    if protocol:
        content["protocol"] = protocol
    if split:
        content.setdefault("datasets", {}).setdefault(dataset, {})["split"] = split_named(files[1], split)
    for assignment in set or []:
        assign(content["datasets"].get(dataset, {}), assignment)
    if only:
        content = keep_members(content, only.split(","))
    where = f"params.yaml for {dataset}"
    params = parse_params(expand(content, where), where)
    folder = (folder or ROOT / "scratch" / f"{dataset}-{params.entry.split.name}").resolve()
    fill_workspace(folder, content)
    raw = folder / "data" / "raw" / dataset
    raw.mkdir(parents=True, exist_ok=True)
    for path in files:
        if not (raw / path.name).exists():
            shutil.copyfile(path, raw / path.name)
    return run_in(folder, jobs)


def fill_workspace(folder: Path, content: dict[str, Any]) -> None:
    """Put the graph, the code that it depends on and the parameters into `folder`, a DVC repository of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    content = compared(content)
    for name in CARRIED:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copyfile(ROOT / name, folder / name)
    if not (folder / ".dvc").is_dir():
        subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet", "--no-scm"], cwd=folder, check=True)
    write_text(folder / "params.yaml", yaml.safe_dump(content, sort_keys=False))
    print(f"workspace: {folder}", file=sys.stderr)


def run_in(folder: Path, jobs: int, *more: str) -> int:
    """`sixstream run` in a workspace, with this checkout's code; `more` are its further arguments."""
    command = [sys.executable, "-m", "pipeline.cli", "run", "--jobs", str(jobs), *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment).returncode


def split_named(about: Path, name: str) -> dict[str, Any]:
    """The split `name`: its training part and every part that tests it (`larp1`: larp1_train, larp1_test)."""
    known = list(read_json(about).get("splits", {}))
    tests = [part for part in known if part.startswith((f"{name}_test", f"{name}_val"))]
    if f"{name}_train" not in known or not tests:
        raise UserError(f"{about}: no split {name!r}; it has {', '.join(known)}")
    return {"name": name, "train": f"{name}_train", "test": tests}


def assign(entry: dict[str, Any], assignment: str) -> None:
    """Set one parameter of a dataset's entry from `a.b.c=VALUE`; a recipe given by its name becomes one to change."""
    if assignment.startswith("recipe.") and isinstance(entry.get("recipe"), str):
        entry["recipe"] = {"name": entry["recipe"]}
    assignments.assign(entry, assignment, "--set")


def keep_members(content: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Only the members `names`, the ensembles that they fill (else their plain sum), the largest to be registered."""
    members = {name: content["members"].get(name) or member_named(name, content["members"]) for name in names}
    ensembles = {n: e for n, e in content["ensembles"].items() if set(e["members"]) <= set(names)}
    if not ensembles:
        ensembles = {"all": {"members": dict.fromkeys(names, 1)}}
    largest = max(ensembles, key=lambda name: len(ensembles[name]["members"]))
    register = {**content["register"], "ensemble": largest}
    return compared({**content, "members": members, "ensembles": ensembles, "register": register})


def compared(content: dict[str, Any]) -> dict[str, Any]:
    """Parameters whose section `report` names only what they have; DVC wants the section to be there."""
    kept = {*content["members"], *content.get("ensembles", {})}
    named = {"baseline": "", "ranked_by": "", **content.get("report", {})}
    return {**content, "report": {key: name if name in kept else "" for key, name in named.items()}}


def member_named(name: str, known: Iterable[str]) -> dict[str, Any]:
    """The member that a name such as `stgcn-bone-s1` describes."""
    match = re.fullmatch(r"([a-z0-9]+)-([a-z_]+)-s(\d+)", name)
    if match is None:
        raise UserError(f"--only {name}: no such member; there are {', '.join(known)}, or write MODEL-STREAM-sSEED")
    return {"model": match[1], "stream": match[2], "seed": int(match[3])}
