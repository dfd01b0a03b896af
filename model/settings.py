"""The settings of a training, checked, and what follows from them without a network: order of clips, rate, seeds."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from model.errors import UserError
from model.samplers import class_specific_indices, epoch_indices


@dataclass(frozen=True)
class TrainSettings:
    """How a network is trained. Raises UserError naming the field when a value makes no sense."""

    epochs: int
    batch_size: int  # clips per optimiser step, over all ranks
    lr: float
    seed: int
    optimiser: str = "sgd"
    momentum: float = 0.9  # of SGD, as nesterov
    nesterov: bool = True
    weight_decay: float = 5e-4  # of every parameter, norms and topologies included, as the originals do
    schedule: str = "cosine"
    milestones: tuple[int, ...] = ()  # schedule "step": the rate is multiplied by gamma after these epochs
    gamma: float = 0.1
    repeats: int = 1  # passes over the training set in one epoch
    class_factors: tuple[float, ...] = ()  # how often a pass visits a clip of each class; empty: once
    base_batch: int | None = None  # the batch lr was chosen for: lr is scaled by batch_size / base_batch
    accumulate: int = 1  # forward passes that share one optimiser step
    clip_grad: float | None = None  # largest norm of the whole gradient
    label_smoothing: float = 0.0
    amp: bool = False  # bfloat16 autocast on a GPU
    bn_batch: int | None = None  # clips that batch norm averages over, on any number of ranks; None: all of a pass
    deterministic: bool = True
    validate_every: int = 1  # epochs
    save_every: int = 1  # epochs between working checkpoints
    save_steps: int | None = None  # optimiser steps between working checkpoints within an epoch; None: none there

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "repeats", "accumulate", "validate_every", "save_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)} must be at least 1")
        if self.save_steps is not None and self.save_steps < 1:
            raise UserError(f"save_steps: {self.save_steps} must be at least 1")
        if self.batch_size < 2:
            raise UserError("batch_size: 1 leaves batch norm nothing to average; take at least 2")
        if self.bn_batch is not None and self.bn_batch < 2:
            raise UserError(f"bn_batch: {self.bn_batch} leaves batch norm nothing to average; take at least 2")
        if self.bn_batch is not None and self.batch_size % min(self.bn_batch, self.batch_size):
            raise UserError(f"bn_batch: {self.bn_batch} does not divide the batch of {self.batch_size} clips")
        if self.groups % self.accumulate and self.groups > 1:
            raise UserError(
                f"accumulate: {self.accumulate} passes cannot share the {self.groups} groups of {self.bn_batch} clips "
                "(bn_batch) of a batch; take a divisor"
            )
        if self.lr <= 0 or not math.isfinite(self.lr):
            raise UserError(f"lr: {self.lr} must be positive")
        if self.schedule not in SCHEDULES:
            raise UserError(f"schedule: {self.schedule!r} is none of {', '.join(SCHEDULES)}")
        if self.optimiser not in OPTIMISERS:
            raise UserError(f"optimiser: {self.optimiser!r} is none of {', '.join(OPTIMISERS)}")
        if self.nesterov and self.momentum <= 0:
            raise UserError("nesterov: needs a momentum above 0")
        if self.base_batch is not None and self.base_batch < 1:
            raise UserError(f"base_batch: {self.base_batch} must be at least 1")
        if self.clip_grad is not None and self.clip_grad <= 0:
            raise UserError(f"clip_grad: {self.clip_grad} must be positive")
        if any(factor <= 0 for factor in self.class_factors):
            raise UserError(f"class_factors: {min(self.class_factors)} must be positive")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing: {self.label_smoothing} must be in [0, 1)")

    @property
    def groups(self) -> int:
        """Groups of clips that batch norm averages over, in a batch; a last batch that is not full has as many."""
        return 1 if self.bn_batch is None else max(1, self.batch_size // self.bn_batch)

    def smallest_batch(self, ranks: int) -> int:
        """The fewest clips of an optimiser step over so many ranks: batch norm needs two in each group."""
        return max(2, ranks) if self.groups == 1 else max(2 * self.groups, ranks * self.accumulate)

    def passes(self, clips: int, ranks: int) -> int:
        """Forward passes in which `clips` clips are taken."""
        if self.groups > 1:
            return self.accumulate
        return min(self.accumulate, clips // self.smallest_batch(ranks))


def _sgd(parameters: Iterable[nn.Parameter], settings: TrainSettings) -> torch.optim.Optimizer:
    decay, momentum = settings.weight_decay, settings.momentum
    return torch.optim.SGD(
        parameters, lr=settings.lr, momentum=momentum, nesterov=settings.nesterov, weight_decay=decay
    )


def _adam(parameters: Iterable[nn.Parameter], settings: TrainSettings) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=settings.lr, weight_decay=settings.weight_decay)


# The training loop sets the rate before every step.
OPTIMISERS: dict[str, Callable[[Iterable[nn.Parameter], TrainSettings], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "adam": _adam,
}


def _cosine(settings: TrainSettings, iteration: int, per_epoch: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * iteration / (settings.epochs * per_epoch)))


def _step(settings: TrainSettings, iteration: int, per_epoch: int) -> float:
    passed = sum(iteration >= milestone * per_epoch for milestone in settings.milestones)
    return settings.gamma**passed


def _constant(settings: TrainSettings, iteration: int, per_epoch: int) -> float:
    return 1.0


SCHEDULES: dict[str, Callable[[TrainSettings, int, int], float]] = {
    "cosine": _cosine,
    "step": _step,
    "constant": _constant,
}


def learning_rate(settings: TrainSettings, iteration: int, per_epoch: int) -> float:
    """The rate of optimiser step `iteration` (from 0), with `per_epoch` steps an epoch; no warm-up.

    Cosine falls to 0 over all epochs, step by step: 0.5 lr (1 + cos(pi i / I)).
    """
    base = settings.lr
    if settings.base_batch is not None:
        base *= settings.batch_size / settings.base_batch
    return base * SCHEDULES[settings.schedule](settings, iteration, per_epoch)


def epoch_batches(settings: TrainSettings, labels: Tensor, epoch: int, ranks: int = 1) -> list[Tensor]:
    """The rows of each optimiser step of `epoch` (from 0), over all ranks: a permutation from seed + epoch.

    labels: (clips,) int64. The order does not depend on the number of ranks. A last batch that is not full is kept,
    unless it has fewer clips than `TrainSettings.smallest_batch`.
    """
    repeated = labels.repeat(settings.repeats)
    if settings.class_factors:
        drawn = class_specific_indices(repeated.numpy(), settings.class_factors, seed=settings.seed, epoch=epoch)
    else:
        drawn = epoch_indices(len(repeated), seed=settings.seed, epoch=epoch)
    order = torch.from_numpy(drawn) % len(labels)
    batches = list(order.split(settings.batch_size))
    if len(batches[-1]) < settings.smallest_batch(ranks):
        batches.pop()
    return batches


def derived_seed(seed: int, epoch: int, step: int, stream: int) -> int:
    """A seed for one step's randomness: stream 0 draws data, stream 1 + rank what the network draws (dropout).

    Every step is seeded afresh, so a training that goes on after a stop needs no stored random states.
    """
    state = np.random.SeedSequence([seed, epoch, step, stream]).generate_state(1, np.uint64)[0]
    return int(state >> np.uint64(1))


def autocast(device: torch.device, wanted: bool) -> torch.autocast:
    """bfloat16 where torch holds it to be safe, on a GPU; a CPU always computes in the precision of the weights."""
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and device.type != "cpu")
