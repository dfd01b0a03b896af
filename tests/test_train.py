"""The training loop in one process: its schedule, what it repeats bit for bit, and how it goes on after a stop."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_report import close
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from training_kit import PROTOGCN, DoubleClips, TinyNet, card, development, run, short, small_store, tiny, training

from model import create_model
from model.checkpoint import build_network, load_checkpoint
from model.errors import UserError
from model.score import score_clips
from model.settings import TrainSettings, epoch_batches, learning_rate
from model.store import Store
from model.train import fit


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return small_store(tmp_path_factory.mktemp("data") / "store")


def weights(path: Path) -> dict[str, Tensor]:
    return load_checkpoint(path)["state"]


def assert_equal_bits(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


class Stop(Exception):
    """Stands for a kill."""


# --- schedule, order of clips, settings ----------------------------------------------------------------------


def test_cosine_is_the_original_schedule(small_golden: Path) -> None:
    case = json.loads((small_golden / "scores_schedule.json").read_text())
    made = TrainSettings(epochs=150, batch_size=16, lr=case["base_lr"], seed=0)
    for iteration, rate in zip(case["iters"], case["lr"], strict=True):
        assert learning_rate(made, iteration, case["total_iters"] // 150) == pytest.approx(rate, rel=1e-9)


def test_full_golden_schedule(golden_dir: Path) -> None:
    case = torch.load(golden_dir / "models" / "schedule.pt", weights_only=True)
    made = TrainSettings(epochs=150, batch_size=16, lr=case["base_lr"], seed=0)
    found = [learning_rate(made, iteration, case["total_iters"] // 150) for iteration in case["iters"]]
    close("schedule", "rates", found, case["lr"], rtol=1e-9, atol=0)


def test_steps_and_scaled_rate() -> None:
    steps = short(epochs=12, schedule="step", milestones=(9, 11), lr=0.01)
    assert [round(learning_rate(steps, 10 * epoch, 10), 6) for epoch in (0, 8, 9, 11)] == [0.01, 0.01, 0.001, 0.0001]
    assert learning_rate(short(schedule="constant", batch_size=32, base_batch=128), 5, 10) == pytest.approx(0.025)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 90), st.integers(2, 20), st.integers(1, 3), st.integers(0, 5), st.sampled_from([1, 2, 4]))
def test_an_epoch_visits_every_clip_as_often(clips: int, batch: int, repeats: int, epoch: int, ranks: int) -> None:
    batch = max(2, min(batch, clips) // ranks) * ranks
    made = short(batch_size=batch, repeats=repeats)
    batches = epoch_batches(made, torch.zeros(clips), epoch, ranks)
    left_out = clips * repeats - sum(map(len, batches))
    assert left_out < max(2, ranks) and all(len(rows) == batch for rows in batches[:-1])
    assert all(len(rows) >= max(2, ranks) for rows in batches)
    if batches:
        counts = np.bincount(torch.cat(batches).numpy(), minlength=clips)
        assert counts.max() <= repeats and counts.sum() == clips * repeats - left_out
    single = epoch_batches(made, torch.zeros(clips), epoch, 1)
    assert all(torch.equal(one, two) for one, two in zip(single, batches, strict=False))


def test_classes_are_visited_by_their_factors() -> None:
    labels = torch.tensor([0, 1, 2] * 8)
    made = short(batch_size=4, repeats=2, class_factors=(1, 2, 1.5))
    visited = torch.cat(epoch_batches(made, labels, 3))
    assert np.bincount(labels[visited].numpy()).tolist() == [16, 32, 24]
    every = np.bincount(visited.numpy(), minlength=24).reshape(8, 3)
    assert (every[:, 0] == 2).all() and (every[:, 1] == 4).all() and set(every[:, 2]) <= {2, 3, 4}
    with pytest.raises(UserError, match="label 2 has no factor"):
        epoch_batches(short(class_factors=(1, 2)), labels, 0)
    with pytest.raises(UserError, match="class_factors: -1 must be positive"):
        short(class_factors=(1, -1))


def test_epochs_differ_in_order() -> None:
    one, two = (torch.cat(epoch_batches(short(), torch.zeros(32), epoch)) for epoch in (0, 1))
    assert not torch.equal(one, two)


def test_the_loss_sees_labels_that_augmentation_changed(store: Store, tmp_path: Path) -> None:
    class Relabelled(DoubleClips):
        def batch(self, rows: Tensor, generator: Any = None, labels: Tensor | None = None) -> Tensor:
            if labels is not None:
                labels.fill_(2)
            return self.clips.batch(rows, generator)

    net, seen = tiny(), []
    original = net.loss
    net.loss = lambda x, labels: seen.append(labels.clone()) or original(x, labels)  # type: ignore
    fit(net, Relabelled(training(store)), None, short(epochs=1), folder=tmp_path, card=card(), fingerprint={})
    assert (torch.cat(seen) == 2).all()


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"batch_size": 1},
        {"lr": 0.0},
        {"lr": math.nan},
        {"schedule": "linear"},
        {"momentum": 0.0},
        {"base_batch": 0},
        {"clip_grad": 0.0},
        {"label_smoothing": 1.0},
        {"accumulate": 0},
        {"validate_every": 0},
    ],
)
def test_senseless_settings_are_refused_by_name(change: dict[str, Any]) -> None:
    name = next(iter(change))
    with pytest.raises(UserError, match="nesterov" if name == "momentum" else name):
        short(**change)


# --- training --------------------------------------------------------------------------------------------------


def test_loss_falls_and_the_best_epoch_is_published(store: Store, tmp_path: Path) -> None:
    logged: list[int] = []
    result = fit(
        tiny(),
        training(store),
        development(store),
        short(epochs=8),
        folder=tmp_path,
        card=card(),
        fingerprint={},
        log=lambda epoch, record: logged.append(epoch),
    )
    history = result.history
    assert logged == [record["epoch"] for record in history] == list(range(1, 9))
    assert history[-1]["train/loss"] < 0.7 * history[0]["train/loss"]
    expected = {"epoch", "train/loss", "train/ce", "train/contrast", "dev/loss", "dev/top1", "lr", "samples_per_s"}
    assert set(history[0]) == expected | {"wait_share", "seconds"}
    best = max(history, key=lambda record: (record["dev/top1"], -record["dev/loss"]))
    assert result.best_epoch == best["epoch"] == load_checkpoint(result.best_path)["epoch"]
    assert load_checkpoint(result.last_path)["epoch"] == 8

    net = tiny()
    net.load_state_dict(weights(result.best_path))
    scores = score_clips(net, development(store), 4)
    found = (scores.argmax(1) == development(store).labels.numpy()).mean()
    assert found == pytest.approx(best["dev/top1"])


def test_protogcn_trains_and_its_checkpoint_builds(store: Store, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = create_model("protogcn", layout="nturgb+d", num_classes=3, **PROTOGCN)
    result = fit(
        net,
        training(store, stream="bone_motion"),
        development(store, stream="bone_motion"),
        short(epochs=2, batch_size=16, label_smoothing=0.1),
        folder=tmp_path,
        card=card("protogcn", PROTOGCN),
        fingerprint={},
    )
    again = build_network(load_checkpoint(result.last_path))
    clips = development(store, stream="bone_motion", num_clips=3)
    np.testing.assert_array_equal(score_clips(again, clips, 8), score_clips(net, clips, 8))


def test_without_development_clips_the_last_epoch_is_best(store: Store, tmp_path: Path) -> None:
    result = run(tiny(), store, tmp_path, dev=False)
    assert result.best_epoch == 3
    assert result.best_path.read_bytes() == result.last_path.read_bytes()
    assert "dev/top1" not in result.history[0]


def test_validation_interval(store: Store, tmp_path: Path) -> None:
    result = run(tiny(), store, tmp_path, epochs=5, validate_every=2)
    assert [record["epoch"] for record in result.history if "dev/top1" in record] == [2, 4, 5]


def test_two_runs_give_the_same_bits(store: Store, tmp_path: Path) -> None:
    results = []
    for name in ("one", "two"):
        torch.manual_seed(len(name))  # the state before must not matter
        net = tiny(dropout=0.3)
        torch.rand(len(name))
        results.append(run(net, store, tmp_path / name, clip_grad=1.0))
    assert results[0].last_path.read_bytes() == results[1].last_path.read_bytes()
    assert results[0].best_path.read_bytes() == results[1].best_path.read_bytes()
    other = run(tiny(dropout=0.3), store, tmp_path / "other", seed=4)
    assert other.last_path.read_bytes() != results[0].last_path.read_bytes()


def test_accumulation_averages_over_the_same_batch(store: Store, tmp_path: Path) -> None:
    """Without batch norm and bank, two passes of four clips are one pass of eight."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(75, 3)

        def loss(self, x: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            total = nn.functional.cross_entropy(self.fc(x.flatten(3).mean((1, 2))), labels)
            return total, {}

    states = []
    for accumulate in (1, 2, 4):
        torch.manual_seed(0)
        net = Plain()
        run(net, store, tmp_path / str(accumulate), dev=False, accumulate=accumulate)
        states.append(net.fc.weight)
    torch.testing.assert_close(states[0], states[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(states[0], states[2], rtol=1e-4, atol=1e-6)


def test_bfloat16_stays_near_float32(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU; a CPU is made to do it here."""
    plain = run(tiny(), store, tmp_path / "plain")
    monkeypatch.setattr("model.epoch.autocast", lambda device, on: torch.autocast(device.type, torch.bfloat16, on))
    half = run(tiny(), store, tmp_path / "half", amp=True)
    for one, two in zip(plain.history, half.history, strict=True):
        assert one["train/loss"] == pytest.approx(two["train/loss"], rel=0.05)
        assert one["train/loss"] != two["train/loss"]


# --- stopping and going on -------------------------------------------------------------------------------------


def test_a_stopped_training_ends_with_the_same_bits(store: Store, tmp_path: Path) -> None:
    straight = run(tiny(dropout=0.3), store, tmp_path / "straight", epochs=4)

    def stop(epoch: int, record: dict[str, float]) -> None:
        if epoch == 2:
            raise Stop

    arguments: Any = {"folder": tmp_path / "stopped", "card": card(), "fingerprint": {"code": "1"}}
    with pytest.raises(Stop):
        fit(tiny(0.3), training(store), development(store), short(epochs=4), log=stop, **arguments)
    torch.manual_seed(99)  # a new process starts with other weights and random states
    logged: list[int] = []
    went_on = fit(
        TinyNet(dropout=0.3),
        training(store),
        development(store),
        short(epochs=4),
        log=lambda epoch, record: logged.append(epoch),
        **arguments,
    )
    assert logged == [3, 4]
    assert went_on.last_path.read_bytes() == straight.last_path.read_bytes()
    assert went_on.best_path.read_bytes() == straight.best_path.read_bytes()
    timeless = [
        [{k: v for k, v in record.items() if k.startswith(("train", "dev", "lr"))} for record in result.history]
        for result in (straight, went_on)
    ]
    assert timeless[0] == timeless[1]


def test_a_stop_within_an_epoch_goes_back_to_its_start(store: Store, tmp_path: Path) -> None:
    straight = run(tiny(), store, tmp_path / "straight")
    net = tiny()
    original, calls = net.loss, 0

    def loss(x: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal calls
        calls += 1
        if calls == 7:  # four steps an epoch: the middle of the second
            raise Stop
        return original(x, labels)

    net.loss = loss  # type: ignore[method-assign]
    with pytest.raises(Stop):
        run(net, store, tmp_path / "stopped")
    went_on = run(tiny(), store, tmp_path / "stopped")
    assert went_on.last_path.read_bytes() == straight.last_path.read_bytes()


def test_a_finished_training_is_not_repeated(store: Store, tmp_path: Path) -> None:
    first = run(tiny(), store, tmp_path)
    net = tiny()
    net.loss = None  # type: ignore[assignment,method-assign]
    second = run(net, store, tmp_path)
    assert second == first
    assert_equal_bits(net.state_dict(), weights(first.last_path))


def test_a_damaged_working_checkpoint_gives_way_to_the_former(store: Store, tmp_path: Path) -> None:
    straight = run(tiny(), store, tmp_path / "straight")
    folder = tmp_path / "run"
    kept: dict[str, bytes] = {}

    def keep(epoch: int, record: dict[str, float]) -> None:
        kept.update({path.name: path.read_bytes() for path in folder.glob("epoch-*.pt")})

    fit(
        tiny(),
        training(store),
        development(store),
        short(),
        folder=folder,
        card=card(),
        fingerprint={"code": "1"},
        log=keep,
    )
    assert [path.name[:10] for path in folder.glob("epoch-*.pt")] == ["epoch-0003"]
    newest = next(folder.glob("epoch-0003.*.pt"))
    newest.write_bytes(newest.read_bytes()[:-100])
    second = next(name for name in kept if name.startswith("epoch-0002"))
    (folder / second).write_bytes(kept[second])
    went_on = run(tiny(), store, folder)
    assert went_on.last_path.read_bytes() == straight.last_path.read_bytes()


def test_another_training_in_the_folder_is_refused_with_the_difference(store: Store, tmp_path: Path) -> None:
    run(tiny(), store, tmp_path)
    with pytest.raises(UserError, match=r"settings.lr: 0.1 there, 0.2 now"):
        run(tiny(), store, tmp_path, lr=0.2)
    with pytest.raises(UserError, match="code: '1' there, '2' now"):
        fit(
            tiny(),
            training(store),
            development(store),
            short(),
            folder=tmp_path,
            card=card(),
            fingerprint={"code": "2"},
        )


def test_two_trainings_in_one_folder_are_refused(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from model import working
    from model.working import claimed

    monkeypatch.setattr(working, "PATIENCE", 0.1)
    with claimed(tmp_path), pytest.raises(UserError, match="another process is training here"):
        run(tiny(), store, tmp_path)
