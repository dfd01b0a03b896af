"""Foreign torch files: tensors come back, unknown classes are listed and inert, damage is one message."""

import collections
import io
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.torch_files import Placeholder, load_scores_pickle, read_torch_file
from model.errors import UserError


class Evil:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


class History:
    """Like MMEngine's history buffer: arrays, and methods by way of `getattr`."""

    def __init__(self) -> None:
        self.log = np.arange(3.0)

    def __getstate__(self) -> Any:
        return {"log": self.log, "least": History.__init__, "rate": np.float64(0.1)}

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("a placeholder ran code of its class")


class Settings(dict):
    pass


class Names(list):
    pass


@pytest.fixture()
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The classes as those of a package that is not there when the file is read."""
    package = types.ModuleType("elsewhere")
    for kind in (History, Settings, Names):
        monkeypatch.setattr(kind, "__module__", "elsewhere")
        setattr(package, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "elsewhere", package)
    yield package
    assert "elsewhere" not in sys.modules or sys.modules["elsewhere"] is package


def state() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict()


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_every_kind_come_back(tmp_path: Path, zipped: bool) -> None:
    table = torch.arange(24.0)
    content = {
        "state_dict": state(),
        "views": [table.view(2, 3, 4).transpose(0, 2), table[3:7], table],
        "kinds": [torch.ones(2, dtype=kind) for kind in (torch.half, torch.bfloat16, torch.int8, torch.bool)],
        "parameter": torch.nn.Parameter(torch.rand(3)),
        "empty": [torch.empty(0), torch.tensor(5), torch.zeros(2, 0, 3)],
        "meta": {"epoch": 24, "lr": [0.1], "classes": ("a", "b"), "best": np.float32(0.5), "log": np.eye(2)},
    }
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    found = read_torch_file(tmp_path / "x.pth")
    assert found.placeholders == []
    for name, value in content["state_dict"].items():
        assert torch.equal(found.content["state_dict"][name], value)
    for part in ("views", "kinds", "empty"):
        for ours, theirs in zip(found.content[part], content[part], strict=True):
            assert ours.dtype == theirs.dtype and ours.shape == theirs.shape and torch.equal(ours, theirs)
    assert torch.equal(found.content["parameter"], content["parameter"].data)
    meta = found.content["meta"]
    assert meta["epoch"] == 24 and meta["classes"] == ("a", "b") and meta["best"] == np.float32(0.5)
    assert np.array_equal(meta["log"], np.eye(2))


@pytest.mark.parametrize("zipped", [True, False])
def test_unknown_classes_are_listed_and_never_imported(
    tmp_path: Path, elsewhere: Any, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    content = {
        "message_hub": {"loss": History()},
        "settings": Settings(a=1, b=Settings(c=[2])),
        "names": Names(["x"]),
        "counts": collections.defaultdict(list, {"a": [1]}),
        "evil": Evil(f"touch {tmp_path / 'ran'}"),
        "kind": torch.float32,
        "state_dict": state(),
    }
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    monkeypatch.delitem(sys.modules, "elsewhere")
    found = read_torch_file(tmp_path / "x.pth")
    assert set(found.placeholders) == {
        "elsewhere.History",
        "elsewhere.Settings",
        "elsewhere.Names",
        "__builtin__.getattr",
        "collections.defaultdict",
        "__builtin__.list",
        f"{os.name}.system",
        "torch.float32",
    }
    assert not (tmp_path / "ran").exists() and "elsewhere" not in sys.modules
    for part in ("settings", "names", "counts", "evil", "kind"):
        assert isinstance(found.content[part], Placeholder)
    assert repr(found.content["message_hub"]["loss"]) == "<elsewhere.History, not imported>"
    assert torch.equal(found.content["state_dict"]["0.bias"], state()["0.bias"])


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_anywhere_is_refused_by_name(tmp_path: Path, zipped: bool) -> None:
    torch.save({"state_dict": state(), "meta": {"epoch": 3}}, tmp_path / "x", _use_new_zipfile_serialization=zipped)
    whole, path = (tmp_path / "x").read_bytes(), tmp_path / "cut.pth"
    for length in [0, 1, 3, *range(4, len(whole) - 1, len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.pth"):
            read_torch_file(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_flipped_bits_give_a_message_or_data(tmp_path: Path, zipped: bool) -> None:
    torch.save({"state_dict": state(), "meta": {"epoch": 3}}, tmp_path / "x", _use_new_zipfile_serialization=zipped)
    whole, path = (tmp_path / "x").read_bytes(), tmp_path / "flipped.pth"
    for place in np.random.default_rng(0).integers(len(whole), size=150):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(place % 8)
        path.write_bytes(flipped)
        try:
            read_torch_file(path)
        except UserError as error:
            assert str(path) in str(error)


def crafted(tmp_path: Path, program: bytes, data: bytes = b"\0" * 16) -> Path:
    path = tmp_path / "crafted.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", data)
    return path


STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n("


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (TENSOR + STORAGE + b"K\x00(K\x05t(K\x01t\x89NtR.", "out of bounds"),
        (TENSOR + STORAGE + b"J\xff\xff\xff\xff(K\x01t(K\x01t\x89NtR.", "crafted.pth"),
        (TENSOR + b"]K\x00(K\x05t(K\x01t\x89NtR.", "no storage"),
        (TENSOR + STORAGE.replace(b"K\x04t", b"K\x05t") + b"K\x00(K\x05t(K\x01t\x89NtR.", "declared as 5"),
        (STORAGE.replace(b"FloatStorage", b"OtherStorage") + b".", "unknown kind"),
        (STORAGE.replace(b"storage", b"modules") + b".", "unknown kind"),
        (b"ctorch._utils\n_rebuild_parameter\n(K\x01\x89NtR.", "no tensor"),
        (TENSOR + b"tR}b.", "crafted.pth"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n}X\x08\0\0\0__code__NsN\x86b.", "sets the state"),
        (b"K\x01)R.", "calls a value"),
        (b"Pxyz\n.", "PERSID"),
    ],
)
def test_crafted_programs_end_in_one_message(tmp_path: Path, program: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        read_torch_file(crafted(tmp_path, program))
    assert "crafted.pth" in str(error.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.pth: cannot be read"):
        read_torch_file(tmp_path / "gone.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"a": 1}))
    with zipfile.ZipFile(tmp_path / "archive.pth", "w") as archive:
        archive.writestr("readme.txt", "no checkpoint")
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), str(tmp_path / "script.pth"))
    for name in ("plain.pth", "archive.pth", "script.pth"):
        with pytest.raises(UserError, match=name):
            read_torch_file(tmp_path / name)


def test_a_dump_of_tensors_is_read_without_torchs_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.rand(4, 3)
    dump = [{"pred_score": row, "gt_label": torch.tensor([1])} for row in scores]
    dumps = [pickle.dumps(dump, protocol) for protocol in (2, 4, 5)]
    monkeypatch.setattr(torch.storage, "_load_from_bytes", lambda content: pytest.fail("torch's hook was called"))
    for content in dumps:
        (tmp_path / "dump.pkl").write_bytes(content)
        found = load_scores_pickle(tmp_path / "dump.pkl")
        assert all(torch.equal(sample["pred_score"], row) for sample, row in zip(found, scores, strict=True))


def test_code_inside_a_dumped_storage_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = io.BytesIO()
    torch.save(Evil(f"touch {tmp_path / 'ran'}"), inner, _use_new_zipfile_serialization=False)

    class Hook:
        def __reduce__(self) -> tuple[Any, ...]:
            return torch.storage._load_from_bytes, (inner.getvalue(),)

    for content in (Hook(), Evil(f"touch {tmp_path / 'ran'}")):
        (tmp_path / "dump.pkl").write_bytes(pickle.dumps([{"pred_score": content}]))
        with pytest.raises(UserError, match=r"dump\.pkl"):
            load_scores_pickle(tmp_path / "dump.pkl")
    assert not (tmp_path / "ran").exists()
