"""Inside a Kubeflow task: the inputs are laid where dvc.yaml has them, and the stage's own command line is run.

kfp is not imported here; what it hands over are its artifacts: objects with `path`, `uri` and `metadata`.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Thread
from typing import Any

from components.facts import FACTS
from components.files import read_json, write_text
from components.storage import dvc_md5, fetch_dvc
from components.train import WORK
from model.errors import Stopped, UserError
from pipeline.trainjob import LOST, POD, TRAINJOB, run_on_nodes

PARAMS = "SIXSTREAM_PARAMS"  # the whole of the parameters; a task's own are what kfp's cache looks at
MISTAKE = "sixstream: no retry mends this (exit code 2)"  # by which who follows a run ends it
CHECKPOINTS = "SIXSTREAM_CHECKPOINTS"  # folder that outlives a task, where a repeated training finds its own
OBJECTS = "/files/md5/"  # in the address of an object of a DVC remote


def run_stages(names: str, commands: str, places: Mapping[str, str], artifacts: Mapping[str, Any], outs: Any) -> None:
    """Run `sixstream VERB …` in a folder of its own with params.yaml and the inputs, and hand its output over.

    Args:
        names: name of the stage, or of several (a line each) that run side by side on the same inputs.
        commands: command line as in dvc.yaml, a line each.
        places: path in that folder of every input, and of the output `out`, or of `out_0`, `out_1`, …
        artifacts: the inputs by the names in `places`.
        outs: the outputs; their metadata get the stage, the md5 that DVC would record, and what the verb tells.

    Raises:
        SystemExit: a command failed, with its exit code.
    """
    with tempfile.TemporaryDirectory(prefix="sixstream-") as scratch:
        folder = Path(scratch)
        write_text(folder / "params.yaml", os.environ[PARAMS])
        if os.environ.get(CHECKPOINTS):
            Path(os.environ[CHECKPOINTS]).mkdir(parents=True, exist_ok=True)
            (folder / WORK).parent.mkdir()
            (folder / WORK).symlink_to(os.environ[CHECKPOINTS], target_is_directory=True)
        for key, artifact in artifacts.items():
            _lay(artifact, folder / places[key])
        stages = list(zip(names.split("\n"), commands.split("\n"), outs, strict=True))
        told = [folder / f".facts-{k}.json" for k in range(len(stages))]
        if os.environ.get(TRAINJOB) and "SIXSTREAM_POD_UID" in os.environ:  # kfp's local runners have no pod: one node
            code = _on_nodes(folder, {places[key] for key in artifacts}, commands, places["out"], told[0])
        else:
            code = run_commands([command for _, command, _ in stages], [name for name, _, _ in stages], folder, told)
        if code:
            if code == 2:
                print(MISTAKE, flush=True)
            raise SystemExit(code)
        keys = ["out"] if len(stages) == 1 else [f"out_{k}" for k in range(len(stages))]
        for (name, _, out), key, facts in zip(stages, keys, told, strict=True):
            made = folder / places[key]
            out.metadata.update({"stage": name, "md5": dvc_md5(made)})
            if facts.exists():
                out.metadata.update(read_json(facts))
            shutil.move(made, out.path)


def _on_nodes(folder: Path, inputs: set[str], command: str, out: str, facts: Path) -> int:
    """Run one train command on several nodes; its exit code."""
    pod = {key: os.environ[f"SIXSTREAM_POD_{key.upper()}"] for key in POD}
    files = {path: dvc_md5(folder / path) for path in sorted({"params.yaml", *inputs})}
    given = json.loads(os.environ[TRAINJOB])
    try:
        return run_on_nodes(given, pod, command, folder, files, out, facts)
    except (UserError, Stopped) as error:
        print(f"sixstream: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, UserError) else LOST


def run_commands(commands: list[str], names: list[str], folder: Path, told: list[Path]) -> int:
    """Run command lines in `folder`, several at once; 0, or the exit code of the first that failed."""
    running = []
    share = str(max(1, (os.cpu_count() or 1) // len(commands)))
    for command, name, facts in zip(commands, names, told, strict=True):
        words = command.split()
        assert words[0] == "sixstream"
        stage = " ".join(["kfp", name, os.environ.get("KFP_POD_NAME", "")]).strip()
        environment = {**os.environ, FACTS: str(facts), "SIXSTREAM_STAGE": stage}
        if len(commands) > 1:
            environment.setdefault("OMP_NUM_THREADS", share)
        several: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        options = several if len(commands) > 1 else {}
        line = [sys.executable, "-m", "pipeline.cli", *words[1:]]
        running.append(subprocess.Popen(line, cwd=folder, env=environment, **options))
    readers = [Thread(target=_relay, args=(process.stdout, name)) for process, name in zip(running, names, strict=True)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    codes = [process.wait() for process in running]
    return next((code for code in codes if code), 0)


def _relay(lines: Iterable[str] | None, name: str) -> None:
    """Print lines with the name of the stage that they come from."""
    for line in lines or ():
        print(f"{name}: {line}", end="", flush=True)


def object_md5(uri: str) -> str | None:
    """The md5 in the address of an object of a DVC remote, `REMOTE/files/md5/ab/cdef…`; None for other addresses."""
    _, found, rest = uri.rpartition(OBJECTS)
    return rest.replace("/", "") if found else None


def _lay(artifact: Any, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    md5 = object_md5(artifact.uri)
    if md5:
        fetch_dvc(artifact.uri.rpartition(OBJECTS)[0], md5, to)
    else:
        to.symlink_to(Path(artifact.path).resolve(), target_is_directory=Path(artifact.path).is_dir())
