"""Inside a Kubeflow task: the inputs are laid where dvc.yaml has them, and the stage's own command line is run.

kfp is not imported here; what it hands over are its artifacts: objects with `path`, `uri` and `metadata`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.files import write_text
from components.storage import dvc_md5, fetch_dvc
from components.train import WORK

PARAMS = "SIXSTREAM_PARAMS"  # the whole of the parameters; a task's own are what kfp's cache looks at
CHECKPOINTS = "SIXSTREAM_CHECKPOINTS"  # folder that outlives a task, where a repeated training finds its own
OBJECTS = "/files/md5/"  # in the address of an object of a DVC remote


def run_stage(name: str, command: str, places: Mapping[str, str], artifacts: Mapping[str, Any], out: Any) -> None:
    """Run `sixstream VERB …` in an empty folder that holds params.yaml and the inputs, and hand its output over.

    Args:
        name: name of the stage.
        command: command line, as in dvc.yaml.
        places: path of every input and of the output (`out`) in that folder.
        artifacts: the inputs by the names in `places`.
        out: the output; its metadata get the stage and the md5 that DVC would record.

    Raises:
        SystemExit: the command failed, with its exit code.
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
        words = command.split()
        assert words[0] == "sixstream"
        stage = " ".join(["kfp", name, os.environ.get("KFP_POD_NAME", "")]).strip()
        environment = {**os.environ, "SIXSTREAM_STAGE": stage}
        done = subprocess.run([sys.executable, "-m", "pipeline.cli", *words[1:]], cwd=folder, env=environment)
        if done.returncode:
            raise SystemExit(done.returncode)
        made = folder / places["out"]
        out.metadata.update({"stage": name, "md5": dvc_md5(made)})
        shutil.move(made, out.path)


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
