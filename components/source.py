"""What every reader gives back."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from model.layouts import Layout
from model.store import Clip


@dataclass(frozen=True)
class Source:
    """Clips with what is known about them.

    `clips` may be read once and makes each clip as it is asked for. A clip that is set aside joins `excluded` as
    (id, reason) and leaves `splits` at that moment: both are complete when `clips` is exhausted.
    """

    clips: Iterator[Clip]
    layout: Layout
    classes: list[str]
    splits: dict[str, list[str]]
    channels: list[str]
    excluded: list[tuple[str, str]] = field(default_factory=list)


def set_aside(id: str, reason: str, splits: dict[str, list[str]], excluded: list[tuple[str, str]]) -> None:
    """Take a clip out of every split and note the reason."""
    excluded.append((id, reason))
    for members in splits.values():
        if id in members:
            members.remove(id)
