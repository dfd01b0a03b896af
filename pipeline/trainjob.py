"""A training on several nodes: the train task makes a TrainJob of Kubeflow Trainer v2, follows it and takes its result.

Files travel over object storage (`compute.scratch`), since pods of two nodes share nothing: the task puts the inputs
there, every node fetches them (pipeline/node.py), and the first node puts the output back.
"""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

from components.compute import Compute
from components.files import read_json
from components.storage import fetch, put
from model.errors import Stopped, UserError
from pipeline.kube import SECONDS, asked, connect

TRAINJOB = "SIXSTREAM_TRAINJOB"  # of a train task: its own pod, and what the nodes' pods get
NODE = "SIXSTREAM_NODE"  # of a node's pod: the command, its files and where they lie
GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
POD = {"name": "metadata.name", "uid": "metadata.uid", "namespace": "metadata.namespace"}
POLL = 10.0
LOST = 75  # exit code of what may succeed at another time
PREEMPTED = ("Preempted", "Preempting", "Evicted", "NodeLost", "Shutdown", "Terminated", "NodeShutdown")
CONTAINER = "node"  # both the job and its container are called so in Trainer's runtimes


def settings(compute: Compute) -> str:
    """What a train task must know of its nodes, as the value of the variable SIXSTREAM_TRAINJOB."""
    train = compute.of("train")
    fields = ("image", "env", "secrets", "pull_secrets", "queue", "user", "scratch", "runtime")
    return json.dumps({**compute.model_dump(mode="json", include=set(fields)), "train": train.model_dump(mode="json")})


def manifest(given: Mapping[str, Any], name: str, pod: Mapping[str, str], order: str) -> dict[str, Any]:
    """The TrainJob `name` of the settings `given`, owned by the task's pod: with the pod it goes."""
    train = given["train"]
    amounts = {"cpu": train["cpu"], "memory": train["memory"]}
    if train["accelerators"]:
        amounts[train["accelerator"]] = str(train["accelerators"])
    env = [{"name": key, "value": value} for key, value in given["env"].items()]
    for secret, keys in given["secrets"].items():
        for key, variable in keys.items():
            env.append({"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
    limits = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True}
    container: dict[str, Any] = {"name": CONTAINER, "securityContext": limits | {"runAsUser": given["user"]}}
    spec: dict[str, Any] = {"containers": [container]}
    if train["shm"]:  # in place of the runtime's
        container["volumeMounts"] = [{"name": "shm", "mountPath": "/dev/shm"}]
        spec["volumes"] = [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": train["shm"]}}]
    if train["node_selector"]:
        spec["nodeSelector"] = train["node_selector"]
    if train["tolerations"]:
        spec["tolerations"] = [
            {key: value for key, value in one.items() if value is not None} for one in train["tolerations"]
        ]
    if given["pull_secrets"]:
        spec["imagePullSecrets"] = [{"name": one} for one in given["pull_secrets"]]
    patch = {"replicatedJobs": [{"name": CONTAINER, "template": {"spec": {"template": {"spec": spec}}}}]}
    owner = {"apiVersion": "v1", "kind": "Pod", "name": pod["name"], "uid": pod["uid"]}
    body: dict[str, Any] = {
        "runtimeRef": {"apiGroup": GROUP, "kind": "TrainingRuntime", "name": given["runtime"]},
        "trainer": {
            "image": given["image"],
            "command": ["python", "-m", "pipeline.node"],
            "env": [*env, {"name": NODE, "value": order}],
            "numNodes": train["nodes"],
            "numProcPerNode": max(1, train["accelerators"]),
            "resourcesPerNode": {"requests": amounts, "limits": amounts},
        },
        "runtimePatches": [{"manager": "sixstream/train-task", "trainingRuntimeSpec": {"template": {"spec": patch}}}],
    }
    metadata: dict[str, Any] = {"name": name, "namespace": pod["namespace"], "ownerReferences": [owner]}
    if given["queue"]:  # Kueue lets a suspended job go on when there is room
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": given["queue"]}
        body["suspend"] = True
    if train["timeout"]:
        body["activeDeadlineSeconds"] = round(3600 * train["timeout"])
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "TrainJob", "metadata": metadata, "spec": body}


def checked(job: dict[str, Any]) -> dict[str, Any]:
    """`job`, if Trainer's own models hold all of it. Raises UserError naming a field that they do not know."""
    from kubeflow_trainer_api import models
    from pydantic import ValidationError

    try:
        parsed = models.TrainerV1alpha1TrainJob.from_dict(job)
    except ValidationError as error:
        raise UserError(f"TrainJob: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from None
    lost = _lost(job, json.loads(parsed.to_json()), "TrainJob")
    if lost:
        raise UserError(f"{lost}: Kubeflow Trainer has no such field")
    return job


def _lost(given: Any, kept: Any, path: str) -> str:
    """The path of the first thing in `given` that `kept` has not, or otherwise; empty when there is none."""
    if isinstance(given, dict) and isinstance(kept, dict):
        found = (_lost(value, kept.get(key), f"{path}.{key}") for key, value in given.items())
        return next((one for one in found if one), "")
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        found = (_lost(one, other, f"{path}[{k}]") for k, (one, other) in enumerate(zip(given, kept, strict=True)))
        return next((one for one in found if one), "")
    return "" if given == kept else path


def run_on_nodes(given: Mapping[str, Any], pod: Mapping[str, str], command: str, folder: Path, files: dict[str, str],
                 out: str, facts: Path) -> int:  # fmt: skip
    """Run a train command on the nodes of a TrainJob; its exit code, 75 where a repetition may succeed.

    Args:
        given: what `settings` says.
        pod: name, uid and namespace of this task's own pod.
        command: `sixstream train …`.
        folder: folder in which the command would run here; the output is laid there.
        files: path → md5 of the inputs in `folder`.
        out: path of the output.
        facts: file for what the verb tells.

    Raises:
        UserError: object storage or cluster refuse.
        Stopped: the cluster is away.
    """
    client = connect()
    name = f"sixstream-{uuid4().hex[:12]}"
    place = f"{given['scratch'].rstrip('/')}/{name}"
    for path in files:
        put(folder / path, f"{place}/in/{path}")
    order = {"command": command, "place": place, "files": files, "out": out}
    job = manifest(given, name, pod, json.dumps(order))
    from kubernetes import client as kube

    api = kube.CustomObjectsApi(client)
    where = (GROUP, VERSION, pod["namespace"], PLURAL)
    try:
        with asked(f"make the TrainJob {name}"):
            api.create_namespaced_custom_object(*where, job, _request_timeout=SECONDS)
        print(f"TrainJob {name}: made, {given['train']['nodes']} nodes", file=sys.stderr, flush=True)
        code = _followed(client, api, where, name)
    finally:
        _deleted(api, where, name)
    if code == 0:
        made = read_json(fetch(f"{place}/result.json", folder / ".result.json"))
        fetch(f"{place}/out", folder / out, made["md5"])
        facts.write_text(json.dumps(made["facts"]))
    return code


def _followed(client: Any, api: Any, where: tuple[str, ...], name: str) -> int:
    """Wait for the end of a TrainJob, printing what its pods print; its exit code."""
    from kubernetes.client.exceptions import ApiException

    read: dict[str, Thread] = {}
    said = ""
    while True:
        try:
            with asked(f"show the TrainJob {name}"):
                try:
                    job = api.get_namespaced_custom_object(*where, name, _request_timeout=SECONDS)
                except ApiException as error:
                    if error.status != 404:
                        raise
                    print(f"TrainJob {name}: is gone; somebody has deleted it", file=sys.stderr)
                    return LOST
                pods = _pods(client, where[2], name)
        except Stopped as away:  # the API server restarts; the job does not depend on us
            print(away, file=sys.stderr, flush=True)
            time.sleep(POLL)
            continue
        for pod in pods:
            key = pod.metadata.name
            if key not in read and pod.status.phase in ("Running", "Succeeded", "Failed"):
                read[key] = Thread(target=_print_log, args=(client, where[2], key), daemon=True)
                read[key].start()
        conditions = {
            one["type"]: one for one in job.get("status", {}).get("conditions", []) if one["status"] == "True"
        }
        state = ", ".join(sorted(conditions)) or "waiting"
        if state != said:
            said = state
            print(f"TrainJob {name}: {state}", file=sys.stderr, flush=True)
        if "Complete" in conditions or "Failed" in conditions:
            for reader in read.values():
                reader.join(SECONDS)
            if "Complete" in conditions:
                return 0
            code, why = _cause(pods, conditions["Failed"])
            print(f"TrainJob {name}: failed, {why}", file=sys.stderr, flush=True)
            return code
        time.sleep(POLL)


def _cause(pods: list[Any], failed: Mapping[str, Any]) -> tuple[int, str]:
    """(exit code, why) of a failed job: a node that was taken away, a mistake of the user's, or a failure."""
    codes = {}
    for pod in pods:
        disrupted = [
            one for one in pod.status.conditions or [] if one.type == "DisruptionTarget" and one.status == "True"
        ]
        reason = pod.status.reason or (disrupted[0].reason if disrupted else "")
        if disrupted or reason in PREEMPTED:
            return LOST, f"{pod.metadata.name} was taken off its node ({reason})"
        for container in pod.status.container_statuses or []:
            ended = container.state.terminated if container.state else None
            if ended is not None and ended.exit_code:
                codes[pod.metadata.name] = ended.exit_code
    for code in (2, LOST):
        if code in codes.values():
            return code, f"exit codes {codes}"
    return 1, f"exit codes {codes}" if codes else str(failed.get("message", "without a message"))


def _pods(client: Any, namespace: str, name: str) -> list[Any]:
    from kubernetes import client as kube

    found = kube.CoreV1Api(client).list_namespaced_pod(
        namespace, label_selector=f"jobset.sigs.k8s.io/jobset-name={name}", _request_timeout=SECONDS
    )
    return list(found.items)


def _print_log(client: Any, namespace: str, pod: str) -> None:
    import urllib3
    from kubernetes import client as kube
    from kubernetes.client.exceptions import ApiException

    try:
        answer = kube.CoreV1Api(client).read_namespaced_pod_log(
            pod, namespace, container=CONTAINER, follow=True, _preload_content=False
        )
        for line in answer:
            print(f"{pod}: {line.decode(errors='replace').rstrip()}", flush=True)
    except (ApiException, urllib3.exceptions.HTTPError) as error:
        print(f"{pod}: (no log: {str(error).splitlines()[0]})", file=sys.stderr, flush=True)


def _deleted(api: Any, where: tuple[str, ...], name: str) -> None:
    import urllib3
    from kubernetes.client.exceptions import ApiException

    try:
        api.delete_namespaced_custom_object(*where, name, propagation_policy="Foreground", _request_timeout=SECONDS)
    except (ApiException, urllib3.exceptions.HTTPError) as error:
        if getattr(error, "status", 0) != 404:
            print(f"TrainJob {name}: not deleted ({error}); it goes with this task's pod", file=sys.stderr)
