"""The model zoo: what the registry holds, as a Markdown table with configuration, checkpoint, log and accuracy."""

import tempfile
from pathlib import Path
from typing import Any

from components.bundle import read_bundle
from components.files import write_text
from components.registration import CHAMPION
from components.servable import aliased, fetch_bundle, pages, versions
from components.tracked_run import brief
from components.tracking import ENSEMBLE_TAG, LINK_TAG, MEMBER_TAG, Tracker, connect
from model.errors import UserError

COLUMNS = ("network, stream", "configuration", "top-1", "mean class", "parameters", "MACs", "checkpoint", "log")
MISSING = "-"


def zoo(out: Path = Path("zoo.md")) -> None:
    """Write the model-zoo table: a section per registered ensemble, its members, and every fusion of the same run.

    The version is the champion, or the newest where there is none. Accuracy is that on the main test split.
    MACs are those of one test clip, in the convention of the published tables.

    Args:
        out: the Markdown file.

    Raises:
        UserError: the registry cannot be reached, or holds no ensemble.
    """
    from mlflow.exceptions import MlflowException

    tracker = connect(Path.cwd())
    try:
        names = sorted(model.name for model in pages(tracker.client.search_registered_models))
        chosen = [found for name in names if (found := _version(tracker.client, name)) is not None]
        ensembles = [version for version in chosen if "members" in version.tags]
        if not ensembles:
            raise UserError(f"{tracker.uri}: no ensemble is registered; run `sixstream register` first")
        lines = ["# Model zoo", ""]
        for version in ensembles:
            lines += section(tracker, version)
    except MlflowException as error:
        raise UserError(f"{tracker.uri}: cannot be read ({brief(error)}); start the server and try again") from None
    write_text(out, "\n".join(lines).rstrip() + "\n")
    print(f"{out}: {len(ensembles)} ensembles")


def section(tracker: Tracker, version: Any) -> list[str]:
    """The lines about one registered ensemble."""
    client, tags = tracker.client, version.tags
    own = client.get_run(version.run_id)
    experiment = client.get_experiment(own.info.experiment_id).name
    parent = own.data.tags.get("mlflow.parentRunId")
    beside = _children(client, own.info.experiment_id, parent)
    rows, listed = [], set()
    with tempfile.TemporaryDirectory(prefix="sixstream-") as scratch:
        bundle = fetch_bundle(f"models:/{version.name}/{version.version}", Path(scratch))
        for member in read_bundle(bundle)["members"]:
            name, number = member["version"].removeprefix("models:/").rsplit("/", 1)
            registered = client.get_model_version(name, number)
            run = client.get_run(registered.run_id)
            listed.add(registered.run_id)
            figures = {key.removeprefix("metric."): float(v) for key, v in registered.tags.items() if "/" in key}
            what = f"{member['model']}, {member['stream']}"
            size = _size(bundle / member["checkpoint"])
            rows.append(_row(what, run, figures, *size, f"`{member['version']}`", _log(tracker, registered.run_id)))
    for run in beside:
        original = run.data.tags.get("sixstream.original_run", run.info.run_id)
        alone = MEMBER_TAG in run.data.tags or LINK_TAG in run.data.tags
        if alone and original not in listed and "sixstream.registered_only" not in run.data.tags:
            what = ", ".join(run.info.run_name.split("/"))
            rows.append(_row(what, run, run.data.metrics, MISSING, MISSING, MISSING, _log(tracker, run.info.run_id)))
    for run in beside or [own]:
        if ENSEMBLE_TAG in run.data.tags:
            title = f"**{run.info.run_name.removeprefix('ensemble/')}** ({_weights(run)})"
            uri = f"`models:/{version.name}/{version.version}`" if run.info.run_id == version.run_id else MISSING
            log = _log(tracker, run.info.run_id)
            rows.append(_row(title, run, run.data.metrics, MISSING, MISSING, uri, log))
    return [
        f"## {experiment}, {tags.get('split', MISSING)}",
        "",
        f"Data `{tags.get('data_md5', MISSING)}`, code `{tags.get('code_commit', MISSING)}`.",
        "",
        _line(COLUMNS),
        _line(["---"] * len(COLUMNS)),
        *rows,
        "",
    ]


def _version(client: Any, name: str) -> Any | None:
    known = versions(client, name)
    champion = aliased(client, name, CHAMPION)
    return next((v for v in known if str(v.version) == champion), known[-1] if known else None)


def _children(client: Any, experiment_id: str, parent: str | None) -> list[Any]:
    """The runs under a pipeline run, oldest first."""
    if parent is None:
        return []
    runs = client.search_runs(
        [experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'", order_by=["attributes.start_time ASC"]
    )
    return list(runs)


def _row(what: str, run: Any, figures: Any, parameters: str, macs: str, uri: str, log: str) -> str:
    accuracy = [f"{100 * figures[k]:.2f}" if k in figures else MISSING for k in ("test/top1", "test/mean_class")]
    configuration = run.data.params.get("recipe.released") or MISSING
    return _line([what, configuration, *accuracy, parameters, macs, uri, log])


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _weights(run: Any) -> str:
    """`joint 2, bone 1` from the parameters `weights.<member>` of an ensemble's run."""
    given = [(key.partition(".")[2], value) for key, value in sorted(run.data.params.items()) if "weights." in key]
    return ", ".join(f"{member} {float(weight):g}" for member, weight in given)


def _size(checkpoint: Path) -> tuple[str, str]:
    """Parameters and multiply-accumulates of one test clip, written like published tables."""
    from model.checkpoint import build_network, load_checkpoint
    from model.complexity import clip_complexity

    content = load_checkpoint(checkpoint)
    found = clip_complexity(build_network(content, str(checkpoint)), content["recipe"])
    return f"{found.parameters:,}", f"{found.published / 1e9:.3f} G"


def _log(tracker: Tracker, run_id: str) -> str:
    """A link to the run where there is a server, else its id."""
    if tracker.uri.startswith("http"):
        run = tracker.client.get_run(run_id)
        return f"[run]({tracker.uri.rstrip('/')}/#/experiments/{run.info.experiment_id}/runs/{run_id})"
    return f"run `{run_id}`"
