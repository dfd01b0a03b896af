"""The Kubeflow pipeline on this machine, by kfp's own runners: tasks as processes, or as containers as on a cluster."""

import os
import sys
from pathlib import Path
from typing import Any, Literal

from components.params import Params
from model.errors import UserError
from pipeline.images import engine
from pipeline.kubeflow import compile_to
from pipeline.task import CHECKPOINTS, OBJECTS
from pipeline.workspace import ROOT

PASSED_ON = (
    "AWS_",
    "MLFLOW_",
    "OMP_",
    "SIXSTREAM_BACKUP",
)  # variables of this process that containers get, as secrets on a cluster


def kfp_run(
    params: Params,
    local: Literal["subprocess", "docker"] = "subprocess",
    data: str = "",
    out: Path = Path("kfp-runs"),
    graph: Path = Path("dvc.yaml"),
    pipeline: str = "members",
    retry: bool = False,
) -> int:
    """Compile the pipeline and run that package on this machine by kfp's own runner.

    Tracking goes to the server named by MLFLOW_TRACKING_URI, which containers must have; processes also to the
    database of this folder. Checkpoints lie in <out>/checkpoints.

    Args:
        params: the parameters.
        local: how tasks run; subprocess (in this Python) or docker (in compute.image).
        data: as for kfp compile.
        out: folder for the package and what the tasks make, <run>/<task>/out.
        graph: the stages.
        pipeline: as for kfp compile.
        retry: repeat failed tasks as compute.tasks says; a mistake in the parameters fails again.

    Raises:
        UserError: a task failed; its own message stands above. With docker: no Docker, image or tracking server.
    """
    from kfp import components
    from kfp import local as runners

    out = out.resolve()
    compile_to(params, out / "pipeline.yaml", data, graph, retry, pipeline)
    os.environ[CHECKPOINTS] = str(out / "checkpoints")
    if local == "docker":
        runner = _docker_runner(params, data)
    elif local == "subprocess":
        os.environ["PYTHONPATH"] = str(ROOT)
        os.environ["SIXSTREAM_WORKSPACE"] = str(Path.cwd())
        runner = runners.SubprocessRunner(use_venv=False)
    else:
        raise UserError(f"--local {local}: choose subprocess or docker")
    runners.init(runner, pipeline_root=str(out))
    try:
        components.load_component_from_file(str(out / "pipeline.yaml"))()
    except RuntimeError as error:
        raise UserError(f"kfp run: {error}") from None
    print(f"outputs: {out}", file=sys.stderr)
    return 0


def _docker_runner(params: Params, data: str) -> Any:
    """kfp's Docker runner: this user and network, variables of the tracking and object store, raw data to read."""
    import docker
    from kfp import local as runners
    from kfp.local import docker_task_handler

    compute = params.compute
    secrets = {variable for keys in compute.secrets.values() for variable in keys.values()}
    environment = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(PASSED_ON) or name == CHECKPOINTS or name in secrets
    }
    server = environment.get("MLFLOW_TRACKING_URI") or compute.env.get("MLFLOW_TRACKING_URI", "")
    if not server.startswith(("http://", "https://")):
        raise UserError("containers track to a server: set MLFLOW_TRACKING_URI to its address, http://…")
    source = Path(data.partition(OBJECTS)[0] or f"data/raw/{params.dataset}").absolute()
    mounts = [docker.types.Mount(str(source), str(source), "bind", read_only=True)] if source.exists() else []
    with engine() as client:
        _have_image(client, compute.image)
        gpus = [docker.types.DeviceRequest(count=-1, capabilities=[["gpu"]])]
        devices = gpus if "nvidia" in client.info()["Runtimes"] else []
    docker_task_handler.run_docker_container = run_container
    return runners.DockerRunner(
        network_mode="host",
        user=f"{os.getuid()}:{os.getgid()}",
        shm_size="2g",  # Docker's own 64 MB are too little for processes that exchange gradients
        environment=environment,
        mounts=mounts,
        device_requests=devices,
    )


def run_container(client: Any, image: str, command: list[str], volumes: dict[str, Any], **options: Any) -> int:
    """Run one task's container, its output to ours, and give its exit code.

    In place of kfp's (2.17.0), which lets Docker remove the container and takes one that is gone by the time it asks
    for the exit code for a success: one failure in five under load (kubeflow/pipelines#13332). A task's command
    replaces the image's entry point, as in a pod.
    """
    container = client.containers.run(
        image=image, entrypoint=command[:1], command=command[1:], detach=True, volumes=volumes, **options
    )
    try:
        for line in container.logs(stream=True):
            print(line.decode(errors="replace"), end="")
        return int(container.wait()["StatusCode"])
    finally:
        container.remove(force=True)


def _have_image(client: Any, name: str) -> None:
    import docker

    try:
        client.images.get(name)
    except docker.errors.ImageNotFound:
        try:
            client.images.pull(name)
        except docker.errors.APIError as error:
            raise UserError(
                f"compute.image: {name} is not on this machine and cannot be pulled ({error.explanation or error}); "
                "`sixstream images build` makes it"
            ) from None
