"""What a training survives: a stop at any step, SIGTERM, NaN, a full disk, a read-only folder, a damaged file."""

import errno
import json
import math
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_kit import PROTOGCN, run, short, small_store, tiny

from model import create_model
from model.epoch import FLAWED_BATCH
from model.errors import Stopped, UserError
from model.settings import epoch_batches
from model.store import Store
from model.train import FitResult


class Killed(Exception):
    """Stands for SIGKILL: nothing is saved on the way out."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return small_store(tmp_path_factory.mktemp("data") / "store")


def at_step(net: nn.Module, wanted: int, act: Callable[[], float]) -> nn.Module:
    """The network, whose loss is multiplied by what `act` returns at forward pass `wanted` (from 1)."""
    original: Any = net.loss
    calls = 0

    def loss(x: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal calls
        calls += 1
        factor = act() if calls == wanted else 1.0
        total, parts = original(x, labels)
        return total * factor, parts

    net.loss = loss  # type: ignore[assignment]
    return net


def kill() -> float:
    raise Killed


def terminate() -> float:
    os.kill(os.getpid(), signal.SIGTERM)
    return 1.0


def assert_same_bits(one: FitResult, two: FitResult) -> None:
    assert one.last_path.read_bytes() == two.last_path.read_bytes()
    assert one.best_path.read_bytes() == two.best_path.read_bytes()
    timed = ("seconds", "samples_per_s", "wait_share")
    for first, second in zip(one.history, two.history, strict=True):
        assert {k: v for k, v in first.items() if k not in timed} == {k: v for k, v in second.items() if k not in timed}


def saved(folder: Path) -> list[str]:
    return sorted(path.name.split(".")[0] for path in folder.glob("epoch-*.pt"))


# --- stops within an epoch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("save_steps", "expected"), [(1, "epoch-0001-step-000002"), (2, "epoch-0001-step-000002"),
                                                      (3, "epoch-0001"), (None, "epoch-0001")])  # fmt: skip
def test_a_kill_within_an_epoch_costs_no_bit(
    store: Store, tmp_path: Path, save_steps: int | None, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four steps an epoch; killed in the third of the second. Dropout draws in every step."""
    straight = run(tiny(0.3), store, tmp_path / "straight", clip_grad=1.0)
    with pytest.raises(Killed):
        run(at_step(tiny(0.3), 7, kill), store, tmp_path / "cut", clip_grad=1.0, save_steps=save_steps)
    assert saved(tmp_path / "cut") == [expected]
    torch.manual_seed(99)  # a new process has other random states
    capsys.readouterr()
    assert_same_bits(run(tiny(0.3), store, tmp_path / "cut", clip_grad=1.0, save_steps=save_steps), straight)
    within = "going on after step 2 of epoch 2 of 3" in capsys.readouterr().err
    assert within == ("step" in expected)


def test_kills_at_every_step_of_protogcn_cost_no_bit(store: Store, tmp_path: Path) -> None:
    def net() -> nn.Module:
        torch.manual_seed(0)
        return create_model("protogcn", layout="nturgb+d", num_classes=3, dropout=0.3, **PROTOGCN)

    changes = {"epochs": 2, "batch_size": 16, "label_smoothing": 0.1}
    straight = run(net(), store, tmp_path / "straight", **changes)

    def smoothed(wanted: int) -> nn.Module:
        made = net()
        original: Any = made.loss
        calls = 0

        def loss(x: Tensor, labels: Tensor, label_smoothing: float) -> Any:
            nonlocal calls
            calls += 1
            return kill() if calls == wanted else original(x, labels, label_smoothing=label_smoothing)

        made.loss = loss  # type: ignore[assignment]
        return made

    for _ in range(3):  # every process gets one step further
        with pytest.raises(Killed):
            run(smoothed(2), store, tmp_path / "cut", save_steps=1, **changes)
    assert saved(tmp_path / "cut") == ["epoch-0001-step-000001"]
    assert_same_bits(run(net(), store, tmp_path / "cut", save_steps=1, **changes), straight)


def test_how_often_it_is_saved_may_change_on_the_way(store: Store, tmp_path: Path) -> None:
    straight = run(tiny(), store, tmp_path / "straight")
    with pytest.raises(Killed):
        run(at_step(tiny(), 4, kill), store, tmp_path / "cut", save_steps=3)
    assert saved(tmp_path / "cut") == ["epoch-0000-step-000003"]
    assert_same_bits(run(tiny(), store, tmp_path / "cut", save_every=2), straight)


def test_a_damaged_checkpoint_within_an_epoch_gives_way_to_the_former(store: Store, tmp_path: Path) -> None:
    straight = run(tiny(), store, tmp_path / "straight")
    with pytest.raises(Killed):
        run(at_step(tiny(), 6, kill), store, tmp_path / "cut")
    former = next((tmp_path / "cut").glob("epoch-0001*"))
    content = former.read_bytes()
    with pytest.raises(Killed):
        run(at_step(tiny(), 3, kill), store, tmp_path / "cut", save_steps=1)
    newest = next((tmp_path / "cut").glob("epoch-0001-step-000002*"))
    newest.write_bytes(newest.read_bytes()[:-1])
    former.write_bytes(content)
    assert_same_bits(run(tiny(), store, tmp_path / "cut"), straight)


def test_the_unfinished_file_of_a_kill_is_removed(store: Store, tmp_path: Path) -> None:
    left = tmp_path / ".epoch-0001.0123456789abcdef0123456789abcdef.pt.89abcdef"
    left.write_bytes(b"half of it")
    run(tiny(), store, tmp_path, epochs=1)
    assert not left.exists()


# --- SIGTERM -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "expected"), [(2, "epoch-0000-step-000002"), (4, "epoch-0000-step-000004"),
                                                (12, "epoch-0002-step-000004")])  # fmt: skip
def test_sigterm_saves_after_the_step_under_way(store: Store, tmp_path: Path, step: int, expected: str) -> None:
    straight = run(tiny(0.3), store, tmp_path / "straight")
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match=rf"saved after step {int(expected[-6:])} of epoch {int(expected[6:10]) + 1}"):
        run(at_step(tiny(0.3), step, terminate), store, tmp_path / "cut")
    assert saved(tmp_path / "cut") == [expected]
    assert signal.getsignal(signal.SIGTERM) == handler
    assert_same_bits(run(tiny(0.3), store, tmp_path / "cut"), straight)


# --- NaN ---------------------------------------------------------------------------------------------------------


def test_nan_loss_lists_the_clips_of_the_step(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the loss became nan in epoch 2, step 2"):
        run(at_step(tiny(), 6, lambda: math.nan), store, tmp_path, save_steps=1)
    listed = json.loads((tmp_path / FLAWED_BATCH).read_text())
    rows = epoch_batches(short(), torch.zeros(32), 1)[1].tolist()
    assert listed == {"epoch": 2, "step": 2, "loss": "nan", "ids": [f"clip{row:03d}" for row in rows]}
    assert saved(tmp_path) == ["epoch-0001-step-000001"]


def test_spoilt_weights_are_not_saved(store: Store, tmp_path: Path) -> None:
    """The loss is still finite in the step that spoils the weights."""
    net = tiny()

    def spoil() -> float:
        net.fc.weight.register_hook(lambda gradient: gradient * math.nan)
        return 1.0

    with pytest.raises(UserError, match=r"weights became NaN or infinite in epoch 1 \(fc.weight"):
        run(at_step(net, 2, spoil), store, tmp_path, save_steps=1)
    assert saved(tmp_path) == ["epoch-0000-step-000001"]
    straight = run(tiny(), store, tmp_path / "straight")
    assert_same_bits(run(tiny(), store, tmp_path), straight)


# --- full disk, read-only folder ---------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here; the injected faults stand for it")
    yield place
    subprocess.run(["umount", place], check=True)


def test_full_disk_keeps_the_former_checkpoint(store: Store, tmp_path: Path, small_disk: Path) -> None:
    straight = run(tiny(), store, tmp_path / "straight")

    def fill() -> float:
        with (small_disk / "other").open("wb", buffering=0) as stream, pytest.raises(OSError):
            while True:
                stream.write(bytes(1024))
        return 1.0

    folder = small_disk / "run"
    with pytest.raises(UserError, match=r"epoch-0001-step-000002.*: cannot be written \(No space left on device\)"):
        run(at_step(tiny(), 6, fill), store, folder, save_steps=1)
    assert saved(folder) == ["epoch-0001-step-000001"]
    assert not list(folder.glob(".*")), "nothing unfinished is left on the full disk"
    (small_disk / "other").unlink()
    went_on = run(tiny(), store, folder, save_steps=1)
    assert_same_bits(went_on, straight)


def test_read_only_folder_is_refused_and_kept(store: Store, tmp_path: Path, small_disk: Path) -> None:
    folder = small_disk / "run"
    with pytest.raises(Killed):
        run(at_step(tiny(), 6, kill), store, folder)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(UserError, match=r"run: cannot be written \(Read-only file system\)"):
        run(tiny(), store, folder)
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    assert_same_bits(run(tiny(), store, folder), run(tiny(), store, tmp_path / "straight"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES])
def test_a_failing_write_keeps_the_former_checkpoint(
    store: Store, tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault is injected where a disk reports it last: when it is to have all of the file."""
    straight = run(tiny(), store, tmp_path / "straight")

    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    def break_disk() -> float:
        monkeypatch.setattr(os, "fsync", fail)
        return 1.0

    with pytest.raises(UserError, match="cannot be written"):
        run(at_step(tiny(), 6, break_disk), store, tmp_path / "cut", save_steps=1)
    monkeypatch.undo()
    assert saved(tmp_path / "cut") == ["epoch-0001-step-000001"]
    assert not list((tmp_path / "cut").glob(".*"))
    assert_same_bits(run(tiny(), store, tmp_path / "cut", save_steps=1), straight)


def test_what_reads_back_differently_does_not_replace_the_former(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model import working

    straight = run(tiny(), store, tmp_path / "straight")
    write = working.write_bytes

    def corrupt() -> float:
        monkeypatch.setattr(working, "write_bytes", lambda path, data: write(path, data[:-1] + b"?"))
        return 1.0

    with pytest.raises(UserError, match="reads back differently"):
        run(at_step(tiny(), 6, corrupt), store, tmp_path / "cut", save_steps=1)
    monkeypatch.undo()
    assert saved(tmp_path / "cut") == ["epoch-0001-step-000001", "epoch-0001-step-000002"]
    assert_same_bits(run(tiny(), store, tmp_path / "cut", save_steps=1), straight)
