"""The registry: members and their ensemble as versions, and the gate that moves the alias `champion`.

A version is what its content says: the same members, weights and preparation are registered once. The ensemble is one
model that takes raw joints; its tags name the exact versions of its members.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from components.bundle import BundleMember, bundle_key, load_bundle, write_bundle
from components.delivery import Delivery
from components.environment import orchestrator
from components.servable import aliased, fetch_bundle, log_bundle, register_model
from components.storage import dvc_md5
from components.tracked_run import brief
from components.tracking import MEMBER_TAG, DataSeen, Tracker
from model.errors import UserError
from model.metrics import paired_bootstrap
from model.store import Store

CHAMPION, PREVIOUS = "champion", "previous"
IMPORTED, IMPORT_TAG = "imported", "sixstream.import"


@dataclass(frozen=True)
class MemberEntry:
    """A member to register: the checkpoint that counts, and the tracked run it belongs to.

    `registered` is the name in the registry, `run_key` the content key of its run, `logged` the name of the logged
    model (best or last), `metrics` flat figures such as test/top1, `outputs` the md5 that DVC gives the folders of
    training and scores.
    """

    name: str
    registered: str
    checkpoint: Path
    weight: float
    run_key: str
    logged: str
    metrics: Mapping[str, float]
    test_clips: int | None = None
    outputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Gate:
    """The clips on which a champion must be beaten. Without `positions`, `reason` says why there are none.

    `groups` (n,) names what is independent, such as the performance that several cameras filmed.
    """

    split: str
    positions: np.ndarray | None
    reason: str = ""
    groups: np.ndarray | None = None
    draws: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class Candidate:
    """An ensemble to register as one model, and what is said of it.

    `trained_on` (None: not known) and `tested_on` are positions in the store; `tags` plain facts (split, protocol,
    code commit).
    """

    name: str
    registered: str
    members: Sequence[MemberEntry]
    metrics: Mapping[str, float]
    trained_on: np.ndarray | None
    tested_on: np.ndarray
    preparation: Mapping[str, Any]
    tags: Mapping[str, str]


def register(
    tracker: Tracker, experiment: str, parent: str | None, store: Store, candidate: Candidate, gate: Gate
) -> dict[str, Any]:
    """Register every member and their ensemble, and let the ensemble challenge the champion.

    Returns plain values without times: {"members": {name: "models:/…/version"}, "ensemble", "version", "uri",
    "new", "champion", "gate", "message"}. Raises UserError when the gate is not apart from training and test
    clips, or when the registry cannot be reached.
    """
    from mlflow.exceptions import MlflowException

    _check_gate(store, candidate, gate)
    try:
        return _register(tracker, experiment, parent, store, candidate, gate)
    except MlflowException as error:
        raise UserError(f"{tracker.uri}: not registered ({brief(error)}); start the server and try again") from None


def register_import(tracker: Tracker, name: str, bundle: Path, tags: dict[str, str]) -> str:
    """Register a bundle of one network that was trained elsewhere as a version of `name`; its URI.

    The run it stands under is in the experiment `imported`. Raises UserError when the registry cannot be reached.
    """
    from mlflow.exceptions import MlflowException

    key = bundle_key(bundle)
    try:
        run_id, _ = tracker.find_or_make(IMPORTED, IMPORT_TAG, key, name, None, tags)
        model_id, _ = log_bundle(tracker.client, run_id, IMPORTED, bundle)
        tracker.client.set_terminated(run_id)
        version, _ = register_model(tracker.client, name, model_id, key, tags)
    except MlflowException as error:
        raise UserError(f"{tracker.uri}: not registered ({brief(error)}); start the server and try again") from None
    return f"models:/{name}/{version}"


def _register(
    tracker: Tracker, experiment: str, parent: str | None, store: Store, candidate: Candidate, gate: Gate
) -> dict[str, Any]:
    facts = {**candidate.tags, "data_md5": store.data_hash}
    made_by = {"store_md5": dvc_md5(store.folder), "stage": orchestrator(), "pipeline_run": parent or ""}
    with tempfile.TemporaryDirectory(prefix="sixstream-") as scratch:
        versions = {
            member.name: _register_member(
                tracker, experiment, parent, store, candidate, member, facts, made_by, Path(scratch)
            )
            for member in candidate.members
        }
        bundle = write_bundle(
            Path(scratch) / "ensemble",
            candidate.name,
            [_in_bundle(member, versions[member.name]) for member in candidate.members],
            store,
            candidate.preparation,
            facts,
            None if candidate.trained_on is None else [store.ids[position] for position in candidate.trained_on],
        )
        key = bundle_key(bundle)
        weights = {member.name: member.weight for member in candidate.members}
        name, told = f"ensemble/{candidate.name}", dict(candidate.tags)
        with tracker.ensemble_run(experiment, name, key, parent, told, _data(candidate, store)) as run:
            run.log_params({"members": versions, "weights": weights})
            logged = run.log_model("ensemble", bundle, dict(candidate.metrics))
            run.log_final(dict(candidate.metrics))
        if logged is None:
            raise UserError(f"{tracker.uri}: cannot be reached, nothing is registered; start the server, try again")
        tags = {
            **facts,
            **made_by,
            "members": json.dumps(versions, sort_keys=True),
            "weights": json.dumps(weights, sort_keys=True),
            **_metric_tags(candidate.metrics),
        }
        version, new = register_model(tracker.client, candidate.registered, logged.removeprefix("models:/"), key, tags)
        outcome = _challenge(tracker, store, candidate, gate, version, bundle, Path(scratch))
    return {
        "members": versions,
        "weights": weights,
        "ensemble": candidate.registered,
        "version": version,
        "uri": f"models:/{candidate.registered}/{version}",
        "new": new,
        **outcome,
    }


def _register_member(
    tracker: Tracker,
    experiment: str,
    parent: str | None,
    store: Store,
    candidate: Candidate,
    member: MemberEntry,
    facts: dict[str, str],
    made_by: dict[str, str],
    scratch: Path,
) -> str:
    """Register a member's checkpoint, logged in its own run; the URI of the version."""
    alone = replace(member, weight=1.0)
    bundle = write_bundle(
        scratch / "members" / member.name, member.name, [_in_bundle(alone)], store, candidate.preparation, facts
    )
    run = tracker.find(experiment, MEMBER_TAG, member.run_key)
    if run is None:
        # The member was trained elsewhere and came out of DVC's cache: its model still needs a run to stand under.
        run_id, _ = tracker.find_or_make(
            experiment, MEMBER_TAG, member.run_key, member.name, parent, {"sixstream.registered_only": "true"}
        )
        Delivery(tracker.client, run_id, fresh=True).dataset(*_data(candidate, store), "training")
        tracker.client.set_terminated(run_id)
    else:
        run_id = run.info.run_id
    model_id, _ = log_bundle(tracker.client, run_id, member.logged, bundle)
    outputs = {f"{part}_md5": md5 for part, md5 in member.outputs.items()}
    tags = {**facts, **made_by, **outputs, **_metric_tags(member.metrics)}
    version, _ = register_model(tracker.client, member.registered, model_id, bundle_key(bundle), tags)
    return f"models:/{member.registered}/{version}"


def _challenge(
    tracker: Tracker,
    store: Store,
    candidate: Candidate,
    gate: Gate,
    version: str,
    bundle: Path,
    scratch: Path,
) -> dict[str, Any]:
    """Decide whether `version` becomes the champion, and move the aliases if so."""
    client, name = tracker.client, candidate.registered
    champion = aliased(client, name, CHAMPION)
    if champion is None:
        client.set_registered_model_alias(name, CHAMPION, version)
        return _outcome(version, "none", f"version {version} is the champion: there was none to beat")
    if champion == version:
        return _outcome(version, "none", f"version {version} is the champion already")
    stays = f"version {champion} stays the champion, version {version} is registered beside it: "
    if gate.positions is None or not len(gate.positions):
        return _outcome(champion, "none", stays + (gate.reason or f"there is no {gate.split} split to gate on"))
    try:
        rival = load_bundle(fetch_bundle(f"models:/{name}/{champion}", scratch / "champion"))
    except UserError as error:
        return _outcome(champion, gate.split, f"{stays}it cannot be re-scored ({error})")
    ids = [store.ids[position] for position in gate.positions]
    if rival.classes != list(store.classes):
        return _outcome(champion, gate.split, stays + "it knows other classes, so the two cannot be compared")
    if _prepared(rival.spec["preparation"]) != _prepared(candidate.preparation):
        return _outcome(champion, gate.split, stays + "its data were prepared otherwise, so it cannot be re-scored")
    seen = rival.seen(ids)
    if seen != 0:
        told = "does not say what it was trained on" if seen is None else f"was trained on {seen} of the gate's clips"
        return _outcome(champion, gate.split, stays + f"the champion {told}, so the two cannot be compared")
    theirs = rival.score(store, gate.positions, gate.split)
    own = load_bundle(bundle).score(store, gate.positions, gate.split)
    gain = paired_bootstrap(own.labels, theirs.scores, own.scores, seed=gate.seed, draws=gate.draws, groups=gate.groups)
    figures = f"top-1 gain on {len(ids)} {gate.split} clips {_percent(gain)}"
    if gain["low"] > 0:
        client.set_registered_model_alias(name, PREVIOUS, champion)
        client.set_registered_model_alias(name, CHAMPION, version)
        message = f"version {version} is the champion, version {champion} is kept as previous: {figures}"
        return _outcome(version, gate.split, message, gain, previous=champion)
    return _outcome(champion, gate.split, f"{stays}{figures}, not above zero for certain", gain)


def _outcome(
    champion: str, split: str, message: str, gain: dict[str, float] | None = None, previous: str | None = None
) -> dict[str, Any]:
    gate = {"split": split, **(gain or {})}
    return {"champion": champion, "previous": previous, "gate": gate, "message": message}


def _check_gate(store: Store, candidate: Candidate, gate: Gate) -> None:
    if gate.positions is None:
        return
    for what, positions in (("training", candidate.trained_on), ("test", candidate.tested_on)):
        shared = np.intersect1d(gate.positions, [] if positions is None else positions)
        if len(shared):
            raise UserError(
                f"register.gate: {len(shared)} clips of {gate.split!r} are {what} clips, for instance "
                f"{store.ids[shared[0]]!r}; gate on a split apart from both"
            )


def _in_bundle(member: MemberEntry, version: str | None = None) -> BundleMember:
    return BundleMember(member.name, member.checkpoint, member.weight, member.test_clips, version)


def _prepared(preparation: Mapping[str, Any]) -> tuple[Any, ...]:
    """What of the preparation decides the numbers in a store."""
    return preparation.get("prepare", []), preparation.get("dtype", "float32"), preparation.get("options")


def _data(candidate: Candidate, store: Store) -> DataSeen:
    return candidate.tags.get("dataset", "data"), store.data_hash, store.meta["source"]


def _metric_tags(metrics: Mapping[str, float]) -> dict[str, str]:
    return {f"metric.{name}": f"{value:.6f}" for name, value in metrics.items()}


def _percent(gain: dict[str, float]) -> str:
    return f"{100 * gain['gain']:+.1f} points (95 %: {100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"
