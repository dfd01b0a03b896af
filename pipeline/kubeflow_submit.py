"""`sixstream kfp submit`, `status` and `logs`: a package to the server, its run followed to the end.

Exit codes: 0 the run succeeded, 1 it failed or was lost, 2 a mistake of the user's (here or in a task), 3 it was
cancelled, 75 the server is away.
"""

import hashlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.params import Params
from model.errors import UserError
from pipeline.kubeflow import compile_to
from pipeline.kubeflow_api import Api, Away, Gone
from pipeline.kubeflow_lint import lint, load_package
from pipeline.task import MISTAKE

FAILED, MISTAKEN, CANCELLED = 1, 2, 3
ENDS = {"SUCCEEDED": 0, "SKIPPED": 0, "FAILED": FAILED, "CANCELED": CANCELLED}
BAD = ("FAILED", "SYSTEM_ERROR")
PATIENCE = 900.0  # seconds in which the server may be away while a run is watched: it restarts, networks flap
TAIL = 20  # lines of a failed task's log


def kfp_submit(
    package: Path | None = None,
    /,
    *,
    params: Params | None,
    endpoint: str = "",
    token: str = "",
    token_file: Path | None = None,
    ca: Path | None = None,
    namespace: str = "",
    experiment: str = "",
    name: str = "",
    account: str = "",
    data: str = "",
    graph: Path = Path("dvc.yaml"),
    pipeline: str = "members",
    out: Path = Path("pipeline.yaml"),
    development: bool = False,
    watch: bool = False,
    resubmit: int = 0,
    poll: float = 10.0,
) -> int:
    """Compile (unless a package is given), lint, upload a version, make a run, and with --watch follow it to its end.

    Args:
        package: a compiled pipeline (default: compile these parameters into --out).
        params: the parameters; not needed beside a package.
        endpoint: the server, such as http://localhost:8888 (default: KF_PIPELINES_ENDPOINT).
        token: bearer token; others of this machine can see it, so rather use --token-file or SIXSTREAM_KFP_TOKEN.
        token_file: file with the bearer token, read anew for every request.
        ca: certificate authority of the server, in PEM.
        namespace: namespace of the run, needed where the server keeps users apart.
        experiment: experiment on the server (default: dataset-protocol, or the package's name).
        name: name of the run (default: the pipeline's and its version's).
        account: Kubernetes service account of the run's pods (default: the server's).
        data: as for kfp compile.
        graph: the stages.
        pipeline: as for kfp compile.
        out: where the compiled package is written.
        development: accept images that are named by a tag.
        watch: follow the run; the exit code is the run's.
        resubmit: start a failed or lost run anew, so many times; what is finished comes from kfp's cache. Watches.
        poll: seconds between two looks at the run.

    Raises:
        UserError: the package would break, or the server refuses it.
        Away: the server does not answer.
    """
    if package is None:
        if params is None:
            raise UserError("params.yaml: no such file; run this in a folder with parameters, or name a package")
        compile_to(params, out, data, graph, pipeline=pipeline)
        package = out
    spec = load_package(package)
    wrong = lint(spec, development)
    if wrong:
        raise UserError("\n".join([f"{package} was not submitted:", *wrong]))
    api = Api(endpoint, token, token_file, namespace, ca)
    api.healthz()
    called = str(spec["pipelineInfo"]["name"])
    version = hashlib.sha256(package.read_bytes()).hexdigest()[:12]
    uploaded = api.version(package, called, f"{called}-{version}")
    group = api.experiment(experiment or (f"{params.dataset}-{params.protocol}" if params else called))
    title = name or f"{called}-{version}"
    run = api.start(group, title, uploaded, account)
    print(f"run: {run}")
    if not watch and not resubmit:
        return 0
    for attempt in range(1, resubmit + 1):
        code = follow(api, run, poll)
        if code != FAILED:
            return code
        run = api.start(group, f"{title}-{attempt}", uploaded, account)
        print(f"run: {run} (start {attempt} of {resubmit} after a failure; what is finished comes from the cache)")
    return follow(api, run, poll)


def kfp_status(
    run: str,
    /,
    *,
    endpoint: str = "",
    token: str = "",
    token_file: Path | None = None,
    ca: Path | None = None,
    namespace: str = "",
    watch: bool = False,
    poll: float = 10.0,
) -> int:
    """Print a run's state and its tasks'; the exit code is the run's, 0 while it goes on.

    Args:
        run: id of the run.
        endpoint: as for kfp submit.
        token: as for kfp submit.
        token_file: as for kfp submit.
        ca: as for kfp submit.
        namespace: as for kfp submit.
        watch: follow the run to its end.
        poll: seconds between two looks at it.

    Raises:
        UserError: there is no such run.
    """
    api = Api(endpoint, token, token_file, namespace, ca)
    found = api.run(run)
    if watch:
        return follow(api, run, poll)
    print(f"{run}: {found.state}")
    for task in tasks_of(found):
        print(f"  {task.display_name}: {task.state}{_cause(task)}")
    return ENDS.get(str(found.state), 0)


def kfp_logs(
    run: str,
    /,
    *,
    task: str = "",
    endpoint: str = "",
    token: str = "",
    token_file: Path | None = None,
    ca: Path | None = None,
    namespace: str = "",
) -> int:
    """Print what the tasks of a run have printed.

    Args:
        run: id of the run.
        task: name of one task, such as `train protogcn-joint-s0` (default: all).
        endpoint: as for kfp submit.
        token: as for kfp submit.
        token_file: as for kfp submit.
        ca: as for kfp submit.
        namespace: as for kfp submit.

    Raises:
        UserError: there is no such run or task.
    """
    api = Api(endpoint, token, token_file, namespace, ca)
    found = list(tasks_of(api.run(run)))
    chosen = [one for one in found if not task or task in (one.display_name, one.task_id)]
    if not chosen:
        raise UserError(
            f"run {run} has no task {task!r}; there are {', '.join(str(one.display_name) for one in found)}"
        )
    for one in chosen:
        print(f"== {one.display_name}: {one.state}")
        text = log_of(api, run, one)
        print(text or f"no log is kept; its pods: kubectl get pods -A -l pipeline/runid={run}")
    return 0


def follow(api: Api, run: str, poll: float) -> int:
    """Print every change of a run and its tasks until it has ended; its exit code.

    A task that failed by a mistake of the user's would be retried for hours in vain: the run is ended.

    Raises:
        Away: the server was away for longer than PATIENCE; the run goes on without us.
    """
    seen: dict[str, str] = {}
    looked = time.monotonic()
    while True:
        try:
            found = api.run(run)
        except Gone as error:
            print(f"the run is lost: {error}", file=sys.stderr)
            return FAILED
        except Away as error:
            if time.monotonic() - looked > PATIENCE:
                raise Away(f"{error}; the run goes on: `sixstream kfp status {run} --watch` follows it again") from None
            print(f"waiting: {error}", file=sys.stderr)
            time.sleep(poll)
            continue
        looked = time.monotonic()
        for task in tasks_of(found):
            if seen.get(task.task_id) != task.state:
                seen[task.task_id] = task.state
                print(f"{time.strftime('%H:%M:%S')}  {task.display_name}: {task.state}{_cause(task)}", flush=True)
                if task.state in BAD and _mistaken(api, run, task):
                    if found.state not in ENDS:
                        api.terminate(run)
                    print(f"run {run}: ended, for no retry mends a mistake; mend it and submit again", file=sys.stderr)
                    return MISTAKEN
        if found.state in ENDS:
            message = found.error.message if found.error and found.error.message else ""
            print(f"run {run}: {found.state}{': ' + message if message else ''}")
            return ENDS[found.state]
        time.sleep(poll)


def tasks_of(run: Any) -> Iterator[Any]:
    """The tasks of a run that a reader knows by name; drivers are the machinery's own."""
    details = run.run_details.task_details if run.run_details else None
    for task in details or []:
        name = str(task.display_name or "")
        if name and name != "root" and not name.endswith("-driver"):
            yield task


def log_of(api: Api, run: str, task: Any) -> str:
    """What the pods of a task printed."""
    nodes = [task.pod_name, *(child.pod_name for child in task.child_tasks or [])]
    return "".join(api.log(run, node) for node in dict.fromkeys(nodes) if node)


def _mistaken(api: Api, run: str, task: Any) -> bool:
    """Show how the log of a failed task ends; whether it says that the mistake is the user's."""
    try:
        lines = log_of(api, run, task).splitlines()
    except (Away, UserError) as error:
        print(f"    (its log: {error})", file=sys.stderr)
        return False
    for line in lines[-TAIL:]:
        print(f"    {line}")
    return any(MISTAKE in line for line in lines)


def _cause(task: Any) -> str:
    return f" ({task.error.message})" if task.error and task.error.message else ""
