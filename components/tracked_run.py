"""One tracked run. What the server cannot take waits in a journal, so that training never stops for it."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from components.delivery import OPERATIONS, Delivery, Point, flatten, refused
from components.environment import environment
from components.journal import Journal

if TYPE_CHECKING:
    from components.tracking import Tracker

logger = logging.getLogger(__name__)

RETRY_SECONDS = 60.0
SYSTEM_METRICS_SECONDS = 5.0
PATHS = {"path", "bundle"}  # what of an operation's payload lies on disk


@dataclass
class TrackedRun:
    """One run. What the server cannot take now waits in the journal; nothing here raises for its sake."""

    tracker: "Tracker"
    header: dict[str, Any]
    _delivery: Delivery | None = None

    @property
    def run_id(self) -> str | None:
        """MLflow's run id, None while the server has not been reached."""
        return self._delivery.run_id if self._delivery else None

    @property
    def resumed(self) -> bool:
        return self._delivery is not None and not self._delivery.fresh

    def log_params(self, params: dict[str, Any]) -> None:
        """Log nested parameters as `a.b.c`."""
        self.send("params", values=flatten(params))

    def log_metrics(self, metrics: dict[str, Any], step: int) -> None:
        """Log figures of an epoch (`epoch` itself is the step); one that the run already has is left as it is."""
        values = {key: value for key, value in metrics.items() if key != "epoch"}
        self.send("metrics", points=_points(values, step, final=False))

    def log_final(self, metrics: dict[str, Any], step: int = 0) -> None:
        """Log final figures (a test score): they replace different ones at the same step."""
        self.send("metrics", points=_points(metrics, step, final=True))

    def log_history(self, history: Iterable[dict[str, Any]]) -> None:
        """Log a list of epochs; the key `epoch` is the step, and only new steps are added."""
        points: list[Point] = []
        for number, line in enumerate(history):
            values = {key: value for key, value in line.items() if key != "epoch"}
            points += _points(values, int(line.get("epoch", number)), final=False)
        self.send("metrics", points=points)

    def log_tags(self, tags: dict[str, Any]) -> None:
        self.send("tags", values={key: str(value) for key, value in tags.items()})

    def log_text(self, name: str, content: str) -> None:
        """Log text as the artifact `name`."""
        self.send("text", name=name, content=content)

    def log_file(self, path: str | Path, folder: str | None = None) -> None:
        """Log a file, or all of a folder, below the artifact folder `folder`."""
        self.send("file", path=str(Path(path).resolve()), folder=folder)

    def log_dataset(self, name: str, digest: str, source: str, context: str = "training") -> None:
        """Log which data the run saw. `digest` is the data hash, shortened to MLflow's 36 characters."""
        self.send("dataset", name=name, digest=digest[:36], source=source, context=context)

    def log_environment(self, root: str | Path) -> None:
        """Log the commit of the code at `root`, the platform and every installed package."""
        tags, packages = environment(Path(root))
        self.log_tags(tags)
        self.log_text("environment/packages.txt", packages)

    def log_model(
        self,
        name: str,
        bundle: str | Path,
        metrics: dict[str, Any] | None = None,
        dataset: tuple[str, str] | None = None,
        step: int = 0,
    ) -> str | None:
        """Log a bundle folder as a logged model linked to its metrics.

        `step` is the epoch of the checkpoint, `dataset` the (name, digest) that the metrics were measured on.
        Logging the same bundle again gives the same model. Metrics of a model are points of the run as well:
        log the run's own final figures after its models, at the last step. Returns the model's URI, None
        while the server is away.
        """
        points = _points(metrics or {}, step, final=True)
        pair = (dataset[0], dataset[1][:36]) if dataset else None
        bundle = str(Path(bundle).resolve())
        uri = self.send("model", name=name, bundle=bundle, points=points, dataset=pair, step=step)
        return str(uri) if uri else None

    def close(self, status: str) -> None:
        """End the run, after one more try to deliver what waits."""
        self.tracker.away_until = 0.0
        self.send("status", status=status)

    def send(self, operation: str, **payload: Any) -> Any:
        """Deliver one operation, after those that wait; or let it wait as well."""
        journal = self.tracker.journal(self.header["key"])
        if time.monotonic() >= self.tracker.away_until:
            try:
                if journal.pending:
                    deliver(self.tracker, journal)
                    self._delivery = None
                return OPERATIONS[operation](self._open(), **payload)
            except Exception as error:
                if refused(error):
                    logger.warning("tracking: refused, not logged: %s (%s)", operation, brief(error))
                    return None
                self.tracker.away_until = time.monotonic() + RETRY_SECONDS
                self._warn(error)
        for name in PATHS & payload.keys():
            if Path(payload[name]).exists():
                payload[name] = str(journal.copy_of(Path(payload[name])))
        journal.append(self.header, operation, payload)
        return None

    def _open(self) -> Delivery:
        if self._delivery is None:
            self._delivery = open_run(self.tracker, self.header)
        return self._delivery

    def _warn(self, error: Exception) -> None:
        if not self.tracker.told:
            self.tracker.told = True
            logger.warning(
                "tracking: %s cannot be reached (%s); work goes on, and what is logged waits in %s. It is "
                "delivered once the server is back, at the latest by `sixstream tracking sync`",
                self.tracker.uri, brief(error), self.tracker.journal(self.header["key"]).path.parent,
            )  # fmt: skip


@contextmanager
def logged_aside(run: TrackedRun | None) -> Iterator[Callable[[int, dict[str, float]], None] | None]:
    """Yields a function that logs the figures of an epoch in a thread, so that a training waits for no server.

    None without a run. At the end it is waited for, and meanwhile nothing else may log to the run, or figures are
    doubled; those that a killed process had not logged are in the training's own history.
    """
    if run is None:
        yield None
        return
    waiting: SimpleQueue[tuple[int, dict[str, float]] | None] = SimpleQueue()

    def work() -> None:
        while (item := waiting.get()) is not None:
            run.log_metrics(item[1], item[0])

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield lambda epoch, figures: waiting.put((epoch, figures))
    finally:
        waiting.put(None)
        thread.join()


def open_run(tracker: "Tracker", header: dict[str, Any]) -> Delivery:
    """The run that a header describes, found or made."""
    if "tag" not in header:  # of a run that exists, whatever it is: a pipeline's
        return Delivery(tracker.client, header["run_id"], fresh=False)
    if "run_id" in header:
        first = tracker.find(header["experiment"], header["tag"], header["key"])
        if first is not None and first.info.run_id != header["run_id"]:  # an earlier task of the same member has one
            own = Delivery(tracker.client, header["run_id"], fresh=False)
            own.tags({"sixstream.original_run": first.info.run_id})
            return Delivery(tracker.client, first.info.run_id, fresh=False)
        delivery = Delivery(tracker.client, header["run_id"], fresh=False)
        delivery.tags({**header["tags"], header["tag"]: header["key"]})
        return delivery
    described = (header[name] for name in ("experiment", "tag", "key", "name", "parent", "tags"))
    return Delivery(tracker.client, *tracker.find_or_make(*described))


def deliver(tracker: "Tracker", journal: Journal) -> int:
    """Deliver the lines of one journal in order; how many. What fails stays, and the failure is raised."""
    with journal.held():
        lines = journal.lines()
        if not lines:
            journal.keep([])
            return 0
        delivery = open_run(tracker, lines[0]["payload"])
        done = 1
        try:
            for line in lines[1:]:
                try:
                    OPERATIONS[line["operation"]](delivery, **line["payload"])
                except Exception as error:
                    if not refused(error):
                        raise
                    logger.warning("tracking: refused, not logged: %s (%s)", line["operation"], brief(error))
                done += 1
        finally:
            journal.keep(lines[done:])
    return done - 1


def watch_machine(run: TrackedRun) -> Any | None:
    """MLflow's thread for processor, memory and GPU load, where the server can be reached."""
    if run.run_id is None:
        return None
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(run.run_id, SYSTEM_METRICS_SECONDS, resume_logging=run.resumed)
        monitor.start()
    except Exception as error:
        logger.warning("tracking: no system metrics (%s)", brief(error))
        return None
    return monitor


def _points(metrics: dict[str, Any], step: int, final: bool) -> list[Point]:
    """The numbers among `metrics` as points in time; what was not measured (None) is left out."""
    now = int(time.time() * 1000)
    numbers = {key: value for key, value in metrics.items() if isinstance(value, (int, float))}
    return [(key, float(value), step, now, final) for key, value in numbers.items()]


def brief(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
