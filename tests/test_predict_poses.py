"""Predictions from the files of pose estimators equal those from the same joints as arrays."""

from pathlib import Path

import numpy as np
import pytest
from pose_files import write_coco, write_mediapipe, write_openpose, write_table
from tiny_bundle import tiny_bundle, tiny_store

from components.bundle import load_bundle
from components.predict import predict, read_clips
from model.errors import UserError
from model.layouts import layout_to_dict, load_layout


def bundle_of(folder: Path, layout: str) -> Path:
    return tiny_bundle(folder / "bundle", tiny_store(folder / "store", layout_name=layout))


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A bundle of 2D clips of COCO's joints, as far as reading goes."""
    folder = tmp_path_factory.mktemp("bundle")
    return {**load_bundle(bundle_of(folder, "coco"), "cpu").spec, "channels": ["x", "y", "score"]}


@pytest.mark.parametrize("form", ["dataset", "results", "frames", "mmpose"])
def test_coco_files_are_read(tmp_path, spec, form):
    made = write_coco(tmp_path, form)
    path = tmp_path / "person_keypoints.json" if form == "dataset" else tmp_path
    clips = {clip["id"]: clip for clip in read_clips(path, spec)}
    assert sorted(clips) == sorted(made)
    assert np.allclose(clips["kick_1"]["joints"], made["kick_1"], atol=1e-4)
    if form == "results":
        (one,) = read_clips(tmp_path / "kick_1.json", spec)
        assert one["id"] == "kick_1" and np.array_equal(one["joints"], clips["kick_1"]["joints"])


def test_openpose_files_are_mapped_by_name(tmp_path, spec, capsys):
    made = write_openpose(tmp_path, 18)
    order = [load_layout("openpose").joints.index(name) for name in load_layout("coco").joints]
    clips = {clip["id"]: clip["joints"] for clip in read_clips(tmp_path, spec)}
    assert np.allclose(clips["wave_2"], made["wave_2"][:, :, order])
    assert "openpose to coco: every joint has its counterpart" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["csv", "npz"])
def test_tables_are_read(tmp_path, spec, form):
    made = write_table(tmp_path, list(load_layout("coco").joints), ["x", "y", "score"], form)
    for path in (tmp_path, tmp_path / f"poses.{form}"):
        clips = {clip["id"]: clip["joints"] for clip in read_clips(path, spec)}
        assert sorted(clips) == sorted(made) and np.allclose(clips["wave_1"], made["wave_1"])


def test_a_prediction_end_to_end(tmp_path):
    bundle = bundle_of(tmp_path, "mediapipe")
    made = write_mediapipe(tmp_path / "raw", "json")
    answers = {answer["id"]: answer["scores"] for answer in predict(str(bundle), [tmp_path / "raw"])}
    expected, _ = load_bundle(bundle, "cpu").predict([made[id][..., :3] for id in answers])
    assert np.allclose(list(answers.values()), expected, atol=1e-6)


@pytest.mark.parametrize("form", ["npy", "npz"])
def test_landmarks_lose_the_columns_that_training_did_not_read(tmp_path, spec, form):
    made = write_mediapipe(tmp_path, form)
    three = {
        **spec, "layout": layout_to_dict(load_layout("mediapipe")), "channels": ["x", "y", "z"],
        "preparation": {"reader": "mediapipe"},
    }  # fmt: skip
    clips = {clip["id"]: clip["joints"] for clip in read_clips(tmp_path, three)}
    assert sorted(clips) == sorted(made) and np.array_equal(clips["kick_1"], made["kick_1"][..., :3])
    (first, *_) = read_clips(tmp_path / ("wave_1.npy" if form == "npy" else "all.npz"), three)
    assert np.array_equal(first["joints"], made["wave_1"][..., :3])


def test_what_cannot_be_read_is_named(tmp_path, spec):
    write_mediapipe(tmp_path, "npy")
    with pytest.raises(UserError, match="no such file"):
        read_clips(tmp_path / "nowhere", spec)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("x")
    with pytest.raises(UserError, match="notes: holds none of"):
        read_clips(tmp_path / "notes", spec)
    three = {**spec, "channels": ["x", "y", "z"]}
    write_openpose(tmp_path / "flat", 18)
    with pytest.raises(UserError, match="has the channels x, y, score, wanted are x, y, z"):
        read_clips(tmp_path / "flat", three)
