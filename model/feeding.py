"""From a recipe in plain values to the clips that train, validate or test a member.

Training, evaluation and prediction all come through here, so that a served model sees what a trained one saw.
A recipe is a dictionary with the keys `stream, clip_length, test_clips, sampler, difference, persons, finish, augment`.
"""

from typing import Any

import numpy as np

from model.clips import Clips
from model.store import Store


def training_clips(store: Store, positions: np.ndarray, recipe: dict[str, Any], device: str = "cpu") -> Clips:
    """Randomly sampled and augmented clips, one per sample."""
    return _clips(store, positions, recipe, 1, True, device)


def validation_clips(store: Store, positions: np.ndarray, recipe: dict[str, Any], device: str = "cpu") -> Clips:
    """One fixed clip per sample, as the original code validates between epochs."""
    return _clips(store, positions, recipe, 1, False, device)


def test_clips(store: Store, positions: np.ndarray, recipe: dict[str, Any], device: str = "cpu") -> Clips:
    """The recipe's fixed test clips per sample (ten in the released recipes)."""
    return _clips(store, positions, recipe, recipe["test_clips"], False, device)


def _clips(
    store: Store, positions: np.ndarray, recipe: dict[str, Any], num_clips: int, training: bool, device: str
) -> Clips:
    return Clips(
        store,
        positions,
        stream=recipe["stream"],
        clip_length=recipe["clip_length"],
        persons=recipe["persons"],
        num_clips=num_clips,
        sampler=recipe["sampler"],
        difference=recipe["difference"],
        finish=recipe["finish"],
        augment=recipe["augment"] if training else [],
        training=training,
        device=device,
    )
