"""The order in which an epoch visits the samples, and each rank's share of it."""

from collections.abc import Sequence

import numpy as np
import torch

from model.errors import UserError


def epoch_indices(
    count: int, *, seed: int, epoch: int, rank: int = 0, world: int = 1, shuffle: bool = True
) -> np.ndarray:
    """This rank's samples in an epoch: a permutation seeded by seed + epoch, dealt out in turn.

    All ranks get ceil(count / world) positions; the head of the permutation fills the last ones up. Returns int64.
    """
    if shuffle:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch)).numpy()
    else:
        order = np.arange(count)
    return _share(order, rank, world)


def class_specific_indices(
    labels: Sequence[int] | np.ndarray,
    factors: Sequence[float],
    *,
    seed: int,
    epoch: int,
    rank: int = 0,
    world: int = 1,
) -> np.ndarray:
    """As `epoch_indices`, with class k drawn `factors[k]` times.

    The whole part of a factor repeats the class, the rest draws that share of it without replacement (rounded
    down). Classes are gone through in the order they first appear, which decides the random stream. Returns int64.
    """
    labels = np.asarray(labels)
    if labels.max() >= len(factors):
        raise UserError(f"label {labels.max()} has no factor: give one per class, {labels.max() + 1} or more")
    generator = torch.Generator().manual_seed(seed + epoch)
    different, first = np.unique(labels, return_index=True)
    picked: list[np.ndarray] = []
    for k in different[np.argsort(first)]:
        members = np.flatnonzero(labels == k)
        whole = int(factors[k])
        extra = int(len(members) * (factors[k] - whole))
        shuffled = members[torch.randperm(len(members), generator=generator).numpy()]
        picked += [members] * whole + [shuffled[:extra]]
    pool = np.concatenate(picked)
    return _share(pool[torch.randperm(len(pool), generator=generator).numpy()], rank, world)


def _share(order: np.ndarray, rank: int, world: int) -> np.ndarray:
    total = -(-len(order) // world) * world
    return np.resize(order, total)[rank::world].astype(np.int64)
