"""The packed store and the development split."""

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from model.errors import UserError
from model.layouts import load_layout
from model.protocol import development_split
from model.store import Clip, Store, open_store, write_store

LAYOUT = load_layout("kinect15")
CHANNELS = ["x", "y", "z"]


def make_clips(count: int = 6, seed: int = 0) -> list[Clip]:
    random = np.random.RandomState(seed)
    return [
        Clip(
            f"clip{i}",
            i % 3,
            random.randn(1 + i % 2, 4 + i, 15, 3).astype(np.float32),
            {"subject": i % 4, "camera": i % 2},
        )
        for i in range(count)
    ]


def write(folder: Path, clips: Iterable[Clip], **changes: object) -> Path:
    options = {
        "layout": LAYOUT,
        "classes": ["a", "b", "c"],
        "splits": {"train": [clip.id for clip in clips]} if isinstance(clips, list) else {},
        "channels": CHANNELS,
        "data_hash": "0" * 32,
        "source": "test",
        **changes,
    }
    write_store(folder, iter(clips), **options)  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_clip_comes_back_with_everything_known_of_it(tmp_path, dtype):
    clips = make_clips()
    splits = {"train": ["clip3", "clip0"], "file": ["clip5"], "a/b": []}
    store = open_store(write(tmp_path / "s", clips, splits=splits, dtype=dtype))
    assert len(store) == 6 and store.ids == [clip.id for clip in clips]
    assert isinstance(store.joints, np.memmap) and store.joints.dtype == dtype
    for i, clip in enumerate(clips):
        assert np.array_equal(store.clip(i), clip.joints.astype(dtype))
    assert store.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert {name: members.tolist() for name, members in store.splits.items()} == {
        "train": [3, 0],
        "file": [5],
        "a/b": [],
    }
    assert store.factors["subject"].tolist() == [0, 1, 2, 3, 0, 1]
    assert store.layout == LAYOUT and store.channels == CHANNELS and not store.scored
    assert store.image_size is None and store.data_hash == "0" * 32
    assert store.meta["counts"]["persons"] == 2 and store.meta["counts"]["splits"]["train"] == 2


def test_rows_lie_person_by_person(tmp_path):
    store = open_store(write(tmp_path / "s", make_clips()))
    m, t = 1, 2
    row = store.offset[3] + m * store.frames[3] + t
    assert np.array_equal(store.joints[row], store.clip(3)[m, t])


def test_equal_clips_give_equal_bytes(tmp_path):
    first, second = write(tmp_path / "a", make_clips()), write(tmp_path / "b", make_clips())
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_joints_cannot_be_written_through(tmp_path):
    folder = write(tmp_path / "s", make_clips())
    with pytest.raises(ValueError, match="read-only"):
        open_store(folder).clip(0)[:] = 7
    assert not (open_store(folder).clip(0) == 7).any()


def test_a_factor_unknown_of_one_clip_is_left_out(tmp_path):
    clips = make_clips()
    clips[2] = Clip("clip2", 2, clips[2].joints, {"camera": 1})
    assert set(open_store(write(tmp_path / "s", clips)).factors) == {"camera"}


def test_splits_are_read_after_the_clips(tmp_path):
    splits = {"train": ["clip0", "clip1", "clip2"]}

    def clips():
        for clip in make_clips(3):
            if clip.id == "clip1":
                splits["train"].remove("clip1")
            else:
                yield clip

    store = open_store(write(tmp_path / "s", clips(), splits=splits))
    assert store.splits["train"].tolist() == [0, 1] and store.ids == ["clip0", "clip2"]


def nan(joints: np.ndarray) -> np.ndarray:
    joints = joints.copy()
    joints[0, 1, 2, 0] = np.nan
    return joints


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"joints": lambda x: x[..., :2]}, "clip2.*shape"),
        ({"joints": lambda x: x[:, :, :14]}, "clip2.*shape"),
        ({"joints": lambda x: x[0]}, "clip2.*shape"),
        ({"joints": lambda x: x[:, :0]}, "clip2.*empty"),
        ({"joints": lambda x: x[:0]}, "clip2.*empty"),
        ({"joints": nan}, "clip2.*NaN"),
        ({"joints": lambda x: x * 0}, "clip2.*zero"),
        ({"joints": lambda x: x.astype(np.float64) * 1e300}, "clip2.*too large"),
        ({"label": lambda x: 3}, "clip2.*label 3.*3 classes"),
        ({"label": lambda x: -1}, "clip2.*label -1"),
        ({"id": lambda x: "clip1"}, "clip1.*twice"),
        ({"image_size": lambda x: (480, 640)}, "clip0.*image size"),
    ],
)
def test_a_clip_that_cannot_be_stored_is_named_and_nothing_is_left(tmp_path, change, message):
    clips = make_clips()
    (field, function), old = next(iter(change.items())), clips[2]
    clips[2] = Clip(**{**vars(old), field: function(getattr(old, field))})
    with pytest.raises(UserError, match=message):
        write(tmp_path / "s", clips)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splits": {"test": ["clip0", "nobody", "neither"]}}, "'test'.*2 unknown ids.*nobody"),
        ({"splits": {"test": ["clip0", "clip1", "clip0"]}}, "'test'.*clip0 twice"),
        ({"dtype": "float64"}, "float64"),
    ],
)
def test_splits_and_types_are_checked(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        write(tmp_path / "s", make_clips(), **changes)
    assert list(tmp_path.iterdir()) == []


def test_no_clip_at_all_is_refused(tmp_path):
    with pytest.raises(UserError, match="test: holds no usable clip"):
        write(tmp_path / "s", [])


def test_a_failed_rewrite_keeps_the_former_store_and_a_good_one_replaces_it(tmp_path):
    folder = write(tmp_path / "s", make_clips(6))
    with pytest.raises(UserError):
        write(folder, make_clips(3), splits={"train": ["nobody"]})
    assert len(open_store(folder)) == 6
    write(folder, make_clips(3))
    assert len(open_store(folder)) == 3 and [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_folder_that_is_no_store_is_not_overwritten(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("do not lose me")
    with pytest.raises(UserError, match="letters.*not a packed store"):
        write(tmp_path / "letters", make_clips())
    assert (tmp_path / "letters" / "dear.txt").exists()
    with pytest.raises(UserError, match="dear.txt.*not a packed store"):
        write(tmp_path / "letters" / "dear.txt", make_clips())
    (tmp_path / "empty").mkdir()
    assert len(open_store(write(tmp_path / "empty", make_clips()))) == 6


def test_damaged_stores_are_refused_by_name(tmp_path):
    good = write(tmp_path / "good", make_clips())

    def damaged(name: str, change) -> Path:
        folder = tmp_path / "bad"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        change(folder / name)
        return folder

    def shorten(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-40])

    def drop_last(path: Path) -> None:
        np.save(path, np.load(path)[:-1])

    def other_version(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))

    for name in ("joints.npy", "index.npy", "labels.npy", "splits.npz", "factors.npz", "store.json"):
        with pytest.raises(UserError, match="bad.*preprocess"):
            open_store(damaged(name, shorten))
        with pytest.raises(UserError, match="bad.*preprocess"):
            open_store(damaged(name, Path.unlink))
    for name in ("joints.npy", "index.npy", "labels.npy"):
        with pytest.raises(UserError, match="bad.*damaged"):
            open_store(damaged(name, drop_last))
    with pytest.raises(UserError, match="version 99"):
        open_store(damaged("store.json", other_version))
    with pytest.raises(UserError, match="not a packed store"):
        open_store(tmp_path / "nowhere")


def test_an_unknown_split_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(UserError, match="'xsub'.*it has: train"):
        open_store(write(tmp_path / "s", make_clips())).split("xsub")


def many(tmp_path: Path, factors: dict[str, list[int]], labels: list[int]) -> Store:
    clips = [
        Clip(f"{i}", label, np.ones((1, 1, 15, 3)), {name: values[i] for name, values in factors.items()})
        for i, label in enumerate(labels)
    ]
    return open_store(write(tmp_path / "s", clips))


def test_whole_subjects_are_held_out(tmp_path):
    subjects = [s for s in range(10) for _ in range(6)]
    store = many(tmp_path, {"subject": subjects}, [0, 1, 2] * 20)
    everyone = np.arange(60)
    train, development, words = development_split(store, everyone, split="xsub_train", share=0.2, seed=3)
    assert sorted([*train, *development]) == everyone.tolist()
    held = sorted({subjects[i] for i in development})
    assert len(held) == 2 and not set(held) & {subjects[i] for i in train}
    assert words == f"subjects {held[0]}, {held[1]} (2 of 10; 12 of 60 training clips)"
    again = development_split(store, everyone, split="xsub_train", share=0.2, seed=3)
    assert np.array_equal(again[1], development)
    others = [set(development_split(store, everyone, share=0.2, seed=seed)[1]) for seed in range(8)]
    assert any(other != set(development) for other in others)


@pytest.mark.parametrize(
    ("split", "factor", "expected"),
    [
        ("xview_train", "auto", r"camera [23] \(1 of 2; 24 of 48 training clips\)"),
        ("xview_train", "subject", "subject"),
        ("xset_train", "auto", "setup"),
        ("loao1_train", "auto", "subject"),
        ("xsub_train", "none", "a share of every class"),
    ],
)
def test_the_factor_is_that_of_the_protocol_unless_given(tmp_path, split, factor, expected):
    count = 48
    factors = {
        "subject": [i // 3 % 4 for i in range(count)],
        "camera": [2 + i // 12 % 2 for i in range(count)],
        "setup": [i // 3 % 8 for i in range(count)],
    }
    store = many(tmp_path, factors, [0, 1, 2] * (count // 3))
    train, development, words = development_split(store, np.arange(count), split=split, factor=factor)
    assert re.match(expected, words), words
    assert set(store.labels[train]) == {0, 1, 2} and len(development)


def test_a_class_never_loses_all_its_training_clips(tmp_path):
    # Class 2 is only ever done by subject 0.
    subjects, labels = [0, 0, 0, 1, 1, 2, 2], [0, 1, 2, 0, 1, 0, 1]
    store = many(tmp_path, {"subject": subjects}, labels)
    for seed in range(10):
        train, _, _ = development_split(store, np.arange(7), share=0.3, seed=seed)
        assert set(store.labels[train]) == {0, 1, 2}


def test_without_a_known_factor_every_class_gives_its_share(tmp_path):
    store = many(tmp_path, {}, [0] * 20 + [1] * 10 + [2])
    train, development, words = development_split(store, np.arange(31), split="xsub_train", share=0.2)
    assert np.bincount(store.labels[development], minlength=3).tolist() == [4, 2, 0]
    assert words == "a share of every class (6 of 31 training clips)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": "camera"}, "'camera' is not known"),
        ({"factor": "subject"}, "no subject can be held out"),
        ({"factor": "weather"}, "'weather' is not one of"),
        ({"share": 1.0}, "share 1.0"),
    ],
)
def test_impossible_development_splits_are_refused(tmp_path, options, message):
    store = many(tmp_path, {"subject": [1, 1, 1, 1]}, [0, 1, 0, 1])
    with pytest.raises(UserError, match=message):
        development_split(store, np.arange(4), **options)
