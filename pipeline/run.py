"""Run the whole pipeline through DVC, members one after another or side by side, and print its results."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from components.files import read_json
from components.params import Params
from model.errors import Stopped, UserError
from model.stopping import end_with_parent, termination_noted
from pipeline.graph import GOALS

UNFUSED = ("sample-data", "entry", "preprocess", "train", "evaluate")  # stages before there is a results table
SERVER_PATIENCE = 90.0  # seconds for the local tracking server to answer; it takes about 12
_RUNNING: list["subprocess.Popen[bytes]"] = []  # DVC's processes


def run(params: Params, jobs: int = 1, gpus: str = "", until: str = "") -> int:
    """Run what is out of date: preprocess, train, evaluate, ensemble, report, register; then print the results.

    Args:
        params: the parameters in params.yaml of this folder.
        jobs: members trained side by side; more than one starts a local tracking server for them.
        gpus: indices of the GPUs to spread the jobs over, comma separated; one job each unless jobs says more.
        until: last stage to run, such as ensemble, in place of report and register; before that there are no results.

    Raises:
        UserError: a stage failed; its own message stands above.
        Stopped: SIGTERM or Ctrl-C came; members under way have saved, and the same command goes on.
    """
    devices = [device for device in gpus.split(",") if device]
    jobs = max(jobs, len(devices))
    goals = (until,) if until else GOALS
    with termination_noted(_interrupt) as asked_to_stop:
        try:
            stale = _out_of_date(goals)
            if asked_to_stop():
                raise UserError("asked to end before anything was run")
            if stale:
                if jobs > 1:
                    dvc(["repro", "preprocess"])
                    with local_server(Path.cwd()) as address:
                        _members(params, jobs, devices, {"MLFLOW_TRACKING_URI": address}, asked_to_stop)
                dvc(["repro", *goals])
            else:
                print("everything is up to date")
        except UserError:
            if asked_to_stop():
                raise Stopped("asked to end; the same command goes on from the last checkpoints") from None
            raise
    return 0 if until in UNFUSED else results(params)


def results(params: Params) -> int:
    """Print the table of members and ensembles, where the report lies and how to open the tracking page.

    Args:
        params: the parameters in params.yaml of this folder.
    """
    place = f"{params.dataset}/{params.protocol}"
    metrics = read_json(Path("ensembles") / place / "metrics.json")
    print(f"\n{place}, {params.entry.split.name}\n")
    print("\n".join(table(metrics, list(params.members), list(params.ensembles))))
    report = Path("reports") / place / "report.html"
    print(f"\nreport: {report}" if report.exists() else "")
    print("MLflow: make ui   (or: mlflow ui --backend-store-uri sqlite:///mlflow.db)")
    return 0


def table(metrics: dict[str, Any], members: list[str], ensembles: list[str]) -> list[str]:
    """Lines of the results table: top-1, top-5, mean class in percent, per split."""
    rows = [(name, metrics["members"][name][metrics["members"][name]["chosen"]]) for name in members]
    rows += [(f"ensemble {name}", metrics["ensembles"][name]) for name in ensembles]
    splits = [split for split, value in rows[0][1].items() if isinstance(value, dict) and "top1" in value]
    width = max(len(name) for name, _ in rows)
    lines = []
    for split in splits:
        clips = rows[0][1][split]["count"]
        lines.append(f"{f'{split} ({clips} clips)':{width}}   top-1   top-5   mean class")
        for name, entry in rows:
            if split in entry:
                v = entry[split]
                lines.append(
                    f"{name:{width}}   {100 * v['top1']:5.2f}   {100 * v['top5']:5.2f}   {100 * v['mean_class']:5.2f}"
                )
        lines.append("")
    lines.append("mean class: mean over the classes in the ground truth of the share of their clips that is right")
    return lines


def _out_of_date(goals: tuple[str, ...]) -> bool:
    """Whether a stage that the goals need has changed; this is cheaper than having `dvc repro` find that out."""
    command = [sys.executable, "-m", "dvc", "status", "--json", "--with-deps", *goals]
    answer = subprocess.run(command, capture_output=True, text=True)
    try:
        return bool(json.loads(answer.stdout))
    except json.JSONDecodeError:
        return True


def _members(
    params: Params, jobs: int, devices: list[str], environment: dict[str, str], asked_to_stop: Callable[[], bool]
) -> None:
    """Train and evaluate every member, `jobs` at a time; all are tried before a failure is reported."""
    places: SimpleQueue[str | None] = SimpleQueue()
    for number in range(jobs):
        places.put(devices[number % len(devices)] if devices else None)
    threads = max(1, (os.cpu_count() or 1) // jobs)

    def one(name: str) -> bool:
        device = places.get()
        extra = dict(environment) | {"OMP_NUM_THREADS": str(threads)}
        if device is not None:
            extra["CUDA_VISIBLE_DEVICES"] = device
        try:
            if asked_to_stop():
                return False
            # DVC is serial, but several may work on one folder when each waits for the others' locks and touches
            # single stages: with what comes before them, one would want to write what another is reading.
            return dvc(["repro", "--single-item", f"train@{name}", f"evaluate@{name}"], extra, True, False) == 0
        finally:
            places.put(device)

    with ThreadPoolExecutor(jobs) as pool:
        done = list(pool.map(one, params.members))
    failed = [name for name, fine in zip(params.members, done, strict=True) if not fine]
    if failed:
        raise UserError(f"members that failed: {', '.join(failed)}; their messages stand above, the others are kept")


def dvc(arguments: list[str], extra: dict[str, str] | None = None, wait: bool = False, check: bool = True) -> int:
    command = [sys.executable, "-m", "dvc", *(["--wait-for-lock"] if wait else []), *arguments]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", **(extra or {})}
    # In a process group of its own: Ctrl-C reaches this process alone, which passes it on and waits.
    # Killed with it, at once: a DVC that lingers holds its locks against the next; the stage has a signal of its own.
    die = partial(end_with_parent, signal.SIGKILL)
    with subprocess.Popen(command, env=environment, process_group=0, preexec_fn=die) as process:
        _RUNNING.append(process)
        code = process.wait()
        _RUNNING.remove(process)
    if check and code:
        raise UserError(f"`dvc {' '.join(arguments)}` failed; the failing stage's message stands above")
    return code


def _interrupt() -> None:
    """Ctrl-C for DVC, which waits for its stage, and for the stage, which saves and ends."""
    for process in list(_RUNNING):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)


@contextmanager
def local_server(workspace: Path) -> Iterator[str]:
    """A tracking server over the embedded database, for members that run side by side; yields its address.

    A server named by MLFLOW_TRACKING_URI is used instead.
    """
    if os.environ.get("MLFLOW_TRACKING_URI"):
        yield os.environ["MLFLOW_TRACKING_URI"]
        return
    from components.tracking import connect

    connect(workspace)  # makes the database, so that the server finds it ready
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{workspace.resolve() / 'mlflow.db'}", "--no-serve-artifacts"]
    command += ["--default-artifact-root", (workspace.resolve() / "mlartifacts").as_uri()]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    log = workspace / ".work" / "mlflow-server.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as stream:
        server = subprocess.Popen(
            command, stdout=stream, stderr=stream, env=environment, process_group=0, preexec_fn=end_with_parent
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(address, server, log)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def _wait_for(address: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    limit = time.monotonic() + SERVER_PATIENCE
    while time.monotonic() < limit and server.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=2)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise UserError(f"the local tracking server did not start: see {log}, or run with --jobs 1")
