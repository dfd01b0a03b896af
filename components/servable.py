"""Bundles as MLflow models: logged with their code and requirements, registered, and fetched again."""

import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import components
import model
from components.bundle import bundle_key, read_bundle
from components.storage import local_path
from model.errors import UserError

CONTENT_TAG = "sixstream.content"
VERSIONS_TAG = "mlflow.modelVersions"
REQUIREMENTS = ("torch", "numpy", "mlflow", "pydantic", "pyyaml")
PACKAGES = (model, components)


def log_bundle(client: Any, run_id: str, name: str, bundle: Path, step: int = 0) -> tuple[str, bool]:
    """Log a bundle as a logged model of a run; its id, and whether it was logged now or before.

    The same content (`bundle_key`) under the same name is logged once a run.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    spec, key = read_bundle(bundle), bundle_key(bundle)
    run = client.get_run(run_id)
    same = f"name = '{name}' AND source_run_id = '{run_id}' AND tags.`{CONTENT_TAG}` = '{key}'"
    found = client.search_logged_models([run.info.experiment_id], same)
    ready = [entry for entry in found if entry.status == LoggedModelStatus.READY]
    if ready:
        return str(ready[0].model_id), False
    tags = {CONTENT_TAG: key, "sixstream.data": spec["data_hash"]}
    params = {"members": str(len(spec["members"])), "classes": str(len(spec["classes"]))}
    made = client.create_logged_model(run.info.experiment_id, name, run_id, tags, params, "sixstream")
    try:
        with tempfile.TemporaryDirectory(prefix="sixstream-") as scratch:
            folder = Path(scratch) / "model"
            save_served(bundle, folder, made.model_id, run_id)
            client.log_model_artifacts(made.model_id, str(folder))
    except BaseException:
        client.finalize_logged_model(made.model_id, LoggedModelStatus.FAILED)
        raise
    client.finalize_logged_model(made.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(made.model_id, step)])
    return str(made.model_id), True


def save_served(bundle: Path, folder: Path, model_id: str | None = None, run_id: str | None = None) -> None:
    """Write a bundle as an MLflow model folder: its code beside it, requirements pinned to what is installed."""
    import mlflow.pyfunc
    from mlflow.models import Model

    with tempfile.TemporaryDirectory(prefix="sixstream-") as scratch:
        code = [str(_sources(package, Path(scratch))) for package in PACKAGES]
        mlflow.pyfunc.save_model(
            path=str(folder),
            python_model=str(Path(code[1]) / "served.py"),
            artifacts={"bundle": bundle.resolve().as_uri()},
            code_paths=code,
            pip_requirements=[f"{name}=={_version(name)}" for name in REQUIREMENTS],
            mlflow_model=Model(model_id=model_id, run_id=run_id),
        )


def register_model(client: Any, name: str, model_id: str, key: str, tags: dict[str, str]) -> tuple[str, bool]:
    """Register a logged model as a version of `name`; the version, and whether it was made now.

    A version with the same content is not made twice; its tags are brought up to date.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    same = [entry for entry in versions(client, name) if entry.tags.get(CONTENT_TAG) == key]
    if same:
        version, made = same[0], False
        for tag, value in tags.items():
            client.set_model_version_tag(name, version.version, tag, value)
    else:
        run_id = client.get_logged_model(model_id).source_run_id
        version = client.create_model_version(
            name, f"models:/{model_id}", run_id, tags={**tags, CONTENT_TAG: key}, model_id=model_id
        )
        made = True
        # From this tag the page of a logged model knows its versions; MLflow's own client writes it alike.
        known = json.loads(client.get_logged_model(model_id).tags.get(VERSIONS_TAG, "[]"))
        known.append({"name": name, "version": str(version.version)})
        client.set_logged_model_tags(model_id, {VERSIONS_TAG: json.dumps(known)})
    return str(version.version), made


def versions(client: Any, name: str) -> list[Any]:
    """All versions of a registered model, oldest first; none when there is no such model."""
    found = pages(client.search_model_versions, f"name = '{name}'")
    return sorted(found, key=lambda entry: int(entry.version))


def pages(search: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Everything that a search of MLflow's client finds, which it gives page by page."""
    found: list[Any] = []
    token = None
    while True:
        page = search(*arguments, max_results=200, page_token=token)
        found.extend(page)
        token = page.token
        if not token:
            return found


def aliased(client: Any, name: str, alias: str) -> str | None:
    """The version that an alias of a registered model points to."""
    try:
        aliases = client.get_registered_model(name).aliases
    except Exception as error:
        if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return str(aliases[alias]) if alias in aliases else None


def fetch_bundle(uri: str, to: Path) -> Path:
    """The bundle folder of a model: `models:/name@champion`, `models:/name/3`, `runs:/…`, or a bundle's own folder.

    Models of the registry are copied into `to`. Raises UserError when there is none at `uri`.
    """
    import mlflow.artifacts

    if ":/" not in uri or uri.startswith("file:"):
        folder = local_path(uri)
        for candidate in (folder, folder / "artifacts" / "bundle"):
            if (candidate / "bundle.json").is_file():
                return candidate
        raise UserError(f"{uri}: holds no bundle.json; name a bundle's folder or a model: models:/NAME@champion")
    try:
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(to)))
    except Exception as error:
        raise UserError(f"{uri}: cannot be fetched ({error}); list the models with the MLflow UI") from None
    found = sorted(folder.rglob("bundle.json"))
    if not found:
        raise UserError(f"{uri}: is not a model of this project (it has no bundle.json)")
    return found[0].parent


def _sources(package: Any, scratch: Path) -> Path:
    """A copy of a package without caches, which would differ from machine to machine."""
    source = Path(package.__file__).parent
    return Path(
        shutil.copytree(source, scratch / package.__name__, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    )


def _version(name: str) -> str:
    """The installed version as an index knows it: a build label (+cpu) names a wheel, not a version."""
    if name == "mlflow":  # containers have its client alone, mlflow-skinny, of the same version
        from mlflow.version import VERSION

        return str(VERSION)
    return importlib.metadata.version(name).split("+")[0]
