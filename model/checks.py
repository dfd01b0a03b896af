"""What is refused before the first epoch: mistakes that would otherwise show as a useless network hours later."""

import torch

from model.errors import UserError
from model.feeding import Feed

LOOK = 256  # clips that are looked at, evenly spread over the training set


def check_labels(clips: Feed, num_classes: int, what: str) -> None:
    """Raise UserError when there is no clip or a label lies outside range(num_classes)."""
    if len(clips) == 0:
        raise UserError(f"{what} set: holds no clip; check the split")
    outside = (clips.labels < 0) | (clips.labels >= num_classes)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise UserError(
            f"{what} set: sample {clips.ids[row]!r} has label {int(clips.labels[row])}, but there are "
            f"{num_classes} classes, numbered from 0; mend the labels and preprocess again"
        )


def check_training_clips(clips: Feed, num_classes: int, batch_size: int, seed: int) -> None:
    """Raise UserError when the training set cannot teach anything.

    That is: labels out of range, fewer clips than a batch, only one class, NaN or infinite values, or a
    stream that is zero in every clip looked at.
    """
    check_labels(clips, num_classes, "training")
    if len(clips) < batch_size:
        raise UserError(
            f"batch_size: {batch_size} is more than the {len(clips)} training clips; choose a smaller batch"
        )
    classes = clips.labels.unique()
    if len(classes) < 2:
        raise UserError(
            f"training set: all {len(clips)} clips have label {int(classes[0])}; "
            "there is nothing to tell apart, check labels and split"
        )
    rows = torch.linspace(0, len(clips) - 1, min(LOOK, len(clips))).long().unique()
    generator = torch.Generator().manual_seed(seed)
    empty = True
    for part in rows.split(batch_size):
        x = clips.batch(part, generator).flatten(1)
        flawed = ~torch.isfinite(x).all(dim=1)
        if flawed.any():
            row = int(part[int(flawed.nonzero()[0])])
            raise UserError(f"training set: sample {clips.ids[row]!r} holds NaN or infinite values; preprocess again")
        empty = empty and not bool(x.any())
    if empty:
        raise UserError(
            f"training set: the stream is zero in all {len(rows)} clips looked at; "
            "check the joints of the source and the layout (a motion stream of still poses is zero too)"
        )
