"""What training and scoring refuse, and how progress is shown."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training_kit import card, development, run, short, small_store, tiny, training

from model.errors import UserError
from model.progress import Progress, counted
from model.score import clip_logits, score_clips
from model.settings import epoch_batches
from model.store import Store
from model.train import fit


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return small_store(tmp_path_factory.mktemp("data") / "store")


# --- nonsense is refused ---------------------------------------------------------------------------------------


class Changed:
    """Clips of a store with something spoilt."""

    def __init__(self, clips: Any, *, labels: Tensor | None = None, spoil: Any = None) -> None:
        self.clips, self.spoil = clips, spoil
        self.ids, self.num_clips = clips.ids, clips.num_clips
        self.labels = clips.labels if labels is None else labels

    def __len__(self) -> int:
        return len(self.clips)

    def batch(self, rows: Tensor, generator: torch.Generator | None = None) -> Tensor:
        x = self.clips.batch(rows, generator)
        return x if self.spoil is None else self.spoil(x, rows)


def fit_changed(store: Store, folder: Path, net: nn.Module | None = None, **changes: Any) -> None:
    clips: Any = Changed(training(store), **changes)
    fit(net or tiny(), clips, None, short(), folder=folder, card=card(), fingerprint={})


def test_labels_out_of_range(store: Store, tmp_path: Path) -> None:
    labels = training(store).labels.clone()
    labels[5] = 3
    with pytest.raises(UserError, match="sample 'clip005' has label 3, but there are 3 classes"):
        fit_changed(store, tmp_path, labels=labels)
    dev: Any = Changed(development(store), labels=torch.full((12,), -1))
    with pytest.raises(UserError, match="development set: sample 'clip032' has label -1"):
        fit(tiny(), training(store), dev, short(), folder=tmp_path, card=card(), fingerprint={})
    assert not list(tmp_path.iterdir())


def test_one_class_only(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="all 32 clips have label 1"):
        fit_changed(store, tmp_path, labels=torch.ones(32, dtype=torch.int64))


def test_zero_stream(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="zero in all 32 clips"):
        fit_changed(store, tmp_path, spoil=lambda x, rows: x * 0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_not_finite_data(store: Store, tmp_path: Path, value: float) -> None:
    def spoil(x: Tensor, rows: Tensor) -> Tensor:
        x[rows == 9, 0, 0, 0, 0] = value
        return x

    with pytest.raises(UserError, match="sample 'clip009' holds NaN"):
        fit_changed(store, tmp_path, spoil=spoil)


def test_batch_larger_than_the_set_or_not_divisible(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch_size: 64 is more than the 32 training clips"):
        run(tiny(), store, tmp_path, batch_size=64)
    with pytest.raises(UserError, match="batch_size: 8 does not divide by 1 processes x 3"):
        run(tiny(), store, tmp_path, accumulate=3)


def test_label_smoothing_needs_a_loss_that_has_it(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="label_smoothing: the loss of TinyNet has none"):
        run(tiny(), store, tmp_path, label_smoothing=0.1)


def test_nan_loss_stops_and_the_former_checkpoint_stays(store: Store, tmp_path: Path) -> None:
    net = tiny()
    original, calls = net.loss, 0

    def loss(x: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal calls
        calls += 1
        total, parts = original(x, labels)
        return (total * math.nan if calls == 6 else total), parts

    net.loss = loss  # type: ignore[method-assign]
    with pytest.raises(UserError, match="loss became nan in epoch 2, step 2") as caught:
        run(net, store, tmp_path)
    rows = epoch_batches(short(), torch.zeros(32), 1)[1]
    assert all(f"clip{row:03d}" in str(caught.value) for row in rows)
    assert [path.name[:10] for path in tmp_path.glob("epoch-*")] == ["epoch-0001"]
    straight = run(tiny(), store, tmp_path / "straight")
    assert run(tiny(), store, tmp_path).last_path.read_bytes() == straight.last_path.read_bytes()


def test_diverging_weights_stop(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="became"):
        run(tiny(), store, tmp_path, lr=1e30, schedule="constant")


# --- scoring and progress --------------------------------------------------------------------------------------


def test_scores_do_not_depend_on_the_batch(store: Store) -> None:
    net, clips = tiny().train(), development(store, num_clips=10)
    whole = score_clips(net, clips, 1000)
    assert net.training
    assert whole.dtype == np.float32 and whole.shape == (12, 3)
    np.testing.assert_allclose(whole.sum(1), 1, rtol=1e-6)
    for batch in (1, 7, 10, 30):
        np.testing.assert_allclose(score_clips(net, clips, batch), whole, rtol=1e-5, atol=1e-6)
    logits = clip_logits(net, clips, 50)
    assert logits.shape == (12, 10, 3)
    np.testing.assert_allclose(logits.softmax(-1).mean(1).numpy(), whole, rtol=1e-5, atol=1e-6)


def test_scores_of_spoilt_weights_are_refused(store: Store) -> None:
    net = tiny()
    with torch.no_grad():
        net.fc.bias.fill_(math.nan)
    with pytest.raises(UserError, match="12 samples .'clip032'"):
        score_clips(net, development(store), 8)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_redraws_on_a_terminal_and_prints_lines_elsewhere() -> None:
    record = {"train/loss": 0.5, "dev/top1": 0.25, "samples_per_s": 90.0, "wait_share": 0.1, "seconds": 2.0}
    for stream in (Terminal(), io.StringIO()):
        progress = Progress(2, 0, 4, shown=True, stream=stream)
        progress.step(1, 2, 0.75, 90.0, 0.1)
        progress.epoch(1, record)
        text = stream.getvalue()
        assert ("\r" in text) == stream.isatty() == ("[##########..........]" in text)
        assert text.endswith("\n") and "epoch 1/2  loss 0.5000  dev top1 0.2500  90 samples/s  wait 10%" in text
    silent = io.StringIO()
    Progress(2, 0, 4, shown=False, stream=silent).epoch(1, record)
    assert silent.getvalue() == ""


def test_items_are_counted_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.progress._REDRAW", 0)
    for stream in (Terminal(), io.StringIO()):
        assert list(counted(iter("abcd"), 4, "clips", stream)) == list("abcd")
        text = stream.getvalue()
        assert ("clips 2/4 [##########..........]" in text) == stream.isatty() == bool(text)
    assert list(counted([1, 2], 0, "clips", Terminal())) == [1, 2]


def test_accumulation_is_announced(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tiny(), store, tmp_path, epochs=1, accumulate=2)
    assert "accumulate 2: an optimiser step is 2 forward passes of 4 clips" in capsys.readouterr().err
