"""The graph of dvc.yaml as a Kubeflow pipeline, compiled to a package.

Every stage is one task with a name of its own (members are unrolled here, not by the cluster), and every task runs
the stage's command line (pipeline/task.py). What DVC tracks of the parameters are a task's `settings`, by which kfp's
cache knows it; the whole of the parameters travels in a variable, which the cache does not look at.
"""

import json
import linecache
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from components.compute import Compute, Resources
from components.files import write_bytes
from components.params import Params
from model.errors import UserError
from pipeline.cli import VERBS
from pipeline.graph import Stage, plain, stages
from pipeline.kubeflow_lint import lint, load_package
from pipeline.task import PARAMS, object_md5

RAW = "raw"  # name of the task that brings the raw data in, where no stage makes them
SOURCE = """\
def {function}(name: str, command: str, settings: str, places: dict, out: Output[Artifact]{inputs}):
    from pipeline.task import run_stage
    run_stage(name, command, places, {artifacts}, out)
"""


def kfp_compile(
    params: Params,
    out: Path = Path("pipeline.yaml"),
    data: str = "",
    graph: Path = Path("dvc.yaml"),
    development: bool = False,
) -> int:
    """Write the pipeline of these parameters as a package for Kubeflow Pipelines, if `sixstream kfp lint` accepts it.

    Args:
        params: the parameters; `compute` says what tasks get.
        out: the package.
        data: raw data, a folder or an object REMOTE/files/md5/… of a DVC remote (default: data/raw/<dataset>).
        graph: the stages.
        development: accept an image that is named by a tag.

    Raises:
        UserError: the package would not run well on a cluster.
    """
    compile_to(params, out, data, graph)
    wrong = lint(load_package(out), development)
    if wrong:
        out.unlink()
        raise UserError("\n".join(["the pipeline was not written:", *wrong]))
    print(f"pipeline: {out}")
    return 0


def kfp_lint(package: Path, /, *, development: bool = False) -> int:
    """Say what is known to break on clusters in a compiled package; the exit code is 1 if there is anything.

    Args:
        package: the compiled pipeline.
        development: accept images that are named by a tag.
    """
    wrong = lint(load_package(package), development)
    print("\n".join(wrong or [f"{package}: nothing wrong"]))
    return 1 if wrong else 0


def compile_to(params: Params, out: Path, data: str, graph: Path, retries: bool = True) -> None:
    """Compile the pipeline of `params` into the file `out`."""
    from kfp import compiler

    aside = out.with_name(f".{out.stem}.compiling.yaml")  # kfp goes by the suffix
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        compiler.Compiler().compile(build(params, data, graph, retries), str(aside))
        write_bytes(out, aside.read_bytes())
    finally:
        aside.unlink(missing_ok=True)


def build(params: Params, data: str, graph: Path, retries: bool) -> Any:
    """The pipeline as kfp has it."""
    from kfp import dsl

    order = stages(params, graph)
    _check_names(order, params.compute)
    whole = json.dumps(plain(params))  # the order of members is that of sums and tables

    def pipeline() -> None:
        tasks: dict[str, Any] = {}
        for stage in order:
            inputs = {identifier(name): (tasks[name], path) for name, path in stage.needs.items()}
            for path in stage.inputs:
                if not any(Path(out).is_relative_to(path) for out in stage.needs.values()):
                    tasks.setdefault(RAW, _raw_data(data or str(Path(path).absolute())))
                    inputs[RAW] = (tasks[RAW], path)
            component = dsl.component(base_image=params.compute.image, install_kfp_package=False)(
                _function(stage, list(inputs))
            )
            resources = params.compute.of(stage.verb)
            shared = (
                f" --processes {resources.accelerators}" if stage.verb == "train" and resources.accelerators > 1 else ""
            )
            task = component(
                name=stage.name,
                command=stage.command + shared,
                settings=json.dumps(stage.params, sort_keys=True),  # kfp has no null
                places={"out": stage.out} | {name: path for name, (_, path) in inputs.items()},
                **{name: _output(before) for name, (before, _) in inputs.items()},
            )
            task.set_display_name(stage.name.replace("@", " "))
            task.set_env_variable(PARAMS, whole)
            task.after(*(tasks[name] for name in stage.follows))
            _equip(task, params.compute, resources, retries)
            tasks[stage.name] = task

    logging.getLogger("kfp").setLevel(logging.WARNING)
    return dsl.pipeline(name=f"sixstream-{params.dataset}".lower().replace("_", "-"))(pipeline)


def identifier(name: str) -> str:
    """The name of a stage as Python can have it."""
    return re.sub(r"\W", "_", name)


def _check_names(order: list[Stage], compute: Compute) -> None:
    """Raise UserError for stages that kfp could not tell apart, and for resources of no stage."""
    by_identifier: dict[str, str] = {}
    for stage in order:
        other = by_identifier.setdefault(identifier(stage.name), stage.name)
        if other != stage.name:
            raise UserError(f"{stage.name} and {other}: kfp cannot tell these names apart; rename a member")
    for verb in compute.tasks:
        if verb not in VERBS:
            known = ", ".join(dict.fromkeys(stage.verb for stage in order))
            raise UserError(f"compute.tasks.{verb}: no stage runs this verb; there are {known}")


def _function(stage: Stage, inputs: list[str]) -> Callable[..., None]:
    """A function with one argument per input: kfp takes its signature and its source as the task's component."""
    from kfp.dsl import Artifact, Input, Output

    source = SOURCE.format(
        function=identifier(stage.name),
        inputs="".join(f", {name}: Input[Artifact]" for name in inputs),
        artifacts="{" + ", ".join(f'"{name}": {name}' for name in inputs) + "}",
    )
    file = f"<stage {stage.name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # where `inspect` looks
    scope: dict[str, Any] = {"Artifact": Artifact, "Input": Input, "Output": Output}
    exec(compile(source, file, "exec"), scope)
    function: Callable[..., None] = scope[identifier(stage.name)]
    return function


def _raw_data(uri: str) -> Any:
    """The raw data as an artifact. Equal address and metadata give an equal artifact, so kfp's cache knows it."""
    from kfp import dsl

    md5 = object_md5(uri)
    task = dsl.importer(
        artifact_uri=uri,
        artifact_class=dsl.Artifact,
        reimport=False,
        metadata={"md5": md5} if md5 else None,
    )
    return task.set_display_name("raw data")


def _output(task: Any) -> Any:
    return task.outputs["out"] if "out" in task.outputs else task.output


def _equip(task: Any, compute: Compute, resources: Resources, retries: bool) -> None:
    """Give a task its resources, variables and retries."""
    from kfp import kubernetes

    task.set_cpu_request(resources.cpu).set_cpu_limit(resources.cpu)
    task.set_memory_request(resources.memory).set_memory_limit(resources.memory)
    if resources.accelerators:
        task.set_accelerator_type(resources.accelerator).set_accelerator_limit(resources.accelerators)
    if resources.accelerators > 1:  # a container's own 64 MB are too little for processes that exchange gradients
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory")
    if retries and resources.retries:
        # kfp's window is one hour from the first attempt, in which a late pre-emption is final.
        task.set_retry(
            resources.retries,
            backoff_duration=f"{resources.backoff}s",
            backoff_factor=2,
            backoff_max_duration=f"{round(3600 * resources.window)}s",
        )
    for name, value in compute.env.items():
        task.set_env_variable(name, value)
    for secret, keys in compute.secrets.items():
        kubernetes.use_secret_as_env(task, secret, keys)
    for label, value in resources.node_selector.items():
        kubernetes.add_node_selector(task, label, value)
    for taint in resources.tolerations:
        kubernetes.add_toleration(task, taint.key, taint.operator, taint.value, taint.effect)
