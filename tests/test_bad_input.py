"""Mistakes of a user's: one clear message, exit code 2, no traceback, nothing half-written."""

import copy
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_run import annotations, small_params, write_params, write_raw

from pipeline.cli import main


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    try:
        code = main(list(arguments))
    except SystemExit as stop:  # argparse
        code = int(stop.code or 0)
    return code, capsys.readouterr().err


@pytest.fixture()
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _nan(content: dict[str, Any]) -> None:
    content["annotations"][3]["keypoint"][0, 2, 1, 0] = np.nan


def _joints(content: dict[str, Any]) -> None:
    content["annotations"][3]["keypoint"] = content["annotations"][3]["keypoint"][:, :, :5]


def _label(content: dict[str, Any]) -> None:
    content["annotations"][3]["label"] = 7


def _empty(content: dict[str, Any]) -> None:
    content["annotations"][3]["keypoint"] = np.zeros((1, 0, 6, 3), np.float32)
    content["annotations"][3]["total_frames"] = 0


def _zero(content: dict[str, Any]) -> None:
    content["annotations"][3]["keypoint"] *= 0


def _double(content: dict[str, Any]) -> None:
    content["annotations"][4]["frame_dir"] = "clip003"


def _unknown(content: dict[str, Any]) -> None:
    content["split"]["a_test"].append("clip999")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_nan, ["clip003", "neck", "nan"]),
        (_joints, ["clip003", "joints"]),
        (_label, ["clip003", "label 7", "3 classes"]),
        (_empty, ["clip003"]),
        (_zero, ["clip003", "zero"]),
        (_double, ["clip003", "twice"]),
        (_unknown, ["clip999", "a_test"]),
    ],
)
def test_bad_annotations(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[dict[str, Any]], None],
    words: list[str],
) -> None:
    content = annotations()
    spoil(content)
    params = small_params()
    params["datasets"]["small"]["data"]["strict"] = True
    write_params(place, params)
    raw = write_raw(place / "raw", content)
    code, message = _run(capsys, "preprocess", "--raw", str(raw), "--out", "packed")
    assert code == 2 and "Traceback" not in message
    for word in words:
        assert word in message
    assert {path.name for path in place.iterdir()} == {"params.yaml", "raw"}


class _Code:
    def __reduce__(self) -> Any:
        return os.system, ("touch owned",)


def test_pickle_with_code(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_params(place, small_params())
    raw = write_raw(place / "raw", annotations())
    (raw / "small.pkl").write_bytes(pickle.dumps({"split": {}, "annotations": [_Code()]}))
    code, message = _run(capsys, "preprocess", "--raw", str(raw), "--out", "packed")
    assert code == 2 and "system" in message and "small.pkl" in message
    assert not (place / "owned").exists() and not (place / "packed").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_pickle(place: Path, capsys: pytest.CaptureFixture[str], share: float) -> None:
    write_params(place, small_params())
    raw = write_raw(place / "raw", annotations())
    whole = (raw / "small.pkl").read_bytes()
    (raw / "small.pkl").write_bytes(whole[: int(share * len(whole))])
    code, message = _run(capsys, "preprocess", "--raw", str(raw), "--out", "packed")
    assert code == 2 and "small.pkl" in message and not (place / "packed").exists()


def test_missing_raw_data(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_params(place, small_params())
    code, message = _run(capsys, "preprocess", "--raw", "nowhere", "--out", "packed")
    assert code == 2 and "nowhere" in message


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("datasets/small/data/prepare", [{"name": "rotate_it"}], ["rotate_it", "normalise_3d"]),
        ("datasets/small/data/prepare", [{"name": "normalise_3d", "spin": 1}], ["spin", "align_spine"]),
        ("datasets/small/data/reader", "csv", ["reader", "csv", "annotations"]),
        ("datasets/small/recipe/epoch", 3, ["datasets.small.recipe.epoch", "unknown key", "'epochs'"]),
        ("members/joint/stream", "elbow", ["members.joint.stream", "'joint_motion'"]),
    ],
)
def test_bad_parameters(
    place: Path, capsys: pytest.CaptureFixture[str], path: str, value: Any, words: list[str]
) -> None:
    params = small_params()
    node: Any = params
    *parents, last = path.split("/")
    for part in parents:
        node = node[part]
    node[last] = value
    write_params(place, params)
    raw = write_raw(place / "raw", annotations())
    code, message = _run(capsys, "preprocess", "--raw", str(raw), "--out", "packed")
    assert code == 2 and not (place / "packed").exists()
    for word in words:
        assert word in message


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a packed store and one trained and scored member."""
    place = tmp_path_factory.mktemp("trained")
    former = Path.cwd()
    os.chdir(place)
    try:
        write_params(place, small_params())
        raw = write_raw(place / "raw", annotations())
        assert main(["preprocess", "--raw", str(raw), "--out", "packed"]) == 0
        for member in ("joint", "bone"):
            assert main(["train", "--member", member, "--data", "packed", "--out", f"runs/{member}/train"]) == 0
            line = ["--data", "packed", "--trained", f"runs/{member}/train", "--out", f"runs/{member}/scores"]
            assert main(["evaluate", "--member", member, *line]) == 0
    finally:
        os.chdir(former)
    return place


def test_unknown_member_and_split(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    code, message = _run(capsys, "train", "--member", "elbow", "--data", "packed", "--out", "x")
    assert code == 2 and "'elbow'" in message and "joint, bone" in message
    params = small_params()
    params["datasets"]["small"]["split"]["train"] = "b_train"
    other = trained / "other.yaml"
    other.write_text(write_params(trained, params).read_text())
    write_params(trained, small_params())
    code, message = _run(capsys, "train", "--params", str(other), "--member", "joint", "--data", "packed", "--out", "x")
    assert code == 2 and "'b_train'" in message and "a_train" in message
    assert not (trained / "x").exists()


def test_network_option_that_does_not_exist(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    params = copy.deepcopy(small_params())
    params["members"]["joint"]["network"] = {"width": 3}
    other = trained / "wide.yaml"
    other.write_text(write_params(trained, params).read_text())
    write_params(trained, small_params())
    code, message = _run(capsys, "train", "--params", str(other), "--member", "joint", "--data", "packed", "--out", "x")
    assert code == 2 and "'width'" in message and "base_channels" in message


@pytest.mark.parametrize("kind", ["truncated", "flipped", "text", "missing"])
def test_corrupt_checkpoint(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(trained)
    folder = tmp_path / "train"
    folder.mkdir()
    good = (trained / "runs/joint/train/best.pt").read_bytes()
    half = len(good) // 2
    spoilt = {
        "truncated": good[:half],
        "flipped": good[:half] + struct.pack("B", good[half] ^ 255) + good[half + 1 :],
        "text": b"not a checkpoint",
    }
    if kind in spoilt:
        (folder / "best.pt").write_bytes(spoilt[kind])
    out = tmp_path / "scores"
    code, message = _run(
        capsys, "evaluate", "--member", "joint", "--data", "packed", "--trained", str(folder), "--out", str(out)
    )
    assert code == 2 and "best.pt" in message and not out.exists()


def test_score_tables_that_do_not_match(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from dataclasses import replace

    from model.scoretable import load_table, save_table

    monkeypatch.chdir(trained)
    runs = tmp_path / "runs"
    shutil.copytree(trained / "runs", runs)
    path = runs / "bone/scores/best-a_test.npz"
    table = load_table(path)
    spoilt = {
        "'clip": replace(table, ids=table.ids[1:], labels=table.labels[1:], scores=table.scores[1:]),
        "label": replace(table, labels=(table.labels + 1) % 3),
        "data": replace(table, data_hash="0" * 32),
    }
    for word, wrong in spoilt.items():
        save_table(path, wrong)
        code, message = _run(capsys, "ensemble", "--runs", str(runs), "--out", str(tmp_path / "fused"))
        assert code == 2 and word in message and "bone" in message, message
        assert not (tmp_path / "fused").exists()


def test_help_of_every_verb_names_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.cli import SUMMARIES, VERBS

    assert set(SUMMARIES) == set(VERBS)
    for verb in VERBS:
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
        assert stop.value.code == 0 and SUMMARIES[verb] in capsys.readouterr().out.replace("\n", " ")
