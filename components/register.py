"""Evaluated members and ensembles → versions in the registry, and perhaps a new champion."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from components.environment import code_commit
from components.files import read_json, write_json
from components.params import Params
from components.registration import Candidate, Gate, MemberEntry
from components.registration import register as register_versions
from components.splits import DEVELOPMENT, Parts, parts_of
from components.storage import dvc_md5
from components.tracked import CODE, data_of, flat_metrics, lineage, member_key, pipeline_run, preparation, run_name
from components.tracking import Tracker, connect
from components.versions import content_key
from model.errors import UserError
from model.store import Store, open_store

# Several cameras film one performance of NTU: S setup C camera P person R repetition A action.
NTU_CAMERA = re.compile(r"(?<=^S\d{3})C\d{3}(?=P\d{3}R\d{3}A\d{3}$)")


def register(params: Params, data: Path, runs: Path, ensembles: Path, out: Path) -> dict[str, Any]:
    """Register each member and the chosen ensemble, and move the alias `champion` if the gate is passed.

    Members are `<dataset>-<split>-<model>-<stream>`, the ensemble is `<dataset>-<split>-ensemble`: one model that
    takes raw joints. The pipeline run gets every member and ensemble with its final figures.

    Args:
        params: the parameters; `register` names ensemble and gate.
        data: folder of the packed store.
        runs: folder with one `<member>` folder per member, each with `train` and `scores`.
        ensembles: folder of the fused tables.
        out: JSON file that says what was registered.

    Raises:
        UserError: something is missing, the gate is a test split, the members are cells of a grid, or the registry
            cannot be reached.
    """
    if params.ablation is not None:
        raise UserError(
            f"register: the members are cells of the grid {params.ablation.name!r}; name the one you want under members"
        )
    store = open_store(data)
    parts = parts_of(store, params)
    tracker = connect(Path.cwd())
    members = {name: read_json(runs / name / "scores" / "metrics.json") for name in params.members}
    fused = read_json(ensembles / "metrics.json")["ensembles"]
    chosen = params.register_.ensemble
    if chosen not in fused:
        raise UserError(f"{ensembles / 'metrics.json'}: has no ensemble {chosen!r}; run `sixstream ensemble` again")
    parent = pipeline_run(tracker, params, store)
    _link(tracker, params, store, parent, members, fused)
    base = f"{params.dataset}-{params.entry.split.name}"
    candidate = Candidate(
        name=chosen,
        registered=f"{base}-ensemble",
        members=[
            MemberEntry(
                name=name,
                registered=f"{base}-{params.member(name).model}-{params.member(name).stream}",
                checkpoint=runs / name / "train" / f"{members[name]['chosen']}.pt",
                weight=weight,
                run_key=member_key(params, name, store.data_hash),
                logged=members[name]["chosen"],
                metrics=flat_metrics(params, members[name][members[name]["chosen"]]),
                test_clips=params.recipe(name).test_clips,
                outputs={part: dvc_md5(runs / name / part) for part in ("train", "scores")},
            )
            for name, weight in params.ensembles[chosen].members.items()
        ],
        metrics=flat_metrics(params, fused[chosen]),
        trained_on=None if started_from_weights(params) else parts.train,
        tested_on=np.concatenate(list(parts.tests.values())),
        preparation=preparation(params),
        tags={key: str(value) for key, value in lineage(params).items()} | {"code_commit": code_commit(CODE)},
    )
    outcome = register_versions(tracker, params.experiment, parent, store, candidate, gate_of(params, store, parts))
    tracker.end_parent(params.experiment, parent)
    write_json(out, outcome)
    print(f"{outcome['uri']}: {outcome['message']}", file=sys.stderr)
    return outcome


def gate_of(params: Params, store: Store, parts: Parts) -> Gate:
    """The clips of the gate named in the parameters. Raises UserError when it is a test split or unknown."""
    name, draws = params.register_.gate, params.register_.draws
    foreign = started_from_weights(params)
    if foreign:
        return Gate(name, None, f"{', '.join(foreign)} started from weights that may have seen the {name} clips")
    if name == DEVELOPMENT:
        positions = parts.development
        reason = f"protocol {params.protocol!r} holds no development split out, on which the two could be compared"
    elif name in parts.tests:
        raise UserError(f"register.gate: {name!r} is a test split; a champion chosen on it would spoil the test")
    elif name not in store.splits:
        raise UserError(f"register.gate: {name!r} is neither {DEVELOPMENT} nor one of {', '.join(store.splits)}")
    else:
        positions, reason = store.splits[name], ""
    if positions is None:
        return Gate(name, None, reason)
    groups = np.array([NTU_CAMERA.sub("", store.ids[position]) for position in positions])
    return Gate(name, positions, reason, groups, draws)


def started_from_weights(params: Params) -> list[str]:
    """Members of the registered ensemble that began elsewhere: which clips their weights have seen is not known."""
    chosen = params.ensembles[params.register_.ensemble].members
    return [name for name in chosen if params.member(name).weights is not None]


def _link(
    tracker: Tracker, params: Params, store: Store, parent: str, members: dict[str, Any], fused: dict[str, Any]
) -> None:
    """Show in the pipeline run the members that DVC did not train again, and every ensemble not registered."""
    data = data_of(params, store)
    for name, metrics in members.items():
        key, figures = member_key(params, name, store.data_hash), flat_metrics(params, metrics[metrics["chosen"]])
        tracker.link_member(params.experiment, parent, key, run_name(params, name), figures, data)
    for name, entry in fused.items():
        if name == params.register_.ensemble:
            continue
        keys = {member: member_key(params, member, store.data_hash) for member in entry["members"]}
        key = content_key(name, entry["members"], keys)
        with tracker.ensemble_run(params.experiment, f"ensemble/{name}", key, parent, data=data) as run:
            run.log_params({"weights": entry["members"]})
            run.log_final(flat_metrics(params, entry))
