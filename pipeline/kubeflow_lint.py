"""What is known to break on a cluster, found in a compiled pipeline before hours are spent."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from model.errors import UserError

DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
SECRET = re.compile(r"(^|_)(PASSWORD|PASSWD|SECRET|TOKEN|CREDENTIALS?|(ACCESS|API|PRIVATE)_KEY)(_|$)", re.IGNORECASE)
WITH_PASSWORD = re.compile(r"://[^/\s@:]*:[^/\s@]+@")  # an address such as http://user:password@host
SHORT = 3600  # seconds: kfp's own window for retries
Found = tuple[str, Any, Any, frozenset[str]]
AT_THE_END = "ALL_UPSTREAM_TASKS_COMPLETED"  # of a task that runs whether or not those before it failed


def load_package(path: Path) -> dict[str, Any]:
    """The pipeline spec of a compiled package. Raises UserError when the file is none."""
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not a compiled pipeline ({error})") from None
    if not documents or not isinstance(documents[0], dict) or "deploymentSpec" not in documents[0]:
        raise UserError(f"{path}: not a compiled pipeline; write one with `sixstream kfp compile`")
    spec: dict[str, Any] = documents[0]
    return spec


def lint(spec: Mapping[str, Any], development: bool = False) -> list[str]:
    """One line per fault of a pipeline spec: the task, what is wrong and the remedy.

    Args:
        spec: the compiled pipeline, as `load_package` reads it.
        development: images named by a tag are accepted.
    """
    found = []
    executors = spec["deploymentSpec"]["executors"]
    for name, task, component, inside in _tasks(spec):
        executor = executors.get(component.get("executorLabel"), {})
        if "container" in executor:
            found += [f"{name}: {fault}" for fault in _container(executor["container"], task, development)]
        looped = "loop" in inside or any(key in task for key in ("parameterIterator", "artifactIterator"))
        address = executor.get("importer", {}).get("artifactUri", {}).get("constant", "s3://")
        if not development and "://" not in address:
            found.append(f"{name}: {address} is a path of this machine; name data in an object store with --data")
        if "importer" in executor and looped:
            found.append(f"{name}: an importer inside a loop fails on clusters; import before the loop")
        if looped and "handler" in inside and "dag" in component:
            found.append(f"{name}: a loop inside an exit handler fails on clusters; unroll it")
        cached = task.get("cachingOptions", {}).get("enableCache")
        if cached and _is_exit(task):
            found.append(f"{name}: a cached exit task does not run a second time; switch its cache off")
    return found


def _container(container: Mapping[str, Any], task: Mapping[str, Any], development: bool) -> Iterator[str]:
    image = container["image"]
    if not development and not DIGEST.search(image):
        yield f"image {image} has no digest, so stale results may be served; name it as NAME@sha256:… in compute.image"
    resources = container.get("resources", {})
    accelerator = resources.get("accelerator")
    if accelerator is not None:
        if str(accelerator.get("resourceCount") or accelerator.get("count") or 0) == "0":
            yield "names an accelerator without a number of them, so it gets none; set a limit"
        if not (resources.get("resourceMemoryLimit") or resources.get("memoryLimit")):
            yield "has an accelerator and no memory limit; set one, or a leak takes the node's other tasks with it"
        retry = task.get("retryPolicy", {})
        window = float(str(retry.get("backoffMaxDuration", SHORT)).removesuffix("s"))
        if int(retry.get("maxRetryCount", 0)) and window <= SHORT:
            yield (
                f"starts retries only within {window:g} s of the first attempt, so a later pre-emption is final; "
                "set compute.tasks.<verb>.window above the time in the queue and in training"
            )
    for variable in container.get("env", []):
        name, value = variable["name"], str(variable.get("value", ""))
        if SECRET.search(name) or WITH_PASSWORD.search(value):
            yield f"variable {name} holds a credential in plain text; name a Kubernetes secret in compute.secrets"


def _tasks(spec: Mapping[str, Any]) -> Iterator[Found]:
    """(name, task, its component, what it is inside of: `loop`, `handler`) of every task, depth first."""

    def walk(dag: Mapping[str, Any], inside: frozenset[str]) -> Iterator[Found]:
        tasks = dag["tasks"]
        handled = {before for task in tasks.values() if _is_exit(task) for before in task.get("dependentTasks", [])}
        for name, task in tasks.items():
            component = spec["components"][task["componentRef"]["name"]]
            yield name, task, component, inside
            within = set(inside)
            if name in handled:
                within.add("handler")
            if "parameterIterator" in task or "artifactIterator" in task:
                within.add("loop")
            if "dag" in component:
                yield from walk(component["dag"], frozenset(within))

    return walk(spec["root"]["dag"], frozenset())


def _is_exit(task: Mapping[str, Any]) -> bool:
    return bool(task.get("triggerPolicy", {}).get("strategy") == AT_THE_END)
