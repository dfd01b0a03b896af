"""Several processes that train as one, one per GPU (or CPU part) of this machine."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from model.errors import Stopped, UserError
from model.stopping import end_with_parent, termination_noted


def spread_over(processes: int) -> bool:
    """Run this command once per process by torchrun, which tells each its rank; whether that was done.

    False in one of these processes, and where one is enough. Raises UserError when a process fails,
    Stopped when SIGTERM or Ctrl-C came, which is passed on and waited for.
    """
    if processes <= 1 or "WORLD_SIZE" in os.environ:
        return False
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["-m", "pipeline.cli", *sys.argv[1:]]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    # In a process group of its own, or Ctrl-C would reach every process before the wish to save does.
    group = subprocess.Popen(command, env=environment, process_group=0, preexec_fn=end_with_parent)
    with termination_noted(group.terminate) as asked_to_stop:
        code = group.wait()
    if code and asked_to_stop():
        raise Stopped(f"asked to end: {processes} processes have ended; what they saved stands above")
    if code:
        raise UserError(f"training in {processes} processes failed (exit code {code}); the message stands above")
    return True


@contextmanager
def joined() -> Iterator[tuple[str, int]]:
    """Join the processes that torchrun started, if there are any; yields the device and rank of this one."""
    import torch

    from model.distributed import barrier, init_from_env

    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    rank, _ = init_from_env(device)
    try:
        yield device, rank
    except Stopped:
        # Every rank stops, but rank 0 may still track and upload, and torchrun would end it with the first that ends.
        barrier()
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
