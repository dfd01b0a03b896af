"""From a recipe in plain values to the clips that train, validate or test a member.

Training, evaluation and prediction all come through here, so that a served model sees what a trained one saw.
A recipe is a dictionary with the keys `stream, clip_length, test_clips, sampler, persons, augment` and, for graph
networks, `difference, finish, normalise_2d`, for heat maps `heatmap` (arguments of HeatmapClips).
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from model.clips import Clips
from model.heatmap_clips import HeatmapClips
from model.store import Store
from model.streams import HEATMAP_STREAMS

AnyClips = Clips | HeatmapClips


class Feed(Protocol):
    """What trains and is scored: labelled clips, of which `batch` makes the network's inputs."""

    labels: Tensor  # (N,) int64
    ids: list[str]
    num_clips: int  # network inputs per sample

    def __len__(self) -> int: ...

    def batch(
        self,
        rows: Tensor | np.ndarray | Sequence[int],
        generator: torch.Generator | None = None,
        labels: Tensor | None = None,
    ) -> Tensor: ...


def training_clips(store: Store, positions: np.ndarray, recipe: dict[str, Any], device: str = "cpu") -> AnyClips:
    """Randomly sampled and augmented clips, one per sample."""
    return _clips(store, positions, recipe, 1, True, device)


def validation_clips(store: Store, positions: np.ndarray, recipe: dict[str, Any], device: str = "cpu") -> AnyClips:
    """One fixed clip per sample, not mirrored, as the original code validates between epochs."""
    plain = {**recipe, "heatmap": {**recipe.get("heatmap", {}), "double": False}}
    return _clips(store, positions, plain, 1, False, device)


def test_clips(store: Store, positions: np.ndarray, recipe: dict[str, Any], device: str = "cpu") -> AnyClips:
    """The recipe's fixed test clips per sample (ten in the released recipes)."""
    return _clips(store, positions, recipe, recipe["test_clips"], False, device)


def _clips(
    store: Store, positions: np.ndarray, recipe: dict[str, Any], num_clips: int, training: bool, device: str
) -> AnyClips:
    common: dict[str, Any] = {
        "clip_length": recipe["clip_length"],
        "persons": recipe["persons"],
        "num_clips": num_clips,
        "sampler": recipe["sampler"],
        "augment": recipe["augment"] if training else [],
        "training": training,
        "device": device,
    }
    if recipe["stream"] in HEATMAP_STREAMS:
        return HeatmapClips(Clips(store, positions, stream="joint", **common), recipe["stream"], **recipe["heatmap"])
    return Clips(
        store,
        positions,
        stream=recipe["stream"],
        difference=recipe["difference"],
        finish=recipe["finish"],
        # Checkpoints from before there was a choice were normalised, if at all, before they were packed.
        normalise_2d=recipe.get("normalise_2d"),
        **common,
    )
