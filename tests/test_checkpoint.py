"""Checkpoints: whole or refused, equal bytes for equal contents, and the network comes back as it was."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_kit import PROTOGCN, card

from model import create_model
from model.checkpoint import build_network, load_checkpoint, plain_state, publish, save_checkpoint
from model.errors import UserError


@pytest.fixture
def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return create_model("protogcn", layout="nturgb+d", num_classes=3, **PROTOGCN).eval()


@pytest.fixture
def published(tmp_path: Path, net: torch.nn.Module) -> Path:
    return publish(tmp_path / "best.pt", card("protogcn", PROTOGCN), plain_state(net), 7)


def test_network_comes_back(published: Path, net: torch.nn.Module) -> None:
    checkpoint = load_checkpoint(published)
    assert checkpoint["format"] == "sixstream/1" and checkpoint["epoch"] == 7
    assert checkpoint["classes"] == ["nod", "wave", "jump"] and checkpoint["num_classes"] == 3
    assert checkpoint["recipe"] == {"stream": "joint", "clip_length": 8}
    again = build_network(checkpoint)
    assert not again.training
    x = torch.randn(2, 2, 8, 25, 3)
    with torch.no_grad():
        torch.testing.assert_close(again(x), net(x), rtol=0, atol=0)
    for name, tensor in net.state_dict().items():  # the bank is among them
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_equal_contents_are_equal_bytes(tmp_path: Path, published: Path, net: torch.nn.Module) -> None:
    again = publish(tmp_path / "other name.pt", card("protogcn", PROTOGCN), plain_state(net), 7)
    assert again.read_bytes() == published.read_bytes()


def test_later_steps_do_not_change_a_plain_state(net: torch.nn.Module) -> None:
    state = plain_state(net)
    name, tensor = next(iter(net.named_parameters()))
    before = state[name].clone()
    with torch.no_grad():
        tensor.add_(1)
    assert torch.equal(state[name], before)


def test_damaged_files_are_refused_by_name(tmp_path: Path, published: Path) -> None:
    data = published.read_bytes()
    path = tmp_path / "broken.pt"
    with pytest.raises(UserError, match=r"broken\.pt: no such checkpoint"):
        load_checkpoint(path)
    for broken in (b"", b"PK", data[:1000], data[: len(data) // 2], data[:-1], b"x" * 5000):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"broken\.pt: not a readable checkpoint"):
            load_checkpoint(path)


def test_flipped_bits_never_pass_as_other_weights(tmp_path: Path, published: Path) -> None:
    data, original = published.read_bytes(), load_checkpoint(published)["state"]
    path = tmp_path / "flipped.pt"
    for place in np.random.default_rng(0).integers(len(data), size=60):
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(place % 8)
        path.write_bytes(flipped)
        try:
            state = load_checkpoint(path)["state"]
        except UserError:
            continue
        assert all(torch.equal(state[name], tensor) for name, tensor in original.items())


class Surprise:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code ran",)


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"format": "sixstream/1", "state": Surprise()}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match=r"bad\.pt"):
        load_checkpoint(tmp_path / "bad.pt")
    assert "code ran" not in capsys.readouterr().out


def test_other_formats_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    with pytest.raises(UserError, match="format is None, expected 'sixstream/1'"):
        load_checkpoint(tmp_path / "foreign.pt")
    save_checkpoint(tmp_path / "later.pt", {}, form="sixstream/9")
    with pytest.raises(UserError, match="sixstream/9"):
        load_checkpoint(tmp_path / "later.pt")


def test_incomplete_or_unfitting_checkpoints_are_refused(published: Path) -> None:
    checkpoint = load_checkpoint(published)
    with pytest.raises(UserError, match="members/j.pt: lacks options"):
        build_network({k: v for k, v in checkpoint.items() if k != "options"}, "members/j.pt")
    with pytest.raises(UserError, match="members/j.pt: the weights do not fit 'protogcn'"):
        build_network({**checkpoint, "num_classes": 4}, "members/j.pt")


def test_a_failed_write_leaves_the_former_file(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = published.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("model.atomic.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(published, {"state": {}})
    assert published.read_bytes() == before
    assert [path.name for path in published.parent.iterdir()] == ["best.pt"]
