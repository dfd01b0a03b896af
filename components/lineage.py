"""What the tracking server knows of a model's origin, as links: model, runs, files, data, code.

A link says what is named and, with a remedy, that it is not there. What lies outside the server (git, DVC) is looked
up by the caller, who knows where to look.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.bundle import read_bundle
from components.servable import fetch_bundle, pages
from components.tracked_run import brief
from components.tracking import Tracker
from model.errors import UserError

UNKNOWN = "unknown"
RETRAIN = "run `sixstream run` again: it is tracked and registered anew"


@dataclass(frozen=True)
class Link:
    """One thing that a model comes from: `what` it is, its `name`, where it was `found`, or the remedy where not.

    `member` is the ensemble's member that it belongs to, empty for the model itself.
    """

    what: str
    name: str
    found: str = ""
    remedy: str = ""
    member: str = ""

    @property
    def state(self) -> str:
        return "missing" if self.remedy else "ok"


@dataclass(frozen=True)
class Outside:
    """Lookups of what the server does not hold; each gives (found, remedy), of which one is empty."""

    commit: Callable[[str], tuple[str, str]]
    data: Callable[[str, str], tuple[str, str]]  # md5 and the path in the workspace


def chain(tracker: Tracker, uri: str, outside: Outside) -> list[Link]:
    """The links of `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `models:/m-…` or `runs:/ID[/…]`, outermost first.

    Raises UserError when there is no such model or run.
    """
    run_id, version = _resolve(tracker.client, uri)
    if version is None:
        return list(_of_run(tracker, run_id, {}, outside, ""))
    return list(_of_version(tracker, version, outside))


def seen_by(tracker: Tracker, md5: str) -> tuple[list[Any], list[Any]]:
    """The registered model versions and the runs that name these data, oldest first."""
    client = tracker.client
    experiments = [entry.experiment_id for entry in client.search_experiments()]
    digests = {md5, md5.removesuffix(".dir"), f"{md5.removesuffix('.dir')}.dir"}
    versions: list[Any] = []
    runs: list[Any] = []
    for digest in sorted(digests):
        versions += pages(client.search_model_versions, f"tags.`data_md5` = '{digest}'")
        runs += pages(client.search_runs, experiments, f"dataset.digest = '{digest[:36]}'")
    return (
        sorted(versions, key=lambda entry: (entry.name, int(entry.version))),
        sorted(runs, key=lambda run: run.info.start_time),
    )


def _resolve(client: Any, uri: str) -> tuple[str, Any]:
    """The run behind a URI, and the registered version if it names one."""
    from mlflow.exceptions import MlflowException

    kind, _, rest = uri.partition(":/")
    name, _, number = rest.partition("/")
    model, _, alias = rest.partition("@")
    try:
        if kind == "runs" and rest:
            return str(client.get_run(name).info.run_id), None
        if kind == "models" and (alias or number):
            version = (
                client.get_model_version_by_alias(model, alias) if alias else client.get_model_version(name, number)
            )
            return str(version.run_id), version
        if kind == "models" and rest.startswith("m-"):
            return str(client.get_logged_model(rest).source_run_id), None
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise UserError(f"{uri}: no such model or run ({brief(error)}); `sixstream zoo` lists the models") from None
    raise UserError(f"{uri}: write it as models:/NAME@ALIAS, models:/NAME/VERSION or runs:/ID")


def _of_version(tracker: Tracker, version: Any, outside: Outside) -> Iterator[Link]:
    uri = f"models:/{version.name}/{version.version}"
    tags = version.tags
    with tempfile.TemporaryDirectory(prefix="sixstream-") as scratch:
        try:
            bundle = read_bundle(fetch_bundle(uri, Path(scratch)))
            aliases = ", ".join(f"@{alias}" for alias in version.aliases)
            yield Link("model", uri, f"{aliases or 'no alias'}; its files have the md5 that it names")
        except UserError as error:
            bundle = None
            yield Link("model", uri, remedy=f"{error}; restore the server's artifacts, or {RETRAIN}")
    if "stage" in tags:
        yield from _of_pipeline(tracker.client, tags)
    members = bundle["members"] if bundle else []
    for member in members:
        if member["version"]:
            yield from _of_member(tracker, member, outside)
    alone = not any(member["version"] for member in members)
    if alone:
        for member in members:
            yield from _files(tags, member, outside)
    yield from _of_run(tracker, version.run_id, tags, outside, "", with_parameters=alone)


def _of_member(tracker: Tracker, member: dict[str, Any], outside: Outside) -> Iterator[Link]:
    name, weight = member["name"], f"weight {member['weight']:g}"
    try:
        _, version = _resolve(tracker.client, member["version"])
    except UserError as error:
        yield Link("member", f"{member['version']}, {weight}", remedy=f"{error}; {RETRAIN}", member=name)
        return
    yield Link("member", f"{member['version']}, {weight}", "registered", member=name)
    yield from _files(version.tags, member, outside)
    yield from _of_run(tracker, version.run_id, {}, outside, name)


def _files(tags: dict[str, str], member: dict[str, Any], outside: Outside) -> Iterator[Link]:
    """Checkpoint and score tables of a member, in the version and under DVC."""
    name = member["name"]
    yield Link("checkpoint", f"{member['md5']}, epoch {member['epoch']}", "in the registered model", member=name)
    for part, what in (("train", "training"), ("scores", "scores")):
        md5 = tags.get(f"{part}_md5")
        if md5:
            place = f"runs/{tags.get('dataset')}/{tags.get('protocol')}/{name}/{part}"
            yield Link(what, f"{md5}, {place}", *outside.data(md5, place), member=name)


def _of_run(
    tracker: Tracker, run_id: str, tags: dict[str, str], outside: Outside, member: str, with_parameters: bool = True
) -> Iterator[Link]:
    """A run, its parameters and code; for the model itself also store and raw data."""
    try:
        run = tracker.client.get_run(run_id)
        gone = "was deleted; `mlflow gc` may not have taken it: restore it in the UI"
        remedy = gone if run.info.lifecycle_stage == "deleted" else ""
    except Exception as error:
        yield Link("run", run_id, remedy=f"{brief(error)}; {RETRAIN}", member=member)
        return
    yield Link("run", f"{run.info.run_name}, {run_id}", "" if remedy else run.info.status.lower(), remedy, member)
    if with_parameters:
        count = len(run.data.params)
        kept = "" if count else f"the run has none: it came out of DVC's cache; {RETRAIN}"
        yield Link("parameters", f"{count} of run {run_id}", "" if kept else "in the run", kept, member)
    commit = run.data.tags.get("mlflow.source.git.commit") or tags.get("code_commit")
    if commit or not member:
        yield Link("code", commit or UNKNOWN, *outside.commit(commit or UNKNOWN), member=member)
    if member:
        return
    if not tags:
        yield from _of_pipeline(tracker.client, {
            "stage": run.data.tags.get("sixstream.stage", ""),
            "pipeline_run": run.data.tags.get("mlflow.parentRunId", ""),
        })  # fmt: skip
    seen = [(entry.dataset.name, entry.dataset.digest) for entry in run.inputs.dataset_inputs]
    if not seen and tags.get("data_md5"):
        seen = [(tags.get("dataset", UNKNOWN), tags["data_md5"])]
    if not seen:
        yield Link("raw data", UNKNOWN, remedy="the weights came from elsewhere, and nothing says what they saw")
    for name, md5 in seen:
        if tags.get("store_md5"):
            store = f"data/packed/{name}"
            yield Link("store", f"{tags['store_md5']}, {store}", *outside.data(tags["store_md5"], store))
        yield Link("raw data", f"{md5}, data/raw/{name}", *outside.data(md5, f"data/raw/{name}"))


def _of_pipeline(client: Any, tags: dict[str, str]) -> Iterator[Link]:
    run_id, stage = tags.get("pipeline_run", ""), tags.get("stage") or "command line"
    if not run_id:
        return
    try:
        run = client.get_run(run_id)
        yield Link("pipeline", f"{run.info.run_name}, run {run_id}, by {stage}", run.info.status.lower())
    except Exception as error:
        yield Link("pipeline", f"run {run_id}, by {stage}", remedy=f"{brief(error)}; {RETRAIN}")
