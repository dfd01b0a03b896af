"""What is tracked of a pipeline run: one experiment per dataset and protocol, one run per member and ensemble.

Runs are found by what they hold (code, parameters, data), so that the stages of a member share one run, a repeated
stage resumes it, and no id or time has to travel through the files.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.bundle import BundleMember, write_bundle
from components.facts import tell
from components.params import Params
from components.tracked_run import TrackedRun
from components.tracking import DataSeen, Tracker, connect
from components.versions import code_version, content_key
from model.store import Store

CODE = Path(__file__).resolve().parent.parent


def member_key(params: Params, member: str, data_hash: str) -> str:
    """Content key of a member: equal for equal code, parameters and data."""
    return content_key(code_version(), params.for_training(member), params.entry.data.model_dump(), data_hash)


def pipeline_key(params: Params, data_hash: str) -> str:
    """Content key of a pipeline run: equal for equal parameters and data."""
    entry = params.entry.model_dump()
    chosen = params.model_dump(include={"dataset", "protocol", "members", "ensembles", "register_"})
    return content_key(chosen, entry, data_hash)


def run_name(params: Params, member: str) -> str:
    """`{model}/{stream}/s{seed}`; members that differ in options too carry their own name, a grid's their cell's."""
    spec = params.member(member)
    if params.ablation is not None:
        return f"{params.ablation.cell(member).title}/s{spec.seed}"
    name = f"{spec.model}/{spec.stream}/s{spec.seed}"
    return f"{name}/{member}" if spec.network else name


def data_of(params: Params, store: Store) -> DataSeen:
    """The data that a run on `store` sees, as MLflow is told: name, the md5 that DVC gives them, source."""
    return params.dataset, store.data_hash, store.meta["source"]


def pipeline_run(tracker: Tracker, params: Params, store: Store) -> str:
    """The run that holds the members of these parameters and data, found or made."""
    return tracker.parent_run(
        params.experiment,
        *_pipeline(params, store),
        {"dataset": params.dataset, "protocol": params.protocol, "members": ", ".join(params.members)},
        data_of(params, store),
    )


def track_report(params: Params, store: Store, report: Path) -> None:
    """Log the report, its tables and figures with the pipeline run."""
    connect(Path.cwd()).open_parent(params.experiment, *_pipeline(params, store)).log_file(report, "report")


def _pipeline(params: Params, store: Store) -> tuple[str, str]:
    return pipeline_key(params, store.data_hash), f"pipeline/{params.entry.split.name}"


@contextmanager
def member_run(params: Params, member: str, store: Store) -> Iterator[TrackedRun]:
    """The tracked run of a member, under the pipeline run of these parameters and data."""
    tracker = connect(Path.cwd())
    spec = params.member(member)
    tags = {"model": spec.model, "stream": spec.stream, "seed": str(spec.seed), "member": member}
    tags |= {"dataset": params.dataset, "split": params.entry.split.name, "protocol": params.protocol}
    tags["data_hash"] = store.data_hash
    if params.ablation is None:
        parent = pipeline_run(tracker, params, store)
    else:  # children start collapsed on the tracking page, and its charts then show parents only
        parent = None
        tags |= {"ablation": params.ablation.name, "cell": params.ablation.cell(member).title}
    key = member_key(params, member, store.data_hash)
    name, data = run_name(params, member), data_of(params, store)
    watched = params.ablation is None  # else the machine's load would be the first figure that runs are compared by
    with tracker.member_run(params.experiment, name, key, parent, tags, watched, data=data) as run:
        tell(member=member, data_hash=store.data_hash, mlflow_run_id=run.run_id)
        yield run


def log_member_facts(run: TrackedRun, params: Params, member: str, store: Store) -> None:
    """Parameters and environment of a member's run."""
    facts = params.for_training(member)
    if params.ablation is not None:
        # The tracking page compares runs by the parameters in which they differ, the first three by name: these.
        cell = params.ablation.cell(member)
        facts |= {"cell": cell.title, "seed": params.member(member).seed, "set": cell.settings}
        del facts["member"]
    run.log_params(facts)
    run.log_environment(CODE)


def track_evaluation(params: Params, member: str, store: Store, trained: Path, metrics: dict[str, Any]) -> None:
    """Log both checkpoints as models with their scores, and the counted scores as the run's own."""
    with member_run(params, member, store) as run:
        last_step = max(metrics["best"]["epoch"], metrics["last"]["epoch"])
        for which in ("best", "last"):
            with tempfile.TemporaryDirectory() as scratch:
                bundle = member_bundle(Path(scratch) / "bundle", params, member, store, trained / f"{which}.pt")
                figures = flat_metrics(params, metrics[which])
                data, epoch = (params.dataset, store.data_hash), metrics[which]["epoch"]
                tell(**{f"mlflow_model_{which}": run.log_model(which, bundle, figures, data, epoch)})
        run.log_final(flat_metrics(params, metrics[metrics["chosen"]]), step=last_step)


def member_bundle(folder: Path, params: Params, member: str, store: Store, checkpoint: Path) -> Path:
    """A bundle of one member, which predicts from raw joints."""
    return write_bundle(
        folder,
        member,
        [BundleMember(member, checkpoint, 1.0, params.recipe(member).test_clips)],
        store,
        preparation(params),
        lineage(params),
    )


def preparation(params: Params) -> dict[str, Any]:
    """How raw clips became the store, as a bundle keeps it."""
    data = params.entry.data
    found = {"prepare": data.prepare, "dtype": data.dtype, "reader": data.reader, "options": data.options}
    return {**found, "to": data.to} if data.to else found


def lineage(params: Params) -> dict[str, Any]:
    """What a bundle says of where it comes from."""
    return {
        "dataset": params.dataset,
        "split": params.entry.split.name,
        "protocol": params.protocol,
        "code_version": code_version(),
    }


def flat_metrics(params: Params, splits: dict[str, Any]) -> dict[str, float]:
    """{"development": {"top1": …}, "xsub_test": …} as {"dev/top1": …, "test/top1": …, "test/other/top1": …}."""
    main = params.entry.split.test[0]
    names = {"development": "dev", main: "test"}
    return {
        f"{names.get(split, f'test/{split}')}/{figure}": float(value)
        for split, values in splits.items()
        if isinstance(values, dict)
        for figure, value in values.items()
        if isinstance(value, (int, float))
    }
