"""One line of progress: a bar that redraws itself on a terminal, a line an epoch elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

Item = TypeVar("Item")

_REDRAW = 0.2  # seconds
_BAR = 20  # characters


def counted(items: Iterable[Item], total: int, what: str, stream: TextIO | None = None) -> Iterator[Item]:
    """The items, with a bar on a terminal: how many of about `total`, how many a second, the time left."""
    stream = sys.stderr if stream is None else stream
    shown = stream.isatty()
    began = drawn = time.perf_counter()
    for number, item in enumerate(items, 1):
        now = time.perf_counter()
        if shown and now - drawn >= _REDRAW:
            drawn, full = now, min(_BAR * number // max(total, 1), _BAR)
            speed = number / (now - began)
            left = max(total - number, 0) / speed
            stream.write(
                f"\r\033[K{what} {number}/{total} [{'#' * full}{'.' * (_BAR - full)}] {speed:.0f}/s  left {left:.0f} s"
            )
            stream.flush()
        yield item
    if shown:
        stream.write("\r\033[K")


class Progress:
    """Shows epoch, loss, samples/s, the share of time spent waiting for data, and the time left."""

    def __init__(self, epochs: int, done: int, steps: int, *, shown: bool, stream: TextIO | None = None) -> None:
        self.epochs = epochs
        self.steps = steps
        self.stream = sys.stderr if stream is None else stream
        self.shown = shown
        self.on_terminal = shown and self.stream.isatty()
        self.first = done
        self.began = time.perf_counter()
        self.drawn = 0.0

    def say(self, text: str) -> None:
        """Print a line of its own."""
        if self.shown:
            self._erase()
            print(text, file=self.stream, flush=True)

    def step(self, epoch: int, step: int, loss: float, samples_per_s: float, wait_share: float) -> None:
        """After `step` (from 1) of `epoch` (from 1): redraw the bar if it is time."""
        now = time.perf_counter()
        if not self.on_terminal or now - self.drawn < _REDRAW:
            return
        self.drawn = now
        full = _BAR * step // self.steps
        left = self._left(epoch - 1 + step / self.steps)
        self._erase()
        self.stream.write(
            f"epoch {epoch}/{self.epochs} [{'#' * full}{'.' * (_BAR - full)}] loss {loss:.4f}  "
            f"{samples_per_s:.0f} samples/s  wait {wait_share:.0%}  left {left}"
        )
        self.stream.flush()

    def epoch(self, epoch: int, record: dict[str, float]) -> None:
        """After an epoch: one line with its figures."""
        dev = f"  dev top1 {record['dev/top1']:.4f}" if "dev/top1" in record else ""
        self.say(
            f"epoch {epoch}/{self.epochs}  loss {record['train/loss']:.4f}{dev}  "
            f"{record['samples_per_s']:.0f} samples/s  wait {record['wait_share']:.0%}  "
            f"{record['seconds']:.0f} s  left {self._left(epoch)}"
        )

    def _left(self, done: float) -> str:
        share = (done - self.first) / max(self.epochs - self.first, 1)
        if share <= 0:
            return "?"
        seconds = round((time.perf_counter() - self.began) * (1 - share) / share)
        hours, rest = divmod(seconds, 3600)
        return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"

    def _erase(self) -> None:
        if self.on_terminal:
            self.stream.write("\r\033[K")
