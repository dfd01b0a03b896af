"""Writes to one MLflow run; each may be repeated, after a resumption or a failure, without doubling."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.errors import UserError

Point = tuple[str, float, int, int, bool]  # key, value, step, milliseconds, final


class Delivery:
    """One run on the server. `fresh`: the run was made just now, so nothing needs to be looked up in it."""

    def __init__(self, client: Any, run_id: str, fresh: bool) -> None:
        self.client = client
        self.run_id = run_id
        self.fresh = fresh
        self._known: dict[str, dict[int, float]] = {}

    def params(self, values: dict[str, str]) -> None:
        """Log the parameters that the run has not; MLflow's parameters never change once written."""
        from mlflow.entities import Param

        known = self.client.get_run(self.run_id).data.params
        missing = [Param(key, value) for key, value in values.items() if key not in known]
        for start in range(0, len(missing), 100):  # the server's limit for one request
            self.client.log_batch(self.run_id, params=missing[start : start + 100])

    def metrics(
        self,
        points: list[Point],
        model_id: str | None = None,
        dataset: tuple[str, str] | None = None,
    ) -> None:
        """Log points, except steps that the run already has; a final figure may replace a different one."""
        from mlflow.entities import Metric

        name, digest = dataset or (None, None)
        fresh = []
        for key, value, step, at, final in points:
            known = self._steps(key)
            if model_id is None and step in known and not (final and known[step] != value):
                continue
            known[step] = value
            fresh.append(Metric(key, value, at, step, model_id, name, digest))
        for start in range(0, len(fresh), 1000):
            try:
                self.client.log_batch(self.run_id, metrics=fresh[start : start + 1000], synchronous=True)
            except Exception:
                self._known.clear()  # whether the server has them is not known: look when they are sent again
                self.fresh = False
                raise

    def _steps(self, key: str) -> dict[int, float]:
        if key not in self._known:
            history = [] if self.fresh else self.client.get_metric_history(self.run_id, key)
            history = sorted(history, key=lambda metric: metric.timestamp)
            self._known[key] = {metric.step: metric.value for metric in history}
        return self._known[key]

    def tags(self, values: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in values.items()])

    def text(self, name: str, content: str) -> None:
        self.client.log_text(self.run_id, content, name)

    def file(self, path: str, folder: str | None) -> None:
        if not Path(path).exists():
            raise FileNotFoundError(f"{path}: was to be logged, but is gone")
        if Path(path).is_dir():
            self.client.log_artifacts(self.run_id, path, folder)
        else:
            self.client.log_artifact(self.run_id, path, folder)

    def dataset(self, name: str, digest: str, source: str, context: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        entity = Dataset(name=name, digest=digest, source_type="local", source=f'{{"uri": "{source}"}}')
        label = InputTag(key="mlflow.data.context", value=context)
        self.client.log_inputs(self.run_id, [DatasetInput(dataset=entity, tags=[label])])

    def model(self, name: str, bundle: str, points: list[Point], dataset: tuple[str, str] | None, step: int) -> str:
        """Log a bundle as a logged model of the run, once, with its metrics; its URI."""
        from components.servable import log_bundle

        model_id, made = log_bundle(self.client, self.run_id, name, Path(bundle), step)
        if made or not self.client.get_logged_model(model_id).metrics:
            self.metrics(points, model_id, dataset)
        return f"models:/{model_id}"

    def status(self, status: str) -> None:
        if status == "RUNNING":
            self.client.update_run(self.run_id, status=status)
        else:
            self.client.set_terminated(self.run_id, status)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "params": Delivery.params,
    "metrics": Delivery.metrics,
    "tags": Delivery.tags,
    "text": Delivery.text,
    "file": Delivery.file,
    "dataset": Delivery.dataset,
    "model": Delivery.model,
    "status": Delivery.status,
}


def refused(error: Exception) -> bool:
    """Whether sending the same again can never succeed: the operation itself is wrong, not the connection."""
    code = getattr(error, "error_code", "")
    mistaken = isinstance(error, (FileNotFoundError, UserError))
    return mistaken or code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters as `a.b.c` -> text, in names and lengths that MLflow accepts."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = re.sub(r"[^\w./ -]", "_", f"{prefix}{key}")
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = str(value)[:6000]
    return flat
