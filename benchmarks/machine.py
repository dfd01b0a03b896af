"""What a figure was measured on, and how: the machine's name, the commit, best times, largest memory."""

import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


def machine(threads: int) -> dict[str, Any]:
    """Processor, threads, versions and commit."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0] if models else name
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return {"processor": name, "threads": threads, "torch": torch.__version__, "commit": commit or "unknown"}


def best_seconds(forms: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Least CPU seconds of each form, which take turns; the first round warms up.

    CPU seconds of this process, all threads together: neighbours on a shared machine hardly touch them.
    """
    best = dict.fromkeys(forms, float("inf"))
    for number in range(rounds + 1):
        for name, form in forms.items():
            began = time.process_time()
            form()
            if number:
                best[name] = min(best[name], time.process_time() - began)
    return best


def resident_peak_gib() -> float:
    """Largest resident memory of this process so far, on Linux."""
    # Not ru_maxrss, which a new process inherits from its parent.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return float(line.split()[1]) / 1024**2
