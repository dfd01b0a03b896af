"""The preparation that turns raw clips into the clips of a store: the same for data sets and for predictions."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from model.errors import UserError
from model.layouts import Layout
from model.prepare import normalise_2d, normalise_3d
from model.store import Clip


def _normalise_3d(clip: Clip, layout: Layout, **options: Any) -> Clip:
    return replace(clip, joints=normalise_3d(clip.joints, layout, **options))


def _normalise_2d(clip: Clip, layout: Layout, **options: Any) -> Clip:
    if clip.image_size is None:
        raise UserError(f"sample {clip.id}: has no image size (height, width), which normalise_2d needs; add it")
    return replace(clip, joints=normalise_2d(clip.joints, clip.image_size, **options))


# What a step does, and the function of model.prepare that says which options it takes.
PREPARATIONS: dict[str, tuple[Callable[..., Clip], Callable[..., Any]]] = {
    "normalise_3d": (_normalise_3d, normalise_3d),
    "normalise_2d": (_normalise_2d, normalise_2d),
}


def prepare_clips(clips: Iterable[Clip], steps: Sequence[Mapping[str, Any]], layout: Layout) -> Iterator[Clip]:
    """Apply the steps of a recipe, {"name": …, options}, to every clip in order.

    Raises UserError at once for an unknown step or option, later naming a clip that a step cannot use.
    """
    chosen = [_checked(step) for step in steps]

    def prepared() -> Iterator[Clip]:
        for clip in clips:
            for apply, options in chosen:
                clip = apply(clip, layout, **options)
            yield clip

    return prepared()


def _checked(step: Mapping[str, Any]) -> tuple[Callable[..., Clip], dict[str, Any]]:
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in step.items()}
    name = options.pop("name", None)
    if name not in PREPARATIONS:
        raise UserError(f"prepare: {name!r} is no step; there are {', '.join(PREPARATIONS)}")
    apply, function = PREPARATIONS[name]
    known = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UserError(f"prepare: {name} has no option {', '.join(unknown)}; it takes {', '.join(known)}")
    return apply, options
