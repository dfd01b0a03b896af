"""A training, from settings to the best and last checkpoint; `model/epoch.py` has the steps of an epoch."""

import inspect
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from model.checkpoint import plain_state, publish
from model.checks import check_labels, check_training_clips
from model.distributed import barrier, broadcast_object, broadcast_state, convert_sync_batchnorm, world
from model.epoch import LossModule, Running, parallel, train_epoch
from model.errors import UserError
from model.feeding import Feed
from model.ghost import group_norms
from model.losses import defer_banks
from model.progress import Progress
from model.score import clip_logits
from model.settings import OPTIMISERS, TrainSettings, epoch_batches
from model.stopping import termination_noted
from model.working import claimed, load_working, normalised, save_working

Log = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class FitResult:
    """Paths of the published checkpoints, the epoch (from 1) of the best, and a record per epoch."""

    best_path: Path
    last_path: Path
    best_epoch: int
    history: list[dict[str, float]]


def fit(
    net: nn.Module,
    train: Feed,
    dev: Feed | None,
    settings: TrainSettings,
    *,
    folder: Path,
    card: dict[str, Any],
    fingerprint: dict[str, Any],
    device: str | torch.device = "cpu",
    log: Log | None = None,
) -> FitResult:
    """Train `net` in place; under torch.distributed called by every rank.

    `card` (checkpoint.network_card) goes into the published checkpoints. `folder` keeps the last working checkpoint,
    due by `save_every` and `save_steps`; a later call with the same settings, card and `fingerprint` goes on from
    it. `log(epoch, record)` is called by rank 0 after an epoch, when its checkpoint, if due, is on disk. The best
    epoch is that of the highest top-1 on `dev`, then the lowest loss; without `dev` it is the last. Raises UserError
    for clips that cannot teach anything, settings that do not fit the ranks, a folder in use, full, read-only or
    holding another training, and a loss or weights that become NaN (the former checkpoint stays); Stopped when
    SIGTERM came, after the step under way and a working checkpoint.
    """
    device = torch.device(device)
    rank, size = world()
    check_training_clips(train, card["num_classes"], settings.batch_size, settings.seed)
    if dev is not None:
        check_labels(dev, card["num_classes"], "development")
    if settings.batch_size % (size * settings.accumulate):
        raise UserError(
            f"batch_size: {settings.batch_size} does not divide by {size} processes x {settings.accumulate} "
            "accumulated passes; change one of the three"
        )
    _check_smoothing(net, settings.label_smoothing)
    # Set before the first step and not only by scoring, or a resumed run would differ from an unbroken one.
    torch.set_flush_denormal(True)
    with ExitStack() as stack:
        if rank == 0:
            stack.enter_context(claimed(folder))
        stack.enter_context(deterministic_mode(settings.deterministic))
        asked_to_stop = stack.enter_context(termination_noted())
        return _fit(net, train, dev, settings, folder, card, fingerprint, device, log, asked_to_stop)


def _fit(
    net: nn.Module,
    train: Feed,
    dev: Feed | None,
    settings: TrainSettings,
    folder: Path,
    card: dict[str, Any],
    fingerprint: dict[str, Any],
    device: torch.device,
    log: Log | None,
    asked_to_stop: Callable[[], bool],
) -> FitResult:
    rank, size = world()
    # How often it is saved makes no other training of it.
    decisive = {name: value for name, value in asdict(settings).items() if name not in ("save_every", "save_steps")}
    identity = normalised({"settings": decisive, "card": card, **fingerprint})
    net.to(device)
    groups = None
    if settings.groups > 1:
        groups = group_norms(net, settings.groups // settings.accumulate, settings.accumulate)
    elif size > 1:
        convert_sync_batchnorm(net)
    defer_banks(net, settings.accumulate)
    optimiser = OPTIMISERS[settings.optimiser](net.parameters(), settings)

    history: list[dict[str, float]] = []
    best: dict[str, Any] = {}
    done, running = 0, Running()
    # Other nodes need not see this folder.
    working = broadcast_object(load_working(folder, identity) if rank == 0 else None)
    if working is not None:
        net.load_state_dict(working["state"])
        optimiser.load_state_dict(working["optimiser"])
        history, best, done = working["history"], working["best"], working["epoch"]
        running = Running(**working["running"])
    broadcast_state(net)
    module = parallel(LossModule(net, settings.label_smoothing), settings, device)

    def save() -> None:
        """Rank 0 writes a working checkpoint: whole epochs in `history`, the one under way in `running`."""
        _check_weights(net, len(history) + (running.step > 0), folder)
        if rank == 0:
            content = {
                "fingerprint": identity,
                "epoch": len(history),
                "running": asdict(running),
                "state": plain_state(net),
                "optimiser": optimiser.state_dict(),
                "best": best,
                "history": history,
            }
            save_working(folder, len(history), running.step, content)

    steps = len(epoch_batches(settings, train.labels, 0, size))
    progress = Progress(settings.epochs, done, steps, shown=rank == 0)
    _announce(progress, train, settings, done, running.step, size)
    for epoch in range(done, settings.epochs):
        began = time.perf_counter() - running.seconds
        record = {"epoch": epoch + 1.0}
        record |= train_epoch(
            module, train, settings, groups, optimiser, epoch, device, progress, running, save, asked_to_stop, folder
        )
        _check_weights(net, epoch + 1, folder)
        last = epoch + 1 == settings.epochs
        if dev is not None and ((epoch + 1) % settings.validate_every == 0 or last):
            record |= _validate(net, dev, settings, device)
            if _beats(record, best):
                best = {"epoch": epoch + 1, "record": record, "state": plain_state(net)}
        record["seconds"] = time.perf_counter() - began
        history.append(record)
        running = Running()
        if (epoch + 1) % settings.save_every == 0 or last:
            save()
        if rank == 0:
            progress.epoch(epoch + 1, record)
            if log is not None:
                log(epoch + 1, dict(record))

    best_epoch = best.get("epoch", settings.epochs)
    if rank == 0:
        publish(folder / "last.pt", card, plain_state(net), settings.epochs)
        publish(folder / "best.pt", card, best.get("state") or plain_state(net), best_epoch)
    barrier()
    return FitResult(folder / "best.pt", folder / "last.pt", best_epoch, history)


def _validate(net: nn.Module, dev: Feed, settings: TrainSettings, device: torch.device) -> dict[str, float]:
    logits = clip_logits(net, dev, settings.batch_size, device, amp=settings.amp)
    labels = dev.labels.cpu()
    clips = logits.shape[1]
    right = logits.softmax(-1).mean(1).argmax(1) == labels
    loss = F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(clips))
    return {"dev/loss": float(loss), "dev/top1": float(right.double().mean())}


def _beats(record: dict[str, float], best: dict[str, Any]) -> bool:
    if not best:
        return True
    former = best["record"]
    return (record["dev/top1"], -record["dev/loss"]) > (former["dev/top1"], -former["dev/loss"])


@contextmanager
def deterministic_mode(on: bool) -> Iterator[None]:
    """Have torch choose deterministic kernels meanwhile; on a GPU one that has none warns."""
    if not on:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filling: Any = torch.utils.deterministic
    benchmark, fill = torch.backends.cudnn.benchmark, filling.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    # Filling fresh memory with NaN costs time and only helps code that reads what it did not write.
    filling.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        filling.fill_uninitialized_memory = fill


def _check_smoothing(net: nn.Module, amount: float) -> None:
    loss = cast(Callable[..., Any], net.loss)
    if amount > 0 and "label_smoothing" not in inspect.signature(loss).parameters:
        raise UserError(f"label_smoothing: the loss of {type(net).__name__} has none; set it to 0")


def _announce(progress: Progress, train: Feed, settings: TrainSettings, done: int, step: int, size: int) -> None:
    if step:
        progress.say(f"going on after step {step} of epoch {done + 1} of {settings.epochs}")
    elif done:
        progress.say(f"going on after epoch {done} of {settings.epochs}")
    if settings.accumulate > 1 and settings.groups == 1:
        progress.say(
            f"accumulate {settings.accumulate}: an optimiser step is {settings.accumulate} forward passes of "
            f"{settings.batch_size // settings.accumulate} clips, and batch norm averages over one pass, so this is "
            "not the same as one pass of the whole batch"
        )
    if settings.groups > 1:
        progress.say(f"bn_batch {settings.bn_batch}: batch norm averages over {settings.groups} groups of a batch")
    left_out = len(train) * settings.repeats % settings.batch_size
    if 0 < left_out < settings.smallest_batch(size):
        progress.say(f"each epoch leaves out {left_out} clips, too few for a batch")


def _check_weights(net: nn.Module, epoch: int, folder: Path) -> None:
    flawed = [name for name, tensor in net.named_parameters() if not torch.isfinite(tensor).all()]
    if flawed:
        raise UserError(
            f"weights became NaN or infinite in epoch {epoch} ({', '.join(flawed[:3])}); the former "
            f"checkpoint in {folder} stays. Lower lr or set clip_grad"
        )
