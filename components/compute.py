"""The part `compute` of params.yaml: what the tasks of a Kubeflow pipeline get. DVC runs do not look at it."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from components.strict import Strict

ON_GPU = ("train", "evaluate", "umurl-pretrain", "umurl-features")


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
    accelerators: int = Field(0, ge=0, description="how many of them; train, evaluate and their like in UmURL: 1")
    node_selector: dict[str, str] = Field(default_factory=dict, description="labels that the node must have")
    tolerations: list[Toleration] = Field(default_factory=list, description="taints that do not matter")
    retries: int = Field(2, ge=0, description="attempts after a failed or pre-empted one; train: 10")
    backoff: int = Field(60, gt=0, description="seconds before the first retry, doubled for each further one")
    window: float = Field(
        24, gt=0, description="hours from the first attempt in which retries start: above queue and training time"
    )
    timeout: float | None = Field(None, gt=0, description="hours that one attempt may take once its pod is placed")
    shm: str = Field("", description="size of /dev/shm, such as 8Gi; unlimited where processes exchange gradients")
    members_per_task: int = Field(
        1, ge=1, description="train only: members that one pod trains side by side on its accelerator"
    )
    nodes: int = Field(1, ge=1, description="train only: pods that train one member together, as a TrainJob")

    @model_validator(mode="after")
    def _fits_together(self) -> "Resources":
        if self.timeout is not None and self.timeout > self.window:
            raise ValueError(
                f"timeout: an attempt may take {self.timeout:g} h, but retries start only within {self.window:g} h; "
                "set window above timeout and queue"
            )
        if self.members_per_task > 1 and max(self.accelerators, self.nodes) > 1:
            raise ValueError("members_per_task: shares one accelerator; leave accelerators and nodes at 1, or it at 1")
        return self


DEFAULTS: dict[str, dict[str, Any]] = {
    "train": {"cpu": "4", "memory": "16G", "accelerators": 1, "retries": 10, "window": 72},
    "evaluate": {"cpu": "4", "memory": "16G", "accelerators": 1, "retries": 5},
    "umurl-pretrain": {"cpu": "4", "memory": "16G", "accelerators": 1, "retries": 10, "window": 72},
    "umurl-features": {"cpu": "4", "memory": "16G", "accelerators": 1, "retries": 5},
}


class Cache(Strict):
    """Where the raw data are kept by their md5, so that a node or a repeated task fetches them once."""

    claim: str = Field("", description="PersistentVolumeClaim that tasks share")
    size: str = Field("", description="in place of a claim: a volume of this size for each pod, such as 100Gi")
    storage_class: str = Field("", description="storage class of such a volume (default: the cluster's)")

    @model_validator(mode="after")
    def _one_of_both(self) -> "Cache":
        if bool(self.claim) == bool(self.size):
            raise ValueError("name a claim that is there, or the size of a volume to make, one of both")
        return self


class Compute(Strict):
    """Image and resources of the tasks."""

    image: str = Field("sixstream:gpu", description="component image, by digest (NAME@sha256:…) outside development")
    env: dict[str, str] = Field(
        default_factory=dict, description="variables of every task, such as MLFLOW_TRACKING_URI; no secrets"
    )
    secrets: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="Kubernetes secret: {its key: variable of the task}"
    )
    pull_secrets: list[str] = Field(default_factory=list, description="Kubernetes secrets to pull the image with")
    queue: str = Field("", description="Kueue's local queue; pods carry its label")
    user: int = Field(1000, gt=0, description="user id of the processes, never root")
    cache: Cache | None = Field(None, description="where fetched raw data are kept")
    scratch: str = Field("", description="s3://BUCKET/PREFIX over which the pods of one training exchange files")
    runtime: str = Field("sixstream-torch", description="TrainingRuntime of trainings on several nodes")
    tasks: dict[str, Resources] = Field(default_factory=dict, description="what a verb's tasks get, by verb")

    @field_validator("tasks")
    @classmethod
    def _gpus_where_used(cls, tasks: dict[str, Resources]) -> dict[str, Resources]:
        for verb, given in tasks.items():
            if given.accelerators and verb not in ON_GPU:
                raise ValueError(f"{verb}: has no use for an accelerator; only {', '.join(ON_GPU)} have")
            if verb != "train" and max(given.members_per_task, given.nodes) > 1:
                raise ValueError(f"{verb}: members_per_task and nodes are for train")
        return tasks

    @model_validator(mode="after")
    def _nodes_exchange_files(self) -> "Compute":
        if self.of("train").nodes > 1 and not self.scratch.startswith("s3://"):
            raise ValueError("scratch: tasks.train.nodes needs s3://BUCKET/PREFIX, over which pods exchange files")
        return self

    def of(self, verb: str) -> Resources:
        """The resources of a verb: what is given, else its defaults."""
        given = self.tasks[verb].model_dump(exclude_unset=True) if verb in self.tasks else {}
        return Resources.model_validate({**DEFAULTS.get(verb, {}), **given})
