"""What a result was made with: the commit of the code, the machine and the installed packages."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

PACKAGES = ("model", "components", "pipeline")


def code_commit(root: Path) -> str:
    """The git commit of the code at `root`, marked when its packages differ; outside a repository what the image says.

    Other files do not count: dvc.lock changes with every stage, and parameters are tracked by themselves.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-changed" if git("status", "--porcelain", "--", *PACKAGES) else "")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("SIXSTREAM_COMMIT", "unknown")


def device_name(device: str) -> str:
    """What computes, as people call it: the GPU's name, or CPU with its threads."""
    import torch

    return torch.cuda.get_device_name() if device.startswith("cuda") else f"CPU, {torch.get_num_threads()} threads"


def orchestrator() -> str:
    """Who runs this stage: `kfp train@joint POD`, `dvc train@joint`, or the command line."""
    stage = os.environ.get("DVC_STAGE")
    return os.environ.get("SIXSTREAM_STAGE") or (f"dvc {stage}" if stage else "command line")


def environment(root: Path) -> tuple[dict[str, str], str]:
    """Tags that describe code and machine, and the installed packages as requirement lines."""
    found = {item.metadata["Name"]: item.version for item in importlib.metadata.distributions()}
    tags = {
        "mlflow.source.git.commit": code_commit(root),
        "sixstream.stage": orchestrator(),
        "sixstream.python": platform.python_version(),
        "sixstream.platform": platform.platform(),
        "sixstream.cpus": str(os.cpu_count()),
        "sixstream.torch": found.get("torch", "not installed"),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        tags["sixstream.gpu"] = torch.cuda.get_device_name()
    return tags, "".join(f"{name}=={found[name]}\n" for name in sorted(found, key=str.lower))
