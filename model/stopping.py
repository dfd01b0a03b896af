"""SIGTERM as a wish: the work under way is finished and saved, then it ends."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def termination_noted(then: Callable[[], None] | None = None) -> Iterator[Callable[[], bool]]:
    """Meanwhile SIGTERM does not end the process: it is noted, and `then` is called.

    Yields a function that says whether it came. Python handles signals in the main thread only; elsewhere the
    process ends on SIGTERM as always.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came = False

    def note(number: int, frame: Any) -> None:
        nonlocal came
        came = True
        if then is not None:
            then()

    former = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGTERM, former)
