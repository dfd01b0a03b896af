"""docker/k8s against the published API models: known fields, references that lead somewhere, least rights."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from kubeflow_trainer_api import models as trainer
from kubernetes import client

FOLDER = Path(__file__).parent.parent / "docker" / "k8s"
SECRETS = {"sixstream-database": {"password"}, "sixstream-s3": {"access", "secret", "endpoint", "artifacts"}}
RESOURCES = [name for name in yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]]


def _objects(file: str) -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all((FOLDER / file).read_text()) if found]


OBJECTS = [found for name in RESOURCES for found in _objects(name)]


def _name(found: dict[str, Any]) -> str:
    return f"{found['kind']}/{found['metadata']['name']}"


def _round_trip(found: dict[str, Any]) -> Any:
    """What is left of an object that passed through the models of its API, which drop what they do not know."""
    if found["apiVersion"].startswith("trainer.kubeflow.org/"):
        model = getattr(trainer, f"TrainerV1alpha1{found['kind']}")
        return model.from_dict(found).to_dict()
    api = client.ApiClient()
    version = found["apiVersion"].rpartition("/")[2]
    made = api._ApiClient__deserialize(found, f"{version.capitalize()}{found['kind']}")  # checks required fields too
    return api.sanitize_for_serialization(made)


def _walk(value: Any) -> Any:
    """Every mapping inside a value."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner)


def _pods() -> list[tuple[str, dict[str, Any]]]:
    """(object, specification of a pod) of everything that makes pods."""
    return [(_name(o), inner) for o in OBJECTS for inner in _walk(o) if isinstance(inner.get("containers"), list)]


def _containers() -> list[tuple[str, dict[str, Any]]]:
    return [(name, one) for name, pod in _pods() for one in pod["containers"] + pod.get("initContainers", [])]


@pytest.mark.parametrize("found", OBJECTS, ids=_name)
def test_every_field_is_one_of_the_api(found: dict[str, Any]) -> None:
    assert _round_trip(found) == found


@pytest.mark.parametrize("found", [o for o in OBJECTS if "spec" in o or "rules" in o], ids=_name)
def test_a_field_that_the_api_does_not_know_is_seen(found: dict[str, Any]) -> None:
    """The check above can fail."""
    part = "spec" if "spec" in found else "metadata"
    wrong = {**found, part: {**found[part], "speling": 1}}
    assert _round_trip(wrong) != wrong


def test_kustomization_lists_every_file_and_every_image() -> None:
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    assert {path.name for path in FOLDER.glob("*.yaml")} == {*RESOURCES, "kustomization.yaml"}
    assert {image["name"] for image in listed["images"]} == {one["image"] for _, one in _containers()}


def test_what_is_referred_to_is_there() -> None:
    names = {_name(found) for found in OBJECTS}
    for name, pod in _pods():
        assert f"ServiceAccount/{pod['serviceAccountName']}" in names, name
    for found in OBJECTS:
        for reference in (inner["secretKeyRef"] for inner in _walk(found) if "secretKeyRef" in inner):
            assert reference["key"] in SECRETS[reference["name"]], _name(found)
        if found["kind"] == "RoleBinding":
            assert f"Role/{found['roleRef']['name']}" in names
            assert {f"{s['kind']}/{s['name']}" for s in found["subjects"]} <= names


def test_selectors_choose_pods_that_exist() -> None:
    labels = [o["spec"]["template"]["metadata"]["labels"] for o in OBJECTS if "selector" in o.get("spec", {}) and
              "template" in o["spec"]]  # fmt: skip
    for found in OBJECTS:
        if found["kind"] == "Service":
            assert found["spec"]["selector"] in labels
        if found["kind"] == "NetworkPolicy":
            assert found["spec"]["podSelector"]["matchLabels"] in labels
        if found["kind"] in ("Deployment", "StatefulSet", "DaemonSet"):
            assert found["spec"]["selector"]["matchLabels"] == found["spec"]["template"]["metadata"]["labels"]


def test_no_pod_has_more_rights_than_it_needs() -> None:
    for name, pod in _pods():
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), name
    for name, one in _containers():
        rights = one["securityContext"]
        assert rights["allowPrivilegeEscalation"] is False and rights["capabilities"] == {"drop": ["ALL"]}, name
    for found in OBJECTS:
        for rule in found.get("rules", []):
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
        assert not found["kind"].startswith("ClusterRole")


def test_no_secret_is_written_down() -> None:
    assert not [found for found in OBJECTS if found["kind"] == "Secret"]
    for _, one in _containers():
        for variable in one.get("env", []):
            if any(word in variable["name"] for word in ("PASSWORD", "SECRET", "KEY")):
                assert "secretKeyRef" in variable["valueFrom"]
