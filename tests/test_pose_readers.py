"""Readers of pose files: each form of the same clips gives those clips, with labels and splits from beside."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pose_files import IDS, poses, write_coco, write_labels, write_mediapipe, write_openpose, write_table
from test_readers import store_of

from components.params import Data
from components.readers import READERS, open_source
from components.source import Source
from model.errors import UserError
from model.layouts import load_layout
from model.mapping import joint_map, map_joints, to_channels
from model.tracks import Body, assemble


def same_clips(source: Source, made: dict, folder: Path) -> None:
    """All clips whole, labelled, split; persons may come in another order, and links must not mix them."""
    store = store_of(source, folder)
    assert sorted(store.ids) == sorted(made) and source.excluded == []
    assert store.classes == ["kick", "wave"] and store.channels == source.channels
    for i, id in enumerate(store.ids):
        expected = made[id]
        found = store.clip(i)
        assert found.shape == expected.shape
        order = np.argsort(found[:, 0, 0, 0])
        assert np.allclose(found[order], expected[np.argsort(expected[:, 0, 0, 0])], atol=1e-4)
        assert store.classes[store.labels[i]] == id.split("_")[0]
    named = {name: sorted(store.ids[i] for i in members) for name, members in store.splits.items()}
    assert named == {"train": ["kick_1", "wave_1"], "test": ["kick_2", "wave_2"]}
    assert store.factors["subject"].tolist() == [IDS.index(id) % 2 for id in store.ids]


@pytest.mark.parametrize(
    ("joints", "key", "layout"), [(25, "pose_keypoints_2d", "body25"), (18, "pose_keypoints", "openpose")]
)
def test_openpose(tmp_path, joints, key, layout):
    made = write_openpose(tmp_path / "raw", joints, key)
    source = READERS["openpose"](tmp_path / "raw")
    assert source.layout.name == layout and source.channels == ["x", "y", "score"]
    same_clips(source, made, tmp_path / "s")


@pytest.mark.parametrize("packed", [True, False])
def test_openpose_in_an_archive_and_mapped_to_eighteen_joints(tmp_path, packed):
    made = write_openpose(tmp_path / "raw")
    (tmp_path / "zip").mkdir()
    with zipfile.ZipFile(tmp_path / "zip" / "all.zip", "w") as archive:
        for file in sorted((tmp_path / "raw").rglob("*.*")):
            archive.write(file, file.relative_to(tmp_path))
    if not packed:
        (tmp_path / "raw" / "labels.csv").rename(tmp_path / "zip" / "labels.csv")
    source = open_source(Data(reader="openpose", to="openpose"), tmp_path / "zip" / ("all.zip" if packed else ""))
    eighteen = [v for v in range(25) if v != 8][:18]  # BODY_25 puts the middle of the hips at 8
    same_clips(source, {id: clip[:, :, eighteen] for id, clip in made.items()}, tmp_path / "s")


@pytest.mark.parametrize("form", ["dataset", "results", "frames", "mmpose"])
def test_coco(tmp_path, form):
    made = write_coco(tmp_path / "raw", form)
    path = tmp_path / "raw" / "person_keypoints.json" if form == "dataset" else tmp_path / "raw"
    source = READERS["coco"](path)
    same_clips(source, made, tmp_path / "s")
    sizes = [clip.image_size for clip in READERS["coco"](path).clips]
    assert sizes == [(480.0, 640.0) if form == "dataset" else None] * 4


@pytest.mark.parametrize("form", ["npy", "npz", "json"])
def test_mediapipe(tmp_path, form):
    made = write_mediapipe(tmp_path / "raw", form)
    source = READERS["mediapipe"](tmp_path / "raw")
    assert source.layout.name == "mediapipe" and source.channels == ["x", "y", "z"]
    same_clips(source, {id: clip[..., :3] for id, clip in made.items()}, tmp_path / "a")
    flat = READERS["mediapipe"](tmp_path / "raw", depth=False)
    same_clips(flat, {id: clip[..., [0, 1, 3]] for id, clip in made.items()}, tmp_path / "b")


@pytest.mark.parametrize("form", ["csv", "npz"])
@pytest.mark.parametrize("channels", [["x", "y"], ["x", "y", "z"], ["x", "y", "score"]])
def test_tables(tmp_path, form, channels):
    made = write_table(tmp_path / "raw", list(load_layout("penn13").joints), channels, form)
    source = READERS["table"](tmp_path / "raw")
    assert source.layout.name == "penn13" and source.channels == channels
    same_clips(source, made, tmp_path / "s")


def test_a_table_of_own_joints_with_gaps_and_no_persons(tmp_path):
    (tmp_path / "labels.json").write_text(
        json.dumps({"labels": {"a": "up"}, "splits": {"train": ["a"]}, "joints": ["hip", "head"], "parents": [-1, 0]})
    )
    (tmp_path / "a.csv").write_text("frame,joint,x,y\n3,hip,1,2\n3,head,1,5\n5,1,1.5,5\n5,hip,,\n6,,,\n")
    source = READERS["table"](tmp_path)
    (clip,) = source.clips
    assert source.layout.joints == ("hip", "head") and clip.id == "a"
    assert clip.joints.tolist() == [[[[1, 2], [1, 5]], [[0, 0], [0, 0]], [[0, 0], [1.5, 5]], [[0, 0], [0, 0]]]]


def test_arrays_of_any_layout(tmp_path):
    write_labels(tmp_path)
    made = poses(17)
    made["wave_1"][0, 2, 5] = np.nan
    for id, clip in made.items():
        np.save(tmp_path / f"{id}.npy", clip)
    source = READERS["arrays"](tmp_path, channels=["x", "y", "score"])
    made["wave_1"][0, 2, 5] = 0
    same_clips(source, made, tmp_path / "s")


def test_clips_without_labels_and_labels_without_clips_are_set_aside(tmp_path):
    write_openpose(tmp_path)
    write_labels(tmp_path, [["clip", "label"], ["wave_1", "1"], ["kick_1", "0"], ["gone", "0"]])
    source = READERS["openpose"](tmp_path)
    assert [clip.id for clip in source.clips] == ["kick_1", "wave_1"] and source.classes == ["class 0", "class 1"]
    assert sorted(id for id, _ in source.excluded) == ["gone", "kick_2", "wave_2"]
    assert source.splits == {"all": ["wave_1", "kick_1"]}
    with pytest.raises(UserError, match="kick_2: has no label"):
        list(READERS["openpose"](tmp_path, strict=True).clips)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels.csv", "clip,class\na,b\n", "needed are clip, label"),
        ("labels.csv", "clip,label\na,b\na,c\n", "line 3: the clip 'a' has a label already"),
        ("labels.csv", "clip,label\na\n", "line 2: has 1 values, not 2"),
        ("labels.csv", "clip,label\n", "no labels"),
        ("splits.csv", "clip,split\nnobody,train\n", "names the clip 'nobody', which has no label"),
        ("splits.csv", "clip,split\nwave_1,train\n", "names a clip twice"),
        ("labels.json", "[1]", "must be a JSON object"),
        ("labels.json", '{"splits": {"a": 3}}', "lists of clips"),
        ("labels.json", '{"classes": ["x", "x"]}', "different names"),
        ("labels.json", '{"classes": ["x", "y"]}', "the label 'wave' .* none of the 2 classes"),
        ("labels.csv", b"clip,label\n\xff\xfe,b\n", "line 2: is not text in UTF-8"),
        ("labels.csv", "clip,label\n" + "a" * 50_000, "line 2: is longer than"),
    ],
)
def test_bad_labels_are_named(tmp_path, name, text, message):
    write_openpose(tmp_path)
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=f"{tmp_path}.*{message}"):
        READERS["openpose"](tmp_path)


def test_joints_are_mapped_by_name_and_what_is_missing_is_said():
    body = joint_map(load_layout("body25"), load_layout("coco"))
    assert body.missing == () and body.between == ()
    clip = poses(25)["kick_2"]
    mapped = map_joints(clip, body)
    for v, name in enumerate(load_layout("coco").joints):
        assert np.array_equal(mapped[:, :, v], clip[:, :, load_layout("body25").joints.index(name)])
    ntu = joint_map(load_layout("coco"), load_layout("nturgb+d"))
    assert ntu.between == ("spine_base", "spine_mid", "neck", "spine_shoulder")
    assert "head" in ntu.missing and "left_hand_tip" in ntu.missing and "no counterpart for head" in str(ntu)
    clip = poses(17)["wave_1"]
    clip[0, 1, 11] = 0  # left hip not seen: no middle of the hips in that frame
    mapped = map_joints(clip, ntu)
    assert np.allclose(mapped[0, 0, 0], clip[0, 0, [11, 12]].mean(axis=0)) and not mapped[0, 1, 0].any()
    assert not mapped[:, :, load_layout("nturgb+d").joints.index("head")].any()
    with pytest.raises(UserError, match="no joint of 'handmp'"):
        joint_map(load_layout("penn13"), load_layout("handmp"))


def test_channels():
    clip = poses(17)["wave_1"]
    assert np.array_equal(to_channels(clip, ["x", "y", "score"], ["x", "y"]), clip[..., :2])
    assert to_channels(clip[..., :2], ["x", "y"], ["x", "y", "score"])[..., 2].min() == 1
    for have, want in ((["x", "y", "z"], ["x", "y", "score"]), (["x", "y"], ["x", "y", "z"])):
        with pytest.raises(UserError, match="has the channels"):
            to_channels(clip, have, want)


def test_persons_are_kept_apart_and_the_most_seen_come_first():
    def body(frame: int, x: float, person: str | None = None) -> Body:
        return Body(frame, np.array([[x, 1, 1], [x + 1, 3, 1]]), person)

    crossing = [body(0, 1), body(0, 20), body(1, 20.2), body(1, 1.1), body(2, 20.4), body(4, 20.3)]
    clip = assemble(crossing, [0, 1, 2, 3, 4], (2, 3))
    assert clip[0, :, 0, 0].tolist() == pytest.approx([20, 20.2, 20.4, 0, 20.3])
    assert clip[1, :, 0, 0].tolist() == pytest.approx([1, 1.1, 0, 0, 0])
    named = assemble([body(0, 1, "a"), body(1, 20, "a"), body(0, 20, "b")], [0, 1], (2, 3), persons=1)
    assert named[:, :, 0, 0].tolist() == [[1, 20]]
    with pytest.raises(UserError, match="frames go from 0 to 1000000000000, but only 2"):
        assemble([body(0, 1), body(10**12, 1)], [0, 10**12], (2, 3))
    with pytest.raises(UserError, match="person a is twice in frame 0"):
        assemble([body(0, 1, "a"), body(0, 2, "a")], [0], (2, 3))
