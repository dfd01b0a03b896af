"""`sixstream kfp doctor`: would a run start and end well on this cluster? Asked before hours are spent."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.compute import Compute
from components.params import Params
from model.errors import Stopped, UserError
from pipeline.graph import stages
from pipeline.kube import SECONDS, connect, reason
from pipeline.kubeflow_api import ENDPOINT, Api
from pipeline.kubeflow_lint import DIGEST

OK, WRONG, UNKNOWN = "ok", "WRONG", "not checked"
KUEUE = ("kueue.x-k8s.io", "v1beta1")
TRAINER = ("trainer.kubeflow.org", "v1alpha1")
# (verb, group, resource, subresource) that the run's account needs.
RIGHTS = [("get", "", "pods", ""), ("get", "", "pods", "log"), ("list", "", "pods", "")]
TRAINJOB_RIGHTS = [(verb, TRAINER[0], "trainjobs", "") for verb in ("create", "get", "list", "delete")]


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    state: str
    what: str
    said: str = ""


def kfp_doctor(
    params: Params,
    endpoint: str = "",
    token: str = "",
    token_file: Path | None = None,
    ca: Path | None = None,
    namespace: str = "sixstream",
    kubeconfig: Path | None = None,
    context: str = "",
    account: str = "sixstream-tasks",
    graph: Path = Path("dvc.yaml"),
) -> int:
    """Check server, namespace, secrets, queue or quota, nodes, volumes, rights and image; 1 if anything is wrong.

    Args:
        params: the parameters; `compute` says what the tasks need.
        endpoint: as for kfp submit; without one the pipeline server is not checked.
        token: as for kfp submit.
        token_file: as for kfp submit.
        ca: as for kfp submit.
        namespace: namespace in which the pods will run.
        kubeconfig: the cluster's file (default: KUBECONFIG, else ~/.kube/config, in a pod its own account).
        context: context in that file.
        account: Kubernetes service account of the run's pods.
        graph: the stages, of which each kind of task is looked at.

    Raises:
        UserError: no cluster is named.
    """
    verbs = list(dict.fromkeys(stage.verb for stage in stages(params, graph)))
    findings = [_server(endpoint, token, token_file, namespace, ca)]
    findings += examine(connect(kubeconfig, context), params.compute, verbs, namespace, account)
    for one in findings:
        print(f"{one.state:12} {one.what}{': ' + one.said if one.said else ''}")
    wrong = sum(one.state == WRONG for one in findings)
    unknown = sum(one.state == UNKNOWN for one in findings)
    print(f"{wrong} wrong, {unknown} not checked, {len(findings)} in all", file=sys.stderr)
    return 1 if wrong else 0


def examine(client: Any, compute: Compute, verbs: list[str], namespace: str, account: str) -> list[Finding]:
    """Everything that can be asked of Kubernetes; what may not be asked is said to be not checked."""
    found: list[Finding] = []

    def check(what: str, ask: Callable[[], Iterator[Finding]]) -> None:
        import urllib3
        from kubernetes.client.exceptions import ApiException

        try:
            found.extend(ask())
        except ApiException as error:
            if error.status == 404:
                found.append(Finding(WRONG, what, "is not there"))
            elif error.status in (401, 403):
                found.append(Finding(UNKNOWN, what, f"this account may not look ({reason(error)})"))
            else:
                found.append(Finding(UNKNOWN, what, f"{error.status} {reason(error)}"))
        except urllib3.exceptions.HTTPError as error:
            raise Stopped(f"the cluster does not answer ({str(error)[:200]}); check network and kubeconfig") from None

    cluster = Cluster(client, namespace)
    check(f"namespace {namespace}", cluster.namespace_)
    check(f"service account {account}", lambda: cluster.account(account))
    for name, keys in compute.secrets.items():
        check(f"secret {name}", lambda name=name, keys=keys: cluster.secret(name, list(keys)))  # type: ignore[misc]
    for name in compute.pull_secrets:
        check(f"pull secret {name}", lambda name=name: cluster.pull_secret(name))  # type: ignore[misc]
    if compute.cache is not None and compute.cache.claim:
        claim = compute.cache.claim
        check(f"volume claim {claim}", lambda: cluster.claim(claim))
    if compute.queue:
        check(f"queue {compute.queue}", lambda: cluster.queue(compute.queue))
    check("resource quota", lambda: cluster.quota(compute, verbs))
    check("nodes", lambda: cluster.nodes(compute, verbs))
    nodes = compute.of("train").nodes
    if nodes > 1:
        check(f"runtime {compute.runtime}", lambda: cluster.runtime(compute.runtime))
    check("rights", lambda: cluster.rights(account, RIGHTS + (TRAINJOB_RIGHTS if nodes > 1 else [])))
    found.append(image(compute.image))
    return found


def image(name: str) -> Finding:
    """Whether an image is named for good. Whether nodes can pull it, only a pod shows."""
    what = f"image {name}"
    if not DIGEST.search(name):
        return Finding(WRONG, what, "has no digest; name it as NAME@sha256:… (`docker inspect` shows it)")
    return Finding(UNKNOWN, what, "has a digest; that nodes can pull it, only a pod on them shows")


@dataclass
class Cluster:
    """Questions to one namespace; every method yields findings and may raise Kubernetes' ApiException."""

    client: Any
    namespace: str

    def _core(self) -> Any:
        from kubernetes import client

        return client.CoreV1Api(self.client)

    def _custom(self) -> Any:
        from kubernetes import client

        return client.CustomObjectsApi(self.client)

    def namespace_(self) -> Iterator[Finding]:
        phase = self._core().read_namespace(self.namespace, _request_timeout=SECONDS).status.phase
        good = phase == "Active"
        yield Finding(OK if good else WRONG, f"namespace {self.namespace}", "" if good else f"is {phase}")

    def account(self, name: str) -> Iterator[Finding]:
        self._core().read_namespaced_service_account(name, self.namespace, _request_timeout=SECONDS)
        yield Finding(OK, f"service account {name}")

    def secret(self, name: str, keys: list[str]) -> Iterator[Finding]:
        found = self._core().read_namespaced_secret(name, self.namespace, _request_timeout=SECONDS)
        missing = [key for key in keys if key not in (found.data or {})]
        said = f"lacks {', '.join(missing)}; it has {', '.join(found.data or {}) or 'nothing'}" if missing else ""
        yield Finding(WRONG if missing else OK, f"secret {name}", said)

    def pull_secret(self, name: str) -> Iterator[Finding]:
        found = self._core().read_namespaced_secret(name, self.namespace, _request_timeout=SECONDS)
        good = found.type in ("kubernetes.io/dockerconfigjson", "kubernetes.io/dockercfg")
        said = "" if good else f"is of type {found.type}; make it with `kubectl create secret docker-registry`"
        yield Finding(OK if good else WRONG, f"pull secret {name}", said)

    def claim(self, name: str) -> Iterator[Finding]:
        found = self._core().read_namespaced_persistent_volume_claim(name, self.namespace, _request_timeout=SECONDS)
        phase = found.status.phase
        # A class that waits for its first consumer leaves a claim pending until a pod mounts it.
        state = {"Bound": OK, "Pending": UNKNOWN}.get(phase, WRONG)
        yield Finding(state, f"volume claim {name}", "" if state == OK else f"is {phase}")

    def queue(self, name: str) -> Iterator[Finding]:
        found = self._custom().get_namespaced_custom_object(
            *KUEUE, self.namespace, "localqueues", name, _request_timeout=SECONDS
        )
        for one in found.get("status", {}).get("conditions", []):
            if one["type"] == "Active" and one["status"] != "True":
                yield Finding(WRONG, f"queue {name}", str(one.get("message") or "is not active"))
                return
        yield Finding(OK, f"queue {name}", f"of {found['spec']['clusterQueue']}")

    def quota(self, compute: Compute, verbs: list[str]) -> Iterator[Finding]:
        from kubernetes.utils.quantity import parse_quantity

        quotas = self._core().list_namespaced_resource_quota(self.namespace, _request_timeout=SECONDS).items
        if not quotas:
            yield Finding(OK, "resource quota", "none")
        for one in quotas:
            hard, used = one.status.hard or {}, one.status.used or {}
            short = []
            for verb in verbs:
                for resource, amount in _needs(compute, verb).items():
                    for key in (f"requests.{resource}", f"limits.{resource}", resource):
                        left = parse_quantity(hard[key]) - parse_quantity(used.get(key, "0")) if key in hard else None
                        if left is not None and parse_quantity(amount) > left:
                            short.append(f"{verb} needs {amount} of {key}, {left} are left")
            yield Finding(WRONG if short else OK, f"resource quota {one.metadata.name}", "; ".join(short))

    def nodes(self, compute: Compute, verbs: list[str]) -> Iterator[Finding]:
        """Whether some node has what each kind of task asks for; what other pods use of it is not counted."""
        from kubernetes.utils.quantity import parse_quantity

        nodes = self._core().list_node(_request_timeout=SECONDS).items
        for verb in verbs:
            wanted, needs = compute.of(verb).node_selector, _needs(compute, verb)
            fitting = [
                node
                for node in nodes
                if not node.spec.unschedulable
                and wanted.items() <= (node.metadata.labels or {}).items()
                and all(
                    parse_quantity((node.status.allocatable or {}).get(key, "0")) >= parse_quantity(amount)
                    for key, amount in needs.items()
                )
            ]
            asked = ", ".join(f"{amount} {key}" for key, amount in needs.items())
            selected = f" with {wanted}" if wanted else ""
            said = f"{len(fitting)} of {len(nodes)} have {asked}{selected}"
            # An autoscaler may bring a node that is not there yet.
            yield Finding(OK if fitting else WRONG, f"nodes for {verb}", said)

    def runtime(self, name: str) -> Iterator[Finding]:
        self._custom().get_namespaced_custom_object(
            *TRAINER, self.namespace, "trainingruntimes", name, _request_timeout=SECONDS
        )
        yield Finding(OK, f"runtime {name}")

    def rights(self, account: str, rights: list[tuple[str, str, str, str]]) -> Iterator[Finding]:
        """What the run's own account may do; where that may not be asked, what we may do."""
        from kubernetes import client
        from kubernetes.client.exceptions import ApiException

        review = client.AuthorizationV1Api(self.client)
        user = f"system:serviceaccount:{self.namespace}:{account}"
        for verb, group, resource, sub in rights:
            attributes = client.V1ResourceAttributes(
                namespace=self.namespace, verb=verb, group=group, resource=resource, subresource=sub or None
            )
            what = f"right to {verb} {resource}{'/' + sub if sub else ''}"
            try:
                answer = review.create_subject_access_review(
                    client.V1SubjectAccessReview(
                        spec=client.V1SubjectAccessReviewSpec(user=user, resource_attributes=attributes)
                    ),
                    _request_timeout=SECONDS,
                )
                whose = account
            except ApiException as error:
                if error.status != 403:
                    raise
                answer = review.create_self_subject_access_review(
                    client.V1SelfSubjectAccessReview(
                        spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=attributes)
                    ),
                    _request_timeout=SECONDS,
                )
                whose = "this account"
            if not answer.status.allowed:
                yield Finding(WRONG, what, f"{whose} has it not")
            elif whose == account:
                yield Finding(OK, what)
            else:
                yield Finding(UNKNOWN, what, f"this account has it; whether {account} has, may not be asked")


def _needs(compute: Compute, verb: str) -> dict[str, str]:
    """Resources that one pod of a verb asks for."""
    given = compute.of(verb)
    needs = {"cpu": given.cpu, "memory": given.memory}
    return {**needs, given.accelerator: str(given.accelerators)} if given.accelerators else needs


def _server(endpoint: str, token: str, token_file: Path | None, namespace: str, ca: Path | None) -> Finding:
    if not endpoint and ENDPOINT not in os.environ:
        return Finding(UNKNOWN, "pipeline server", "name it with --endpoint")
    try:
        api = Api(endpoint, token, token_file, namespace, ca)
        api.healthz()
        with api.asked("list runs"):
            api.client.list_runs(page_size=1, namespace=namespace or None)
    except (UserError, Stopped) as error:
        return Finding(WRONG, "pipeline server", str(error))
    return Finding(OK, "pipeline server", api.endpoint)
