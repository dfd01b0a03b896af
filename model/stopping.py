"""SIGTERM and Ctrl-C as a wish: the work under way is finished and saved, then it ends."""

import ctypes
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

AGAIN = 2.0  # seconds after which a further Ctrl-C ends at once; torchrun passes the first one on a second time
_PARENT_DEATH_SIGNAL = 1  # of Linux's prctl
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@contextmanager
def termination_noted(then: Callable[[], None] | None = None) -> Iterator[Callable[[], bool]]:
    """Meanwhile SIGTERM and SIGINT do not end the process: they are noted, and `then` is called.

    Yields a function that says whether one came. A second Ctrl-C raises KeyboardInterrupt. Python handles signals in
    the main thread only; elsewhere the process ends as always.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came: list[float] = []

    def note(number: int, frame: Any) -> None:
        came.append(time.monotonic())
        if then is not None:
            then()
        if number == signal.SIGINT and came[-1] - came[0] > AGAIN:
            raise KeyboardInterrupt

    former = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def end_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Have this process get a signal when its parent ends, however it ends; on Linux, elsewhere it does nothing."""
    if _LIBC is not None:
        _LIBC.prctl(_PARENT_DEATH_SIGNAL, int(number))


def end_with_starter(number: signal.Signals = signal.SIGTERM) -> None:
    """As `end_with_parent`; where the parent is a shell that waits for this command, also when the shell's parent ends.

    A program that starts a command by `sh -c` and is killed leaves the shell alive, and with it the command.
    """
    end_with_parent(number)
    shell = _name_and_parent(os.getppid())
    if shell is None or not shell[0].endswith("sh"):
        return
    try:
        starter = os.pidfd_open(shell[1])
    except (OSError, AttributeError):  # gone already, or a system without such handles
        return

    def wait() -> None:
        poll = select.poll()
        poll.register(starter, select.POLLIN)
        poll.poll()
        os.kill(os.getpid(), number)

    threading.Thread(target=wait, name="starter", daemon=True).start()


def _name_and_parent(process: int) -> tuple[str, int] | None:
    """Of a process, where the system tells: the name of its program and the number of its parent."""
    with suppress(OSError, ValueError, IndexError):
        text = Path(f"/proc/{process}/stat").read_text()
        name, rest = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 1 :]
        return name, int(rest.split()[1])
    return None
