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

from components.compute import Cache, Compute, Resources
from components.files import write_bytes
from components.params import Params, parse_params
from components.storage import KEPT
from components.weights import REGISTERED
from model.errors import UserError
from pipeline.cli import VERBS
from pipeline.graph import Stage, plain, stages
from pipeline.kubeflow_lint import lint, load_package
from pipeline.task import PARAMS, object_md5
from pipeline.trainjob import POD, TRAINJOB, checked, manifest, settings

RAW = "raw"  # name of the task that brings the raw data in, where no stage makes them
CACHE = "/var/cache/sixstream"
FOLLOWING = {"cpu": "1", "memory": "4G", "accelerators": 0, "shm": ""}
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
SOURCE = """\
def {function}(name: str, command: str, settings: str, places: dict{outputs}{inputs}):
    from pipeline.task import run_stages
    run_stages(name, command, places, {artifacts}, {outs})
"""


def kfp_compile(
    params: Params,
    out: Path = Path("pipeline.yaml"),
    data: str = "",
    graph: Path = Path("dvc.yaml"),
    pipeline: str = "members",
    development: bool = False,
) -> int:
    """Write the pipeline of these parameters as a package for Kubeflow Pipelines, if `sixstream kfp lint` accepts it.

    Args:
        params: the parameters; `compute` says what tasks get.
        out: the package.
        data: raw data, a folder or an object REMOTE/files/md5/… of a DVC remote (default: data/raw/<dataset>).
        graph: the stages.
        pipeline: members (train, fuse, register), umurl (pre-training without labels) or a grid of `ablations`.
        development: accept an image that is named by a tag.

    Raises:
        UserError: the package would not run well on a cluster.
    """
    compile_to(params, out, data, graph, pipeline=pipeline)
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


def compile_to(
    params: Params, out: Path, data: str, graph: Path, retries: bool = True, pipeline: str = "members"
) -> None:
    """Compile the pipeline of `params` into the file `out`."""
    from kfp import compiler

    aside = out.with_name(f".{out.stem}.compiling.yaml")  # kfp goes by the suffix
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        compiler.Compiler().compile(build(params, data, graph, retries, pipeline), str(aside))
        write_bytes(out, aside.read_bytes())
    finally:
        aside.unlink(missing_ok=True)


def build(params: Params, data: str, graph: Path, retries: bool, pipeline: str) -> Any:
    """The pipeline as kfp has it."""
    from kfp import dsl

    params, kind = chosen(params, pipeline)
    order = stages(params, graph, kind)
    _check_names(order, params)
    whole = json.dumps(plain(params, kind))  # the order of members is that of sums and tables

    def tasks_of_stages() -> None:
        made: dict[str, Any] = {}  # stage → its artifact
        tasks: dict[str, Any] = {}  # stage → its task
        for group in groups(order, params.compute.of("train").members_per_task):
            first, several = group[0], len(group) > 1
            inputs = {identifier(name): (made[name], path) for name, path in first.needs.items()}
            for path in first.inputs:
                if not any(Path(out).is_relative_to(path) for out in first.needs.values()):
                    made.setdefault(RAW, _raw_data(data or str(Path(path).absolute())).output)
                    inputs[RAW] = (made[RAW], path)
            outs = [f"out_{k}" for k in range(len(group))] if several else ["out"]
            component = dsl.component(base_image=params.compute.image, install_kfp_package=False)(
                _function(first, list(inputs), outs)
            )
            resources = params.compute.of(first.verb)
            spread = first.verb == "train" and resources.nodes > 1
            if spread:  # the task itself only follows its nodes
                resources = resources.model_copy(update=FOLLOWING)
            shared = f" --processes {resources.accelerators}" if resources.accelerators > 1 else ""
            settings = {stage.name: stage.params for stage in group} if several else first.params
            task = component(
                name="\n".join(stage.name for stage in group),
                command="\n".join(stage.command + (shared if stage.verb == "train" else "") for stage in group),
                settings=json.dumps(settings, sort_keys=True),  # kfp has no null
                places=dict(zip(outs, (stage.out for stage in group), strict=True))
                | {name: path for name, (_, path) in inputs.items()},
                **{name: artifact for name, (artifact, _) in inputs.items()},
            )
            task.set_display_name(", ".join(stage.name.replace("@", " ") for stage in group))
            task.set_env_variable(PARAMS, whole)
            task.after(*(tasks[name] for name in first.follows))
            _equip(task, params.compute, resources, retries)
            if spread:
                _spread(task, params.compute)
            if RAW in inputs and params.compute.cache is not None:
                _keep_raw_data(task, params.compute.cache)
            for stage, out in zip(group, outs, strict=True):
                tasks[stage.name], made[stage.name] = task, task.outputs[out]

    logging.getLogger("kfp").setLevel(logging.WARNING)
    name = f"sixstream-{params.dataset}" + ("" if pipeline == "members" else f"-{pipeline}")
    return dsl.pipeline(name=name.lower().replace("_", "-"))(tasks_of_stages)


def chosen(params: Params, pipeline: str) -> tuple[Params, str]:
    """The parameters of a pipeline and its kind: those of a grid have its cells as members."""
    if pipeline in params.ablations:
        from pipeline.ablate import grid_content

        content, _ = grid_content(plain(params), pipeline, params.ablations[pipeline])
        return parse_params(content, pipeline).model_copy(update={"compute": params.compute}), "ablation"
    if pipeline not in ("members", "umurl"):
        raise UserError(f"--pipeline {pipeline}: choose {', '.join(['members', 'umurl', *params.ablations])}")
    return params, pipeline


def groups(order: list[Stage], members: int) -> list[list[Stage]]:
    """The stages as tasks run them: `members` trainings to a task, at the place of the first; the others one by one."""
    trainings = [stage for stage in order if stage.verb == "train"]
    chunks = [trainings[start : start + members] for start in range(0, len(trainings), members)]
    at = {chunk[0].name: chunk for chunk in chunks}
    return [at.get(stage.name, [stage]) for stage in order if stage.verb != "train" or stage.name in at]


def identifier(name: str) -> str:
    """The name of a stage as Python can have it."""
    return re.sub(r"\W", "_", name)


def _check_names(order: list[Stage], params: Params) -> None:
    """Raise UserError for stages that kfp could not tell apart, resources of no stage, files that pods do not see."""
    by_identifier: dict[str, str] = {}
    for stage in order:
        other = by_identifier.setdefault(identifier(stage.name), stage.name)
        if other != stage.name:
            raise UserError(f"{stage.name} and {other}: kfp cannot tell these names apart; rename a member")
    for verb in params.compute.tasks:
        if verb not in VERBS:
            known = ", ".join(dict.fromkeys(stage.verb for stage in order))
            raise UserError(f"compute.tasks.{verb}: no stage runs this verb; there are {known}")
    for name, member in params.members.items():
        if member.weights and not member.weights.startswith(REGISTERED):
            raise UserError(
                f"members.{name}.weights: {member.weights} is a file of this machine, which no pod sees; register it "
                f"(`sixstream checkpoint import` does so with originals) and name it as models:/NAME/VERSION"
            )


def _function(stage: Stage, inputs: list[str], outs: list[str]) -> Callable[..., None]:
    """A function with one argument per input and output: kfp takes signature and source as the task's component."""
    from kfp.dsl import Artifact, Input, Output

    source = SOURCE.format(
        function=identifier(stage.name),
        inputs="".join(f", {name}: Input[Artifact]" for name in inputs),
        outputs="".join(f", {name}: Output[Artifact]" for name in outs),
        outs=f"[{', '.join(outs)}]",
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


def _equip(task: Any, compute: Compute, resources: Resources, retries: bool) -> None:
    """Give a task its resources, variables and retries."""
    from kfp import kubernetes

    task.set_cpu_request(resources.cpu).set_cpu_limit(resources.cpu)
    task.set_memory_request(resources.memory).set_memory_limit(resources.memory)
    if resources.accelerators:
        task.set_accelerator_type(resources.accelerator).set_accelerator_limit(resources.accelerators)
    if resources.accelerators > 1 or resources.shm:  # a container's own 64 MB are too little to exchange gradients
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=resources.shm or None)
    if resources.timeout is not None:
        kubernetes.set_timeout(task, round(3600 * resources.timeout))
    # kfp itself forbids privilege escalation and drops all capabilities.
    kubernetes.set_security_context(task, run_as_user=compute.user, run_as_group=compute.user, run_as_non_root=True)
    if compute.pull_secrets:
        kubernetes.set_image_pull_secrets(task, compute.pull_secrets)
    if compute.queue:
        kubernetes.add_pod_label(task, QUEUE_LABEL, compute.queue)
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


def _spread(task: Any, compute: Compute) -> None:
    """Have a train task run its command on several nodes, in a TrainJob that its own pod owns."""
    from kfp import kubernetes

    given = settings(compute)
    checked(manifest(json.loads(given), "name", {key: key for key in POD}, "{}"))
    task.set_env_variable(TRAINJOB, given)
    for key, path in POD.items():
        kubernetes.use_field_path_as_env(task, f"SIXSTREAM_POD_{key.upper()}", path)


def _keep_raw_data(task: Any, cache: Cache) -> None:
    """Give a task the volume in which fetched raw data stay."""
    from kfp import kubernetes

    if cache.claim:
        kubernetes.mount_pvc(task, cache.claim, CACHE)
    else:
        kubernetes.add_ephemeral_volume(
            task, "raw-data", CACHE, ["ReadWriteOnce"], cache.size, cache.storage_class or None
        )
    task.set_env_variable(KEPT, CACHE)
