"""The part `compute` of params.yaml: what the tasks of a Kubeflow pipeline get. DVC runs do not look at it."""

from typing import Any, Literal

from pydantic import Field, field_validator

from components.strict import Strict

ON_GPU = ("train", "evaluate")


class Toleration(Strict):
    """A taint of nodes that a task may run on all the same."""

    key: str = Field(description="key of the taint")
    operator: Literal["Equal", "Exists"] = Field("Exists", description="how the value is compared")
    value: str | None = Field(None, description="value, for Equal")
    effect: Literal["NoExecute", "NoSchedule", "PreferNoSchedule"] = Field("NoSchedule", description="effect")


class Resources(Strict):
    """What one verb's tasks get."""

    cpu: str = Field("2", description="CPU cores")
    memory: str = Field("8G", description="memory, such as 16G")
    accelerator: str = Field("nvidia.com/gpu", description="resource name of a GPU or of a MIG slice")
    accelerators: int = Field(0, ge=0, description="how many of them; train and evaluate: 1")
    node_selector: dict[str, str] = Field(default_factory=dict, description="labels that the node must have")
    tolerations: list[Toleration] = Field(default_factory=list, description="taints that do not matter")
    retries: int = Field(2, ge=0, description="attempts after a failed or pre-empted one; train: 10")
    backoff: int = Field(60, gt=0, description="seconds before the first retry, doubled for each further one")
    window: float = Field(
        24, gt=0, description="hours from the first attempt in which retries start: above queue and training time"
    )


DEFAULTS: dict[str, dict[str, Any]] = {
    "train": {"cpu": "4", "memory": "16G", "accelerators": 1, "retries": 10, "window": 72},
    "evaluate": {"cpu": "4", "memory": "16G", "accelerators": 1, "retries": 5},
}


class Compute(Strict):
    """Image and resources of the tasks."""

    image: str = Field("sixstream:gpu", description="component image, by digest (NAME@sha256:…) outside development")
    env: dict[str, str] = Field(
        default_factory=dict, description="variables of every task, such as MLFLOW_TRACKING_URI; no secrets"
    )
    secrets: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="Kubernetes secret: {its key: variable of the task}"
    )
    tasks: dict[str, Resources] = Field(default_factory=dict, description="what a verb's tasks get, by verb")

    @field_validator("tasks")
    @classmethod
    def _gpus_where_used(cls, tasks: dict[str, Resources]) -> dict[str, Resources]:
        for verb, given in tasks.items():
            if given.accelerators and verb not in ON_GPU:
                raise ValueError(f"{verb}: has no use for an accelerator; only {' and '.join(ON_GPU)} have")
        return tasks

    def of(self, verb: str) -> Resources:
        """The resources of a verb: what is given, else its defaults."""
        given = self.tasks[verb].model_dump(exclude_unset=True) if verb in self.tasks else {}
        return Resources.model_validate({**DEFAULTS.get(verb, {}), **given})
