"""MLflow tracking: runs found by what they hold, resumed and not doubled, never in the way of training.

    tracker = connect(workspace)
    parent = tracker.parent_run("florence3d/larp1-development", key, "florence3d", params)
    with tracker.member_run(experiment, "protogcn/joint/s0", member_key, parent) as run:
        run.log_history(history)

Only rank 0 of a distributed job tracks. MLflow is imported on first use, because it costs seconds.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.journal import Journal, locked
from components.tracked_run import TrackedRun, brief, deliver, watch_machine
from model.errors import UserError

logger = logging.getLogger(__name__)

PIPELINE_TAG = "sixstream.pipeline"
MEMBER_TAG = "sixstream.member"
ENSEMBLE_TAG = "sixstream.ensemble"
LINK_TAG = "sixstream.link"
OWN_RUN = "MLFLOW_RUN_ID"  # variable: the run that Kubeflow's launcher made of this task
DataSeen = tuple[str, str, str]  # name, md5 and source of what a run saw
PENDING = "pending:"  # stands for the id of a parent that the server could not make yet
# Waiting belongs to the journal: MLflow's own seven retries hold a training step for minutes.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
NOISY = (
    "alembic",
    "mlflow.store.db.utils",
    "mlflow.store.model_registry.abstract_store",
)
# A server that is away is told once, by us, and not at each of their tries.
SILENT = ("mlflow.system_metrics.system_metrics_monitor", "urllib3.connectionpool")


def tracking_uri(workspace: Path) -> str:
    """The server named by MLFLOW_TRACKING_URI, else the workspace's own database."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(workspace).resolve() / 'mlflow.db'}"


def connect(workspace: str | Path) -> "Tracker":
    """Set MLflow up for this process and open the workspace's tracking.

    An embedded database is made on first use, by one process at a time. A server is not contacted yet.
    Raises UserError when the embedded database cannot be opened.
    """
    # A task that runs in a scratch folder names the workspace that it belongs to.
    workspace = Path(os.environ.get("SIXSTREAM_WORKSPACE") or workspace).resolve()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    for names, level in ((NOISY, logging.WARNING), (SILENT, logging.CRITICAL)):
        for name in names:
            logging.getLogger(name).setLevel(level)
    uri = tracking_uri(workspace)
    given = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    # MLflow writes it into the environment, where the next workspace would take it for the user's choice.
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if given is not None:
        os.environ["MLFLOW_TRACKING_URI"] = given
    if not uri.startswith("sqlite:"):
        return Tracker(workspace, uri, mlflow.MlflowClient())
    # The client makes the tables when it opens a new file, and two processes at that at once spoil it.
    with locked(workspace / ".work" / "tracking.lock"):
        try:
            _make_database(uri)
            return Tracker(workspace, uri, mlflow.MlflowClient())
        except Exception as error:
            raise UserError(
                f"{uri}: the tracking database cannot be opened ({brief(error)}); "
                "restore or remove the file, or set MLFLOW_TRACKING_URI"
            ) from None


def _make_database(uri: str) -> None:
    """Make the tables aside and rename: a kill among MLflow's migrations would leave a file it cannot open again."""
    import mlflow

    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or "?" in uri or path.exists():
        return
    aside = path.with_name(f".{path.name}.unfinished")
    for left in (aside, aside.with_name(f"{aside.name}-journal")):
        left.unlink(missing_ok=True)
    mlflow.MlflowClient(f"sqlite:///{aside}")
    os.replace(aside, path)


@dataclass
class Tracker:
    """The tracking of one workspace; `client` is MLflow's own."""

    workspace: Path
    uri: str
    client: Any
    away_until: float = 0.0  # time.monotonic() before which a server that was away is not asked again
    told: bool = False  # whether its being away was told

    def experiment_id(self, name: str) -> str:
        """The experiment `name`, made if it is not there; that of the task's own run where Kubeflow has made one."""
        own = os.environ.get(OWN_RUN)
        if own:
            return str(self.client.get_run(own).info.experiment_id)
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        place = self.workspace / "mlartifacts" / name if self.uri.startswith("sqlite:") else None
        tags = {"mlflow.experimentKind": "custom_model_development"}
        try:
            made = self.client.create_experiment(name, place.as_uri() if place else None, tags)
        except Exception:
            found = self.client.get_experiment_by_name(name)  # another process was quicker
            if found is None:
                raise
            made = found.experiment_id
        return str(made)

    def parent_run(
        self, experiment: str, key: str, name: str, params: dict[str, Any], data: DataSeen | None = None
    ) -> str:
        """The run that holds one pipeline run's members, found or made by `key`.

        `key` is a hash of parameters and data, `data` are logged as the run's dataset. With MLFLOW_RUN_ID set none
        is made: Kubeflow has made a run of the task and, above it, one of the pipeline. When the server is away the
        answer is a placeholder that `member_run` understands.
        """
        own = os.environ.get(OWN_RUN)
        if own:
            try:
                return str(self.client.get_run(own).data.tags.get("mlflow.parentRunId") or own)
            except Exception as error:
                logger.warning("tracking: the run of the pipeline is not known (%s)", brief(error))
                return own
        run = self._tracked(experiment, PIPELINE_TAG, key, name, None, {}, data)
        run.log_params(params)
        return run.run_id or f"{PENDING}{key}"

    def open_parent(self, experiment: str, key: str, name: str) -> TrackedRun:
        """The run that `parent_run` names, to log what belongs to no member; its status is left as it is."""
        return self._run(experiment, PIPELINE_TAG, key, name, None, {})

    def end_parent(self, experiment: str, parent: str, status: str = "FINISHED") -> None:
        """Mark a pipeline run as over, unless Kubeflow's launcher owns it."""
        if os.environ.get(OWN_RUN):
            return
        try:
            run_id = self.resolve_parent(experiment, parent)
            if run_id is not None:
                self.client.set_terminated(run_id, status)
        except Exception as error:
            if not self.told:
                logger.warning("tracking: the pipeline run is marked as over later (%s)", brief(error))
            # A run that could not be made yet has a journal, whose header says what it is.
            header = {} if parent.startswith(PENDING) else {"run_id": parent, "tags": {}}
            self.journal(parent.removeprefix(PENDING)).append(header, "status", {"status": status})

    @contextmanager
    def member_run(
        self,
        experiment: str,
        name: str,
        key: str,
        parent: str | None = None,
        tags: dict[str, str] | None = None,
        system_metrics: bool = True,
        data: DataSeen | None = None,
    ) -> Iterator[TrackedRun]:
        """The run of a member with the content `key`, found or made.

        With MLFLOW_RUN_ID set it is the run that Kubeflow made of the task; a later task of the same member (its
        evaluation, a retry) goes on with the first one's.
        It ends as FINISHED, as FAILED on an exception, as KILLED on an interrupt.
        """
        run = self._tracked(experiment, MEMBER_TAG, key, name, parent, tags or {}, data)
        with self._ended(run, system_metrics):
            yield run

    @contextmanager
    def ensemble_run(
        self,
        experiment: str,
        name: str,
        key: str,
        parent: str | None,
        tags: dict[str, str] | None = None,
        data: DataSeen | None = None,
    ) -> Iterator[TrackedRun]:
        """The run of an ensemble, found or made; always a run of its own, since a process fuses several."""
        run = self._tracked(experiment, ENSEMBLE_TAG, key, name, parent, tags or {}, data)
        with self._ended(run, system_metrics=False):
            yield run

    @contextmanager
    def _ended(self, run: TrackedRun, system_metrics: bool) -> Iterator[None]:
        monitor = watch_machine(run) if system_metrics else None
        status = "FAILED"
        try:
            yield
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        finally:
            if monitor is not None:
                monitor.finish()
            run.close(status)

    def link_member(
        self,
        experiment: str,
        parent: str,
        key: str,
        name: str,
        metrics: dict[str, float],
        data: DataSeen | None = None,
    ) -> str | None:
        """Show a member that this pipeline run did not train, with its final metrics, under `parent`.

        A member that was trained under this very parent is there already. One trained under another parent,
        or in another workspace, is shown by a small run that names the original. Returns the id of the run.
        """
        try:
            parent = self.resolve_parent(experiment, parent) or parent
            original = self.find(experiment, MEMBER_TAG, key)
        except Exception as error:
            logger.warning("tracking: %s is not linked to its pipeline run (%s)", name, brief(error))
            return None
        if original is not None and original.data.tags.get("mlflow.parentRunId") == parent:
            return str(original.info.run_id)
        tags = {"sixstream.original_run": original.info.run_id if original else "unknown"}
        run = self._tracked(experiment, LINK_TAG, f"{parent.removeprefix(PENDING)}-{key}", name, parent, tags, data)
        run.log_final(metrics)
        run.close("FINISHED")
        return run.run_id

    def describe(self, experiment: str, text: str) -> None:
        """Show Markdown as the description of an experiment."""
        try:
            self.client.set_experiment_tag(self.experiment_id(experiment), "mlflow.note.content", text)
        except Exception as error:
            logger.warning("tracking: %s is not described (%s)", experiment, brief(error))

    def find(self, experiment: str, tag: str, key: str) -> Any | None:
        """The oldest run whose tag has this value."""
        found = self.client.search_runs(
            [self.experiment_id(experiment)],
            f"tags.`{tag}` = '{key}'",
            order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
            max_results=1,
        )
        return found[0] if found else None

    def resolve_parent(self, experiment: str, parent: str | None) -> str | None:
        """The run id of a parent that may still be a placeholder."""
        if parent is None or not parent.startswith(PENDING):
            return parent
        key = parent.removeprefix(PENDING)
        journal = self.journal(key)
        if journal.pending:
            deliver(self, journal)
        found = self.find(experiment, PIPELINE_TAG, key)
        return found.info.run_id if found else None

    def find_or_make(
        self, experiment: str, tag: str, key: str, name: str, parent: str | None, tags: dict[str, str]
    ) -> tuple[str, bool]:
        """The id of the run with this key, and whether it was made now."""
        parent = self.resolve_parent(experiment, parent)
        with locked(self.workspace / ".work" / "tracking.lock"):
            found = self.find(experiment, tag, key)
            if found is not None:
                return str(found.info.run_id), False
            labels = {**tags, tag: key} | ({"mlflow.parentRunId": parent} if parent else {})
            made = self.client.create_run(self.experiment_id(experiment), tags=labels, run_name=name)
            run_id = made.info.run_id
            # Another machine does not see this lock: the older of two twins stays.
            oldest = self.find(experiment, tag, key)
            if oldest is not None and oldest.info.run_id != run_id:
                self.client.delete_run(run_id)
                return str(oldest.info.run_id), False
        return str(run_id), True

    def journal(self, key: str) -> Journal:
        return Journal(self.workspace / ".work" / "tracking" / f"{key}.jsonl")

    def _tracked(
        self,
        experiment: str,
        tag: str,
        key: str,
        name: str,
        parent: str | None,
        tags: dict[str, str],
        data: DataSeen | None = None,
    ) -> TrackedRun:
        run = self._run(experiment, tag, key, name, parent, tags)
        run.send("status", status="RUNNING")
        if data is not None:
            run.log_dataset(*data)
        return run

    def _run(
        self, experiment: str, tag: str, key: str, name: str, parent: str | None, tags: dict[str, str]
    ) -> TrackedRun:
        header: dict[str, Any] = {"experiment": experiment, "tag": tag, "key": key, "name": name}
        header |= {"parent": parent, "tags": tags}
        if tag in (MEMBER_TAG, PIPELINE_TAG) and os.environ.get(OWN_RUN):
            header["run_id"] = os.environ[OWN_RUN]
        return TrackedRun(self, header)


def sync(workspace: Path = Path()) -> dict[str, int]:
    """Deliver everything that waits in the workspace, and say how much: key of the run -> lines delivered.

    Args:
        workspace: folder in which the work was done.

    Raises:
        UserError: the server still cannot be reached; what was not delivered stays.
    """
    tracker = connect(workspace)
    delivered = {}
    for path in sorted((tracker.workspace / ".work" / "tracking").glob("*.jsonl")):
        try:
            delivered[path.stem] = deliver(tracker, Journal(path))
        except Exception as error:
            raise UserError(
                f"{tracker.uri}: cannot be reached ({brief(error)}); {path} waits: start the server and sync again"
            ) from None
    print(f"{tracker.uri}: {sum(delivered.values())} lines of {len(delivered)} runs delivered", file=sys.stderr)
    return delivered
