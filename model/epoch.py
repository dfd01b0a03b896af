"""One epoch of training, from its first step or from where a stopped training had come to.

Randomness of step s of epoch e comes from (seed, e, s) and is drawn for the global batch, of which every rank
takes its share. So a run that was stopped and one that was not, or one process and two, see the same data.
"""

import json
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.atomic import write_bytes
from model.distributed import barrier, mean_over_ranks, share, world
from model.errors import Stopped, UserError
from model.feeding import Feed
from model.ghost import Groups, average_statistics
from model.losses import commit_banks
from model.progress import Progress
from model.settings import TrainSettings, autocast, derived_seed, epoch_batches, learning_rate

FLAWED_BATCH = "flawed-batch.json"


@dataclass
class Running:
    """How far an epoch has come; a working checkpoint within the epoch keeps it."""

    step: int = 0  # optimiser steps done
    samples: int = 0
    seconds: float = 0.0
    waited: float = 0.0  # seconds, for data
    totals: dict[str, float] = field(default_factory=dict)  # sums over clips, by the name of the figure


def train_epoch(
    module: nn.Module,
    train: Feed,
    settings: TrainSettings,
    groups: Groups | None,
    optimiser: torch.optim.Optimizer,
    epoch: int,
    device: torch.device,
    progress: Progress,
    running: Running,
    save: Callable[[], None],
    asked_to_stop: Callable[[], bool],
    folder: Path,
) -> dict[str, float]:
    """Train from step `running.step` of `epoch` (from 0) to its end; returns the epoch's figures.

    `running` is kept up to date, and `save` is called every `settings.save_steps` steps. Raises Stopped, after `save`,
    when `asked_to_stop` says so on any rank, and UserError when the loss becomes NaN; the clips of that step are then
    listed in `folder`.
    """
    rank, size = world()
    batches = epoch_batches(settings, train.labels, epoch, size)
    # Reading a loss makes the host wait for a GPU, so there it is read in groups.
    group = 1 if device.type == "cpu" else 50
    unread: list[Tensor] = []
    began = time.perf_counter() - running.seconds
    module.train()
    for step in range(running.step, len(batches)):
        rows = batches[step]
        rate = learning_rate(settings, epoch * len(batches) + step, len(batches))
        for parameters in optimiser.param_groups:
            parameters["lr"] = rate

        asked = time.perf_counter()
        generator = torch.Generator().manual_seed(derived_seed(settings.seed, epoch, step, 0))
        labels = train.labels[rows]  # a copy: augmentation may change the class of a clip
        x = train.batch(rows, generator, labels).to(device, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        running.waited += time.perf_counter() - asked

        # The same on every rank: dropout draws for the rows of all ranks (distributed.SharedDropout).
        torch.manual_seed(derived_seed(settings.seed, epoch, step, 1))
        optimiser.zero_grad(set_to_none=True)
        names, figures = _backward(module, x, labels, settings, groups, device)
        if settings.clip_grad is not None:
            nn.utils.clip_grad_norm_(module.parameters(), settings.clip_grad)
        optimiser.step()
        commit_banks(module)
        if groups is not None:
            average_statistics(module)

        running.step, running.samples = step + 1, running.samples + len(rows)
        unread.append(figures)
        ended = running.step == len(batches)
        due = settings.save_steps is not None and running.step % settings.save_steps == 0 and not ended
        if len(unread) == group or ended or due or (size == 1 and asked_to_stop()):
            # Whether to stop travels with the figures, so that all ranks stop at one step without asking each time.
            stop = torch.full_like(figures, float(asked_to_stop()))
            read = mean_over_ranks(torch.stack([*unread, stop])).cpu()
            losses, stopping = read[:-1], bool(read[-1, 0] > 0)
            first = running.step - len(unread)
            _check_loss(losses[:, 0], batches[first : running.step], train, epoch, first, folder)
            counts = torch.tensor([len(rows) for rows in batches[first : running.step]], dtype=read.dtype)
            for name, total in zip(names, (losses * counts[:, None]).sum(0).tolist(), strict=True):
                running.totals[name] = running.totals.get(name, 0.0) + total
            unread.clear()
            running.seconds = time.perf_counter() - began
            pace = running.samples / running.seconds
            progress.step(epoch + 1, running.step, float(losses[-1, 0]), pace, running.waited / running.seconds)
            if due or stopping:
                save()
            if stopping:
                barrier()  # or a rank that ends first would have torchrun end rank 0 while it saves
                raise Stopped(
                    f"asked to end: saved after step {running.step} of epoch {epoch + 1}; "
                    "the same command goes on from there"
                )

    record = {f"train/{name}": total / running.samples for name, total in running.totals.items()}
    record["lr"] = learning_rate(settings, (epoch + 1) * len(batches) - 1, len(batches))
    record["samples_per_s"] = running.samples / running.seconds
    return record | {"wait_share": running.waited / running.seconds}


def _backward(
    module: nn.Module, x: Tensor, labels: Tensor, settings: TrainSettings, groups: Groups | None, device: torch.device
) -> tuple[list[str], Tensor]:
    """Gradients of the mean loss of the global batch; returns names and this rank's part of the figures."""
    rank, size = world()
    passes = settings.passes(len(x), size)
    names: list[str] = []
    figures: list[Tensor] = []
    for part in range(passes):
        mine = share(len(x), part * size + rank, passes * size)
        clips = mine.stop - mine.start
        if groups is not None:
            groups.begin(part, len(x))
        # Ranks are averaged afterwards; the weight makes that the mean over clips when shares differ.
        weight = clips * size / len(x)
        more = part + 1 < passes
        with module.no_sync() if more and isinstance(module, DistributedDataParallel) else nullcontext():
            with autocast(device, settings.amp):
                total, parts = module(x[mine], labels[mine])
            (total * weight).backward()
        names = ["loss", *parts]
        values = [total.detach(), *(torch.as_tensor(value, device=device) for value in parts.values())]
        figures.append(torch.stack([value.double() for value in values]) * weight)
    return names, torch.stack(figures).sum(0)


class LossModule(nn.Module):
    """DistributedDataParallel hooks into `forward`, and what is trained is the loss."""

    def __init__(self, net: nn.Module, label_smoothing: float) -> None:
        super().__init__()
        self.net = net
        self.options = {"label_smoothing": label_smoothing} if label_smoothing else {}

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.net.loss(x, labels, **self.options)  # type: ignore[operator]


def parallel(module: nn.Module, settings: TrainSettings, device: torch.device) -> nn.Module:
    """The module that averages gradients over ranks; with one rank itself."""
    if world()[1] == 1:
        return module
    # ProtoGCN keeps channels last in memory, so its 1x1 kernels' gradients come with other strides; that is harmless.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return DistributedDataParallel(
        module,
        device_ids=[device] if device.type == "cuda" else None,
        # Statistics and bank are equal on all ranks already, or deliberately each rank's own.
        forward_sync_buffers=False,
        # The graph never changes, which saves a search for unused parameters. With no_sync that cannot be promised;
        # then every parameter must be used, as those of all networks here are (tests/test_nets.py).
        static_graph=settings.accumulate == 1,
    )


def _check_loss(losses: Tensor, batches: list[Tensor], train: Feed, epoch: int, first: int, folder: Path) -> None:
    flawed = (~torch.isfinite(losses)).nonzero()
    if len(flawed) == 0:
        return
    index = int(flawed[0])
    step, loss = first + index + 1, float(losses[index])
    ids = [train.ids[row] for row in batches[index].tolist()]
    listed = folder / FLAWED_BATCH
    if world()[0] == 0:
        content = {"epoch": epoch + 1, "step": step, "loss": str(loss), "ids": ids}
        write_bytes(listed, json.dumps(content, indent=1).encode())
    raise UserError(
        f"the loss became {loss} in epoch {epoch + 1}, step {step}; the former checkpoint stays. "
        f"Lower lr or set clip_grad, and look at these clips, listed in {listed}: {', '.join(ids)}"
    )
