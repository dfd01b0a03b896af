"""Readers: raw NTU folders and annotation pickles to checked clips."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components import readers
from components.readers import READERS
from components.source import Source
from model import ntu
from model.errors import UserError
from model.store import open_store, write_store

read_annotations, read_ntu = READERS["annotations"], READERS["ntu_raw"]


def store_of(source: Source, folder: Path):
    write_store(
        folder,
        source.clips,
        layout=source.layout,
        classes=source.classes,
        splits=source.splits,
        channels=source.channels,
        data_hash="",
        source="test",
    )
    return open_store(folder)


def sample(name: str, label: int = 0, *, joints: int = 17, width: int = 2, frames: int = 4, **more: Any) -> dict:
    random = np.random.RandomState(len(name) + label)
    found = {
        "frame_dir": name,
        "label": label,
        "total_frames": frames,
        "keypoint": random.rand(2, frames, joints, width).astype(np.float16) + 1,
    }
    if width == 2:
        found |= {"keypoint_score": random.rand(2, frames, joints).astype(np.float16), "img_shape": (480, 640)}
    return found | more


def annotation_file(folder: Path, samples: list[dict], split: Any = None, about: Any = None) -> Path:
    path = folder / "set.pkl"
    split = {"train": [each["frame_dir"] for each in samples]} if split is None else split
    path.write_bytes(pickle.dumps({"split": split, "annotations": samples}, 4))
    if about is not None:
        (folder / "set.json").write_text(json.dumps(about))
    return path


def test_image_annotations_are_joined_with_their_scores(tmp_path):
    samples = [sample("b", 1), sample("a", 0, frames=6), sample("c", 1)]
    source = read_annotations(annotation_file(tmp_path, samples, {"train": ["a", "b"], "test": np.array(["c"])}))
    assert source.layout.name == "coco" and source.channels == ["x", "y", "score"]
    assert source.classes == ["class 0", "class 1"]
    # as in PYSKL, a split keeps the order of the annotations
    assert source.splits == {"train": ["b", "a"], "test": ["c"]}
    store = store_of(source, tmp_path / "s")
    assert store.ids == ["b", "a", "c"] and store.labels.tolist() == [1, 0, 1]
    for i, each in enumerate(samples):
        assert np.array_equal(store.clip(i)[..., :2], each["keypoint"])
        assert np.array_equal(store.clip(i)[..., 2], each["keypoint_score"])
    assert store.image_size.tolist() == [[480, 640]] * 3 and source.excluded == []


def test_ntu_annotations_get_factors_and_class_names_from_their_ids(tmp_path):
    samples = [
        sample("S001C002P003R001A007", 6, joints=25, width=3),
        sample("S002C001P008R001A001", 0, joints=25, width=3),
    ]
    source = read_annotations(annotation_file(tmp_path, samples))
    assert source.layout.name == "nturgb+d" and source.channels == ["x", "y", "z"]
    assert source.classes == list(ntu.action_names()[:60])
    clips = list(source.clips)
    assert [dict(clip.factors) for clip in clips] == [
        {"setup": 1, "camera": 2, "subject": 3},
        {"setup": 2, "camera": 1, "subject": 8},
    ]
    assert clips[0].joints.dtype == np.float16 and clips[0].image_size is None


def test_the_json_beside_gives_layout_classes_and_splits(tmp_path):
    about = {
        "name": "mine",
        "layout": "stick",
        "joints": ["hip", "head", "left_hand", "right_hand"],
        "parents": [-1, 0, 1, 1],
        "classes": ["up", "down"],
        "splits": {"train": 2, "dev": ["a"]},
    }
    samples = [sample(name, i, joints=4, width=3, subject=i, view=2) for i, name in enumerate("ab")]
    source = read_annotations(annotation_file(tmp_path, samples, about=about))
    assert source.layout.name == "stick" and source.layout.mirror == (0, 1, 3, 2) and source.classes == ["up", "down"]
    assert source.splits == {"train": ["a", "b"], "dev": ["a"]}
    assert [dict(clip.factors) for clip in source.clips] == [{"subject": 0, "camera": 2}, {"subject": 1, "camera": 2}]


def test_arguments_go_before_the_json_and_a_folder_stands_for_its_pickle(tmp_path):
    samples = [sample("a", joints=15, width=3), sample("b", joints=15, width=3)]
    annotation_file(tmp_path, samples, about={"layout": "coco", "classes": ["x"]})
    source = read_annotations(tmp_path, layout="kinect15", classes=["y", "z"], channels=["x", "y", "score"])
    assert (source.layout.name, source.classes, source.channels) == ("kinect15", ["y", "z"], ["x", "y", "score"])
    (tmp_path / "other.pkl").touch()
    with pytest.raises(UserError, match="holds 2 pickle files"):
        read_annotations(tmp_path)


def test_two_dimensions_without_a_score_stay_two(tmp_path):
    each = sample("a")
    del each["keypoint_score"]
    source = read_annotations(annotation_file(tmp_path, [each]))
    assert source.channels == ["x", "y"] and next(source.clips).joints.shape == (2, 4, 17, 2)


def test_a_sample_of_zeros_is_set_aside_or_refused(tmp_path):
    samples = [sample("a"), sample("zero"), sample("c")]
    samples[1]["keypoint"] *= 0
    path = annotation_file(tmp_path, samples, {"train": ["a", "zero"], "test": ["c"]})
    source = read_annotations(path)
    assert store_of(source, tmp_path / "s").ids == ["a", "c"]
    assert source.excluded == [("zero", "all joints are zero")] and source.splits["train"] == ["a"]
    with pytest.raises(UserError, match="sample zero: all joints are zero"):
        list(read_annotations(path, strict=True).clips)


def without(key: str):
    return lambda each: each.pop(key)


def put(key: str, value: Any):
    return lambda each: each.__setitem__(key, value)


def spoil(value: float):
    def change(each: dict) -> None:
        each["keypoint"][1, 2, 5, 0] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("frame_dir"), "annotation 1 has no 'frame_dir'"),
        (without("label"), "sample b: has no 'label'"),
        (without("keypoint"), "sample b: has no 'keypoint'"),
        (without("total_frames"), "sample b: has no 'total_frames'"),
        (without("keypoint_score"), "sample b: 'keypoint_score' must be an array"),
        (put("label", 2), "sample b: label 2 is out of range for 2 classes"),
        (put("label", -1), "sample b: label -1 is out of range"),
        (put("label", "walk"), "sample b: 'label' is 'walk', not a whole number"),
        (put("frame_dir", "a"), "sample a occurs twice"),
        (put("total_frames", 9), "sample b: 'total_frames' is 9.*4 frames"),
        (put("keypoint", np.ones((1, 4, 13, 2))), r"sample b: 'keypoint' has 13 joints, layout 'coco' has 17"),
        (put("keypoint", np.ones((4, 17, 2))), r"sample b: 'keypoint' must be.*\(4, 17, 2\)"),
        (put("keypoint", np.ones((1, 0, 17, 2))), "sample b: 'keypoint' is empty"),
        (put("keypoint", [[1.0]]), "sample b: 'keypoint' must be an array.*list"),
        (put("keypoint", np.array([["x"]])), "sample b: 'keypoint' must be an array"),
        (put("keypoint_score", np.ones((2, 3, 17))), "sample b: 'keypoint_score' must be.*2, 4, 17"),
        (put("img_shape", (0, 640)), "sample b: 'img_shape'"),
        (put("img_shape", 640), "sample b: 'img_shape'"),
        (put("subject", "Ann"), "sample b: 'subject' is 'Ann'"),
        (spoil(np.nan), r"sample b: x of joint 5 \(left_shoulder\), person 1, frame 2 is nan"),
        (spoil(-np.inf), "sample b: .* is -inf"),
    ],
)
def test_a_bad_sample_is_named_with_its_field(tmp_path, change, message):
    samples = [sample("a"), sample("b", 1)]
    split = {"train": ["a"]}
    change(samples[1])
    path = annotation_file(tmp_path, samples, split)
    with pytest.raises(UserError, match=rf"set\.pkl.*{message}"):
        list(read_annotations(path, classes=["x", "y"]).clips)


@pytest.mark.parametrize(
    ("split", "about", "message"),
    [
        ({"train": ["a", "nobody"]}, None, "set.pkl: split 'train' names 1 ids.*nobody"),
        ({"train": 3}, None, "set.pkl: split 'train'"),
        ([], None, "set.pkl: must hold a dictionary"),
        (None, {"splits": {"train": 7}}, "set.json: split 'train' should have 7 clips, set.pkl has 2"),
        (None, {"splits": {"test": ["z"]}}, "set.json: split 'test' names 1 ids.*z"),
        (None, {"splits": ["train"]}, "set.json: 'splits'"),
        (None, {"classes": ["x", "x"]}, "set.json: 'classes'"),
        (None, {"classes": ["x"]}, "sample b: label 1 is out of range for 1 classes"),
        (None, {"joints": ["a", "b"], "parents": [-1, -1]}, "set.json: field 'parents'"),
        (None, {"layout": "octopus"}, "octopus"),
        (None, [], "set.json: must be a JSON object"),
    ],
)
def test_splits_and_the_json_are_checked(tmp_path, split, about, message):
    path = annotation_file(tmp_path, [sample("a"), sample("b", 1)], split, about)
    with pytest.raises(UserError, match=message):
        list(read_annotations(path).clips)


def test_a_number_of_joints_without_a_layout_asks_for_one(tmp_path):
    path = annotation_file(tmp_path, [sample("a", joints=11, width=3)])
    with pytest.raises(UserError, match="no layout is known for 11 joints"):
        read_annotations(path)


def test_a_table_of_contents_is_recognised(tmp_path):
    path = annotation_file(tmp_path, [{"frame_dir": "a", "label": 0, "frame_inds": np.arange(3), "total_frames": 3}])
    with pytest.raises(UserError, match="sample a: has no 'keypoint'; this is a table of contents"):
        read_annotations(path)


def raw(name: str, frames: int = 3, seed: int = 0) -> bytes:
    joints = np.random.RandomState(seed).randn(frames, 25, 3).astype(np.float32)
    clip = ntu.RawClip(name=name, counts=np.ones(frames, np.int64), ids=(72,) * frames, joints=joints)
    return ntu.format_skeleton(clip)


def raw_folder(folder: Path, names: list[str]) -> Path:
    for i, name in enumerate(names):
        (folder / f"{name}.skeleton").write_bytes(raw(name, 3 + i % 4, i))
    return folder


RAW = ["S001C001P001R001A010", "S001C002P003R001A010", "S001C003P008R001A001", "S001C001P003R002A001"]


def test_raw_clips_are_labelled_and_split_by_their_names(tmp_path):
    source = read_ntu(raw_folder(tmp_path, RAW))
    assert source.layout.name == "nturgb+d" and source.channels == ["x", "y", "z"]
    assert source.classes == [ntu.action_names()[0], ntu.action_names()[9]]
    assert source.splits["xsub_train"] == ["S001C001P001R001A010", "S001C003P008R001A001"]
    assert source.splits["xview_test"] == ["S001C001P001R001A010", "S001C001P003R002A001"]
    assert "xset_train" not in source.splits and len(source.splits["xset_test"]) == 4
    clips = {clip.id: clip for clip in source.clips}
    assert list(clips) == sorted(RAW)
    assert [clips[name].label for name in RAW] == [1, 1, 0, 0]
    assert clips[RAW[1]].factors == {"subject": 3, "camera": 2, "setup": 1}
    raw_clip = ntu.read_skeleton(tmp_path / f"{RAW[2]}.skeleton")
    assert np.array_equal(clips[RAW[2]].joints, ntu.convert_pyskl(raw_clip))


def test_only_actions_of_the_data_set_are_read(tmp_path):
    source = read_ntu(raw_folder(tmp_path, [*RAW, "S018C001P041R001A061"]), actions=60)
    assert len(list(source.clips)) == 4 and "xset_test" not in source.splits


def test_a_broken_file_is_set_aside_with_its_reason_or_refused(tmp_path):
    raw_folder(tmp_path, RAW)
    broken = tmp_path / f"{RAW[0]}.skeleton"
    broken.write_bytes(broken.read_bytes()[:900])
    (tmp_path / f"{RAW[3]}.skeleton").write_bytes(b"2\r\n0\r\n0\r\n")
    source = read_ntu(tmp_path)
    store = store_of(source, tmp_path / "s")
    assert store.ids == sorted(RAW[1:3])
    reasons = dict(source.excluded)
    assert set(reasons) == {RAW[0], RAW[3]}
    assert "line" in reasons[RAW[0]] and "no body" in reasons[RAW[3]]
    assert store.splits["xsub_train"].tolist() == [store.ids.index(RAW[2])]
    with pytest.raises(UserError, match=f"{RAW[0]}.*line"):
        list(read_ntu(tmp_path, strict=True).clips)


def test_the_published_missing_skeletons_are_left_out(tmp_path):
    missing = min(ntu.missing_names())
    source = read_ntu(raw_folder(tmp_path, [*RAW, missing]))
    assert missing not in [clip.id for clip in source.clips]
    assert source.excluded == [(missing, "on the published list of missing skeletons")]
    assert not any(missing in members for members in source.splits.values())


def test_files_read_in_parallel_are_the_same_in_the_same_order(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "PARALLEL_FROM", 10)
    monkeypatch.setattr(readers, "BLOCK", 50)
    names = [f"S001C001P{p:03d}R001A{a:03d}" for p in range(1, 13) for a in range(1, 11)]
    raw_folder(tmp_path, names)
    (tmp_path / f"{names[7]}.skeleton").write_bytes(b"nonsense")
    alone, together = read_ntu(tmp_path, workers=1), read_ntu(tmp_path, workers=2)
    for a, b in zip(alone.clips, together.clips, strict=True):
        assert (a.id, a.label, a.factors) == (b.id, b.label, b.factors) and np.array_equal(a.joints, b.joints)
    assert alone.excluded == together.excluded and len(alone.excluded) == 1


@pytest.mark.parametrize("conversion", ["pyskl", "mmaction2"])
def test_both_published_conversions(tmp_path, conversion):
    raw_folder(tmp_path, RAW)
    expected = {"pyskl": ntu.convert_pyskl, "mmaction2": ntu.convert_mmaction2}[conversion]
    for clip in read_ntu(tmp_path, conversion=conversion).clips:
        assert np.array_equal(clip.joints, expected(ntu.read_skeleton(tmp_path / f"{clip.id}.skeleton")))


def test_folders_that_are_no_ntu_data_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no .skeleton file"):
        read_ntu(tmp_path)
    with pytest.raises(UserError, match="nowhere: not a folder"):
        read_ntu(tmp_path / "nowhere")
    with pytest.raises(UserError, match="conversion 'other'"):
        read_ntu(tmp_path, conversion="other")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    raw_folder(tmp_path / "a", RAW[:1])
    raw_folder(tmp_path / "b", RAW[:1])
    with pytest.raises(UserError, match="the same clip lies at"):
        read_ntu(tmp_path)
    (tmp_path / "b" / f"{RAW[0]}.skeleton").rename(tmp_path / "b" / "holiday.skeleton")
    with pytest.raises(UserError, match="holiday: not an NTU file name"):
        read_ntu(tmp_path)


@pytest.mark.parametrize(
    ("name", "clips", "joints", "channels", "factors"),
    [
        ("florence3d", 215, 15, ["x", "y", "z"], {"subject"}),
        ("nw_ucla", 1484, 20, ["x", "y", "z"], {"subject", "camera"}),
        ("penn_action", 2326, 13, ["x", "y", "score"], set()),
    ],
)
def test_real_sets_are_packed_whole(tmp_path, data_dir, name, clips, joints, channels, factors):
    source = read_annotations(data_dir / f"{name}.pkl")
    about = json.loads((data_dir / f"{name}.json").read_text())
    store = store_of(source, tmp_path / "s")
    assert len(store) == clips and store.layout.num_joints == joints and store.channels == channels
    assert source.excluded == [] and set(store.factors) == factors
    assert store.classes == about["classes"]
    assert np.bincount(store.labels).tolist() == about["label_counts"]
    assert {name: len(members) for name, members in store.splits.items()} == about["splits"]
    assert (store.frames.min(), store.frames.max()) == (about["frames_min"], about["frames_max"])
    assert (store.image_size is not None) == (name == "penn_action")
