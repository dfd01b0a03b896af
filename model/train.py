"""The training loop, from settings to the best and last checkpoint; read from the top.

Randomness of step s of epoch e comes from (seed, e, s) and is drawn for the global batch, of which every rank
takes its share. So a run that was stopped and one that was not, or one process and two, see the same data.
"""

import inspect
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.checkpoint import plain_state, publish
from model.checks import check_labels, check_training_clips
from model.distributed import barrier, broadcast_state, convert_sync_batchnorm, mean_over_ranks, share, world
from model.errors import UserError
from model.feeding import Feed
from model.progress import Progress
from model.score import clip_logits
from model.settings import (
    OPTIMISERS,
    TrainSettings,
    derived_seed,
    epoch_batches,
    learning_rate,
    smallest_batch,
)
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

    `card` (checkpoint.network_card) goes into the published checkpoints. `folder` keeps the working checkpoint of
    the last epoch (or last of `save_every`); a later call with the same settings, card and `fingerprint` goes on
    from it. `log(epoch, record)` is called by rank 0 after an epoch, when its checkpoint, if due, is on disk. The
    best epoch is that of the highest top-1 on `dev`, then the lowest loss; without `dev` it is the last. Raises
    UserError for clips that cannot teach anything, settings that do not fit the ranks, a folder in use or holding
    another training, and a loss or weights that become NaN (the former epoch's checkpoint stays).
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
        return _fit(net, train, dev, settings, folder, card, fingerprint, device, log)


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
) -> FitResult:
    rank, size = world()
    identity = normalised({"settings": asdict(settings), "card": card, **fingerprint})
    net.to(device)
    if size > 1 and settings.sync_bn:
        convert_sync_batchnorm(net)
    optimiser = OPTIMISERS[settings.optimiser](net.parameters(), settings)

    history: list[dict[str, float]] = []
    best: dict[str, Any] = {}
    done = 0
    working = load_working(folder, identity)
    if working is not None:
        net.load_state_dict(working["state"])
        optimiser.load_state_dict(working["optimiser"])
        history, best, done = working["history"], working["best"], working["epoch"]
    broadcast_state(net)
    module = _parallel(_LossModule(net, settings.label_smoothing), settings, device)

    steps = len(epoch_batches(settings, train.labels, 0, size))
    progress = Progress(settings.epochs, done, steps, shown=rank == 0)
    _announce(progress, train, settings, done, size)
    for epoch in range(done, settings.epochs):
        began = time.perf_counter()
        record = {"epoch": epoch + 1.0}
        record |= _train_epoch(module, train, settings, optimiser, epoch, device, progress)
        if not settings.sync_bn:
            # Each rank has statistics of its own; as in the originals those of rank 0 are evaluated and kept.
            broadcast_state(net)
        _check_weights(net, epoch, folder)
        last = epoch + 1 == settings.epochs
        if dev is not None and ((epoch + 1) % settings.validate_every == 0 or last):
            record |= _validate(net, dev, settings, device)
            if _beats(record, best):
                best = {"epoch": epoch + 1, "record": record, "state": plain_state(net)}
        record["seconds"] = time.perf_counter() - began
        history.append(record)
        if rank == 0:
            if (epoch + 1) % settings.save_every == 0 or last:
                save_working(
                    folder,
                    epoch + 1,
                    {
                        "fingerprint": identity,
                        "epoch": epoch + 1,
                        "state": plain_state(net),
                        "optimiser": optimiser.state_dict(),
                        "best": best,
                        "history": history,
                    },
                )
            progress.epoch(epoch + 1, record)
            if log is not None:
                log(epoch + 1, dict(record))

    best_epoch = best.get("epoch", settings.epochs)
    if rank == 0:
        publish(folder / "last.pt", card, plain_state(net), settings.epochs)
        publish(folder / "best.pt", card, best.get("state") or plain_state(net), best_epoch)
    barrier()
    return FitResult(folder / "best.pt", folder / "last.pt", best_epoch, history)


def _train_epoch(
    module: nn.Module,
    train: Feed,
    settings: TrainSettings,
    optimiser: torch.optim.Optimizer,
    epoch: int,
    device: torch.device,
    progress: Progress,
) -> dict[str, float]:
    rank, size = world()
    batches = epoch_batches(settings, train.labels, epoch, size)
    # Reading a loss makes the host wait for a GPU, so there it is read in groups.
    group = 1 if device.type == "cpu" else 50
    unread: list[Tensor] = []
    totals: dict[str, float] = {}
    samples = 0
    began, waited = time.perf_counter(), 0.0
    module.train()
    for step, rows in enumerate(batches):
        rate = learning_rate(settings, epoch * len(batches) + step, len(batches))
        for parameters in optimiser.param_groups:
            parameters["lr"] = rate

        asked = time.perf_counter()
        generator = torch.Generator().manual_seed(derived_seed(settings.seed, epoch, step, 0))
        labels = train.labels[rows]  # a copy: augmentation may change the class of a clip
        x = train.batch(rows, generator, labels).to(device, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        waited += time.perf_counter() - asked

        # The same on every rank: dropout draws for the rows of all ranks (distributed.SharedDropout).
        torch.manual_seed(derived_seed(settings.seed, epoch, step, 1))
        optimiser.zero_grad(set_to_none=True)
        names, figures = _backward(module, x, labels, settings, device)
        if settings.clip_grad is not None:
            nn.utils.clip_grad_norm_(module.parameters(), settings.clip_grad)
        optimiser.step()

        samples += len(rows)
        unread.append(figures)
        if len(unread) == group or step + 1 == len(batches):
            read = mean_over_ranks(torch.stack(unread)).cpu()
            first = step + 1 - len(unread)
            _check_loss(read[:, 0], batches[first : step + 1], train, epoch, first)
            counts = torch.tensor([len(rows) for rows in batches[first : step + 1]], dtype=read.dtype)
            for name, total in zip(names, (read * counts[:, None]).sum(0).tolist(), strict=True):
                totals[name] = totals.get(name, 0.0) + total
            unread.clear()
            seconds = time.perf_counter() - began
            progress.step(epoch + 1, step + 1, float(read[-1, 0]), samples / seconds, waited / seconds)

    seconds = time.perf_counter() - began
    record = {f"train/{name}": total / samples for name, total in totals.items()}
    return record | {"lr": rate, "samples_per_s": samples / seconds, "wait_share": waited / seconds}


def _backward(
    module: nn.Module, x: Tensor, labels: Tensor, settings: TrainSettings, device: torch.device
) -> tuple[list[str], Tensor]:
    """Gradients of the mean loss of the global batch; returns names and this rank's part of the figures."""
    rank, size = world()
    passes = min(settings.accumulate, len(x) // smallest_batch(size))
    names: list[str] = []
    figures: list[Tensor] = []
    for part in range(passes):
        rows = range(len(x))[share(len(x), part, passes)]
        rows = rows[share(len(rows), rank, size)]
        # Ranks are averaged afterwards; the weight makes that the mean over clips when shares differ.
        weight = len(rows) * size / len(x)
        mine = slice(rows.start, rows.stop)
        more = part + 1 < passes
        with module.no_sync() if more and isinstance(module, DistributedDataParallel) else nullcontext():
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.amp):
                total, parts = module(x[mine], labels[mine])
            (total * weight).backward()
        names = ["loss", *parts]
        values = [total.detach(), *(torch.as_tensor(value, device=device) for value in parts.values())]
        figures.append(torch.stack([value.double() for value in values]) * weight)
    return names, torch.stack(figures).sum(0)


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


class _LossModule(nn.Module):
    """DistributedDataParallel hooks into `forward`, and what is trained is the loss."""

    def __init__(self, net: nn.Module, label_smoothing: float) -> None:
        super().__init__()
        self.net = net
        self.options = {"label_smoothing": label_smoothing} if label_smoothing else {}

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.net.loss(x, labels, **self.options)  # type: ignore[operator]


def _parallel(module: nn.Module, settings: TrainSettings, device: torch.device) -> nn.Module:
    if world()[1] == 1:
        return module
    # ProtoGCN keeps channels last in memory, so its 1x1 kernels' gradients come with other strides; that is harmless.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return DistributedDataParallel(
        module,
        device_ids=[device] if device.type == "cuda" else None,
        # Statistics and bank are equal on all ranks already, or deliberately each rank's own.
        forward_sync_buffers=False,
        # The graph never changes, so unused parameters need no search; but no_sync does not go with that.
        static_graph=settings.accumulate == 1,
        find_unused_parameters=settings.accumulate > 1,
    )


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


def _announce(progress: Progress, train: Feed, settings: TrainSettings, done: int, size: int) -> None:
    if done:
        progress.say(f"going on after epoch {done} of {settings.epochs}")
    if settings.accumulate > 1:
        progress.say(
            f"accumulate {settings.accumulate}: an optimiser step is {settings.accumulate} forward passes of "
            f"{settings.batch_size // settings.accumulate} clips; batch norm averages over one pass, and a "
            "class bank is updated in each, so this is not the same as one pass of the whole batch"
        )
    if size > 1 and not settings.sync_bn:
        progress.say(f"sync_bn off: batch norm averages over {settings.batch_size // size} clips of one rank")
    left_out = len(train) * settings.repeats % settings.batch_size
    if 0 < left_out < smallest_batch(size):
        progress.say(f"each epoch leaves out {left_out} clips, too few for a batch over {size} processes")


def _check_loss(losses: Tensor, batches: list[Tensor], train: Feed, epoch: int, first: int) -> None:
    flawed = (~torch.isfinite(losses)).nonzero()
    if len(flawed) == 0:
        return
    step = int(flawed[0])
    names = ", ".join(train.ids[row] for row in batches[step].tolist())
    raise UserError(
        f"the loss became {float(losses[step])} in epoch {epoch + 1}, step {first + step + 1}; the checkpoint of "
        f"the former epoch stays. Lower lr or set clip_grad, and look at these clips: {names}"
    )


def _check_weights(net: nn.Module, epoch: int, folder: Path) -> None:
    flawed = [name for name, tensor in net.named_parameters() if not torch.isfinite(tensor).all()]
    if flawed:
        raise UserError(
            f"weights became NaN or infinite in epoch {epoch + 1} ({', '.join(flawed[:3])}); the former epoch's "
            f"checkpoint in {folder} stays. Lower lr or set clip_grad"
        )
