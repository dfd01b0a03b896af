"""A command ends with the program that started it, also when a shell stands between them."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.workspace import ROOT

COMMAND = """
import pathlib, signal, sys, time
from model.stopping import end_with_starter, termination_noted
with termination_noted() as asked:
    end_with_starter()
    pathlib.Path("ready").touch()
    while not asked():
        time.sleep(0.01)
pathlib.Path("ended").touch()
"""
STARTER = "import subprocess, sys; subprocess.run(sys.argv[1], shell=True, executable='/bin/sh')"


@pytest.mark.skipif(sys.platform != "linux", reason="a signal at the parent's end is Linux's")
@pytest.mark.parametrize("line", ["{} program.py", "{} program.py; true", "exec env {} program.py"])
def test_killing_the_starter_ends_the_command(tmp_path: Path, line: str) -> None:
    (tmp_path / "program.py").write_text(COMMAND)
    shell = f"export PYTHONPATH={ROOT}; {line.format(sys.executable)}"
    starter = subprocess.Popen([sys.executable, "-c", STARTER, shell], cwd=tmp_path)
    appears(tmp_path / "ready")
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    appears(tmp_path / "ended")


def appears(path: Path) -> None:
    limit = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < limit, f"{path.name} never came"
        time.sleep(0.01)
