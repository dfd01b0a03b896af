"""The preprocess component: what it writes beside the joints, and what it leaves out."""

import json
from pathlib import Path

import numpy as np
import pytest
from small_run import annotations, small_params, write_params, write_raw

from model.store import open_store
from model.streams import STREAMS, apply_stream
from pipeline.cli import main


@pytest.fixture()
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, small_params())
    return write_raw(tmp_path / "raw", annotations())


def test_streams_written_out_equal_the_views(raw: Path) -> None:
    wanted = ",".join(STREAMS[1:])
    assert main(["preprocess", "--raw", str(raw), "--out", "packed", "--materialise", wanted]) == 0
    store = open_store("packed")
    for stream in STREAMS[1:]:
        rows = np.load(f"packed/{stream}.npy")
        assert rows.shape == store.joints.shape and rows.dtype == np.float32
        for i in (0, len(store) - 1):
            clip = apply_stream(store.clip(i), store.layout, stream, store.channels)
            first = int(store.offset[i])
            np.testing.assert_array_equal(rows[first : first + len(clip.reshape(-1, 6 * 3))], clip.reshape(-1, 6, 3))


def test_a_stream_that_does_not_exist_is_named(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preprocess", "--raw", str(raw), "--out", "packed", "--materialise", "elbow"]) == 2
    assert "elbow" in capsys.readouterr().err and not Path("packed").exists()


def test_a_broken_clip_is_set_aside_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, small_params())
    content = annotations()
    content["annotations"][5]["keypoint"] *= 0
    raw = write_raw(tmp_path / "raw", content)
    assert main(["preprocess", "--raw", str(raw), "--out", "packed"]) == 0
    store = open_store("packed")
    assert len(store) == 35 and "clip005" not in store.ids
    assert json.loads(Path("packed/excluded.json").read_text()) == [["clip005", "all joints are zero"]]
