"""The data check finds what it is for: copies, jumps, swapped sides, stretched bones, useless data."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_run import annotations, small_params, write_params, write_raw

from components.data_check import check_store, guess_split, inspect, units
from model.inspection import exact_copies, look_at, near_copies, short_form
from model.layouts import load_layout
from model.store import Clip, Store, open_store, write_store
from pipeline.cli import main

KINECT = load_layout("kinect20")


def walk(seed: int, frames: int = 20) -> np.ndarray:
    """(1, T, 20, 3) of a standing body in metres whose joints sway; bones keep their length well."""
    draw = np.random.default_rng(seed)
    pose = np.random.default_rng(1).normal(0, 0.3, (20, 3)) + [0, 0, 3]
    turn = draw.normal(0, 0.02, (frames, 1, 3)).cumsum(axis=0)
    limbs = draw.normal(0, 0.004, (frames, 20, 3)).cumsum(axis=0)
    return (pose + turn + limbs + draw.normal(0, 0.05, (20, 3))).astype(np.float32)[None]


def store_of(folder: Path, clips: list[np.ndarray], labels: list[int] | None = None, splits: Any = None) -> Store:
    ids = [f"c{i}" for i in range(len(clips))]
    made = [
        Clip(id, labels[i] if labels else i % 2, clip, {"subject": i % 4})
        for i, (id, clip) in enumerate(zip(ids, clips, strict=True))
    ]
    half = len(ids) // 2
    write_store(
        folder, made, layout=KINECT, classes=["a", "b", "c"], channels=["x", "y", "z"], data_hash="", source="test",
        splits=splits or {"train": ids[:half], "test": ids[half:]},
    )  # fmt: skip
    return open_store(folder)


def said(numbers: dict[str, Any], level: str) -> str:
    return " | ".join(finding["text"] for finding in numbers["findings"] if finding["level"] == level)


SPLIT = ("train", ["test"])


def test_sound_data_have_no_findings_but_notes(tmp_path):
    numbers = inspect(store_of(tmp_path / "s", [walk(i) for i in range(12)]), [], SPLIT)
    assert said(numbers, "error") == "" and said(numbers, "warning") == ""
    assert "4 subjects are in both" in said(numbers, "note")
    assert numbers["units"] == "metres" and numbers["persons"] == {"1": 12}
    assert numbers["splits"] == {"train": [3, 3, 0], "test": [3, 3, 0]}


def test_a_jump_a_swap_and_a_stretched_bone_are_found(tmp_path):
    clips = [walk(i) for i in range(12)]
    clips[2][0, 10:] += 5
    clips[3][0, 8:11] = clips[3][0, 8:11][:, list(KINECT.mirror)]
    clips[4][0, ::2, KINECT.joints.index("left_elbow")] += 3
    clips[5] = clips[5] * np.linspace(0.5, 2, 20, dtype=np.float32)[:, None, None]
    numbers = inspect(store_of(tmp_path / "s", clips), [], SPLIT)
    by_text = {finding["text"].split(" ", 1)[1][:20]: finding["clips"] for finding in numbers["findings"]}
    assert by_text["clips have a joint that jumps"[:20]] == ["c2", "c4"]
    assert by_text["clips have frames in which left"[:20]] == ["c3"]
    assert by_text["clips have bones whose length"[:20]][-1:] == ["c5"]


def test_missing_joints_frames_and_persons_are_counted():
    clip = np.concatenate([walk(0), np.zeros_like(walk(0))])
    clip[0, 3] = 0
    clip[0, 5:7, 4] = 0
    look = look_at(clip, KINECT, ["x", "y", "z"])
    assert (look.persons, look.rows, look.empty_frames) == (1, 19, 1)
    assert look.unseen[4] == 2 and look.unseen.sum() == 2 and look.moves
    flat = look_at(np.ones((1, 4, 20, 3)), KINECT, ["x", "y", "score"])
    assert not flat.moves and np.isnan(flat.drift) and flat.low.tolist() == [1, 1]


def test_exact_and_near_copies_are_told_apart(tmp_path):
    clips = [walk(i) for i in range(12)]
    clips[7] = clips[1].copy()
    noise = np.random.default_rng(5).normal(0, 0.001, clips[2].shape).astype(np.float32)
    clips[8] = (clips[2] + noise) * np.float32(2) + np.float32(1)  # moved, larger, stored less exactly
    assert exact_copies(iter(clips)) == [[1, 7]]
    left = [i for i in range(12) if i != 7]
    pairs = near_copies(np.stack([short_form(clips[i], 3) for i in left]))
    assert [(left[a], left[b]) for a, b in pairs] == [(2, 8)]
    numbers = inspect(store_of(tmp_path / "s", clips), [], SPLIT)
    assert numbers["copies_across"] == {"test in train": {"exact": 1, "near": 1}}
    assert "1 clips of test are copies of clips of train, 1 more nearly so" in said(numbers, "warning")


def test_copies_are_found_across_the_parts_in_which_they_are_sought(monkeypatch):
    shorts = np.random.default_rng(0).normal(0, 1, (40, 96)).astype(np.float32)
    for i, j in ((0, 39), (5, 6), (17, 30)):
        shorts[j] = shorts[i] + np.float32(0.01)
    whole = near_copies(shorts)
    monkeypatch.setattr("model.inspection.CHUNK", 7)
    assert near_copies(shorts) == whole == [(0, 39), (5, 6), (17, 30)]
    monkeypatch.setattr("model.inspection.MOST_PAIRS", 2)
    found = near_copies(shorts)
    assert len(found) == 2 and set(found) < set(whole)


def test_the_copies_in_nw_ucla_are_found(tmp_path, data_dir):
    from components.annotations import read_annotations

    source = read_annotations(data_dir / "nw_ucla.pkl")
    write_store(
        tmp_path / "s", source.clips, layout=source.layout, classes=source.classes, splits=source.splits,
        channels=source.channels, data_hash="", source="test",
    )  # fmt: skip
    numbers = inspect(open_store(tmp_path / "s"), [], guess_split(source.splits))
    assert numbers["protocol"] == {"train": "xview_train", "test": ["xview_test", "xview_test_nodup"]}
    assert numbers["copies_across"] == {"xview_test in xview_train": {"exact": 95, "near": 0}}
    assert "95 clips of xview_test are copies" in said(numbers, "warning") and said(numbers, "error") == ""
    assert numbers["units"] == "metres"


@pytest.mark.parametrize(
    ("labels", "splits", "still", "words"),
    [
        ([0] * 8, None, False, "one label"),
        ([0, 1] * 2 + [2] * 4, None, False, "none of the classes"),
        (None, {"train": ["c0", "c1"], "test": ["c1", "c2"]}, False, "1 clips are in both"),
        (None, {"train": ["c0", "c1"], "test": []}, False, "test has 0"),
        (None, {"all": ["c0", "c1"]}, False, "no split train, test"),
        (None, None, True, "no clip moves"),
    ],
)
def test_data_on_which_training_is_meaningless(tmp_path, labels, splits, still, words):
    clips = [walk(i)[:, :1].repeat(5, axis=1) if still else walk(i) for i in range(8)]
    assert words in said(inspect(store_of(tmp_path / "s", clips, labels, splits), [], SPLIT), "error")


def test_a_test_split_of_copies_alone_is_an_error_and_imbalance_a_warning(tmp_path):
    clips = [walk(i) for i in range(4)]
    numbers = inspect(store_of(tmp_path / "a", clips * 2), [["x", "broken"]] * 9, SPLIT)
    assert "4 clips of test are copies" in said(numbers, "error") and "9 clips were set aside" in said(numbers, "error")
    labels = [0] * 22 + [1, 1] + [0, 1, 2] * 8
    numbers = inspect(store_of(tmp_path / "b", [walk(i) for i in range(48)], labels), [["x", "why"]], SPLIT)
    warnings = said(numbers, "warning")
    assert "largest class of train has 22 clips, the smallest 2" in warnings
    assert "classes in test that train does not have: c" in warnings and "first: why" in warnings


def test_pixels_need_the_size_of_their_images(tmp_path):
    for size, warned in ((None, True), ((480.0, 640.0), False)):
        flat = [
            Clip(f"c{i}", i % 2, np.concatenate([walk(i)[..., :2] * 100 + 300, np.ones((1, 20, 20, 1))], -1), {}, size)
            for i in range(8)
        ]
        folder = tmp_path / str(warned)
        write_store(
            folder, flat, layout=KINECT, classes=["a", "b"], channels=["x", "y", "score"], data_hash="", source="test",
            splits={"train": ["c0", "c1", "c2", "c3"], "test": ["c4", "c5", "c6", "c7"]},
        )  # fmt: skip
        numbers = inspect(open_store(folder), [], SPLIT)
        assert numbers["units"] == "pixels" and ("image_size" in said(numbers, "warning")) == warned


def test_units_and_splits_are_guessed():
    ends = np.array([0.0, 0.0]), np.array([1.0, 1.0])
    assert units(np.array([0.5]), *ends, 2) == "shares of the image"
    assert units(np.array([200.0]), ends[0], ends[1] * 600, 2) == "pixels"
    assert [units(np.array([s]), ends[0], ends[1] * s, 3) for s in (1.5, 150, 1500)] == [
        "metres", "centimetres", "millimetres",
    ]  # fmt: skip
    assert guess_split(["xsub_test", "xsub_train", "xsub_test_a"]) == ("xsub_train", ["xsub_test", "xsub_test_a"])
    assert guess_split(["train", "val"]) == ("train", ["val"]) and guess_split(["all"]) is None


def test_the_page_holds_everything_and_escapes_names(tmp_path):
    store = store_of(tmp_path / "s", [walk(i) for i in range(8)])
    store.classes[0] = "</script><b>a"
    check_store(store, [["c9", "<i>why</i>"]], None, tmp_path / "out", "mine")
    page = re.sub("<!--.*?-->", "", (tmp_path / "out" / "check.html").read_text(), flags=re.DOTALL)
    assert "</script><b>a" not in page and "<i>why" not in page and "https://" not in page.split("<svg")[0]
    payload = json.loads(page.split('id="payload">')[1].split("</script>")[0])
    assert len(payload["clips"]) == 4 and payload["classes"][0] == "</script><b>a"
    numbers = json.loads((tmp_path / "out" / "check.json").read_text())
    assert numbers["clips"] == 8 and numbers["name"] == "mine"


def test_the_verbs_check_and_diff(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, small_params())
    content = annotations()
    write_raw(tmp_path / "data" / "raw" / "small", content)
    assert main(["data", "check", "small"]) == 0
    assert json.loads(Path("reports/data/small/check.json").read_text())["data_hash"].endswith(".dir")
    assert "small: 36 clips of 3 classes" in capsys.readouterr().out
    assert Path("reports/data/small/check.html").is_file()
    assert main(["preprocess", "--raw", "data/raw/small", "--out", "one"]) == 0
    assert main(["data-check", "one", "--out", "seen"]) == 0 and Path("seen/check.json").is_file()
    content["annotations"][3]["label"] = 1
    content["annotations"][4]["keypoint"][0, 3, 2, 1] += 1
    del content["annotations"][0]
    content["split"]["a_train"].remove("clip000")
    write_raw(tmp_path / "changed", content)
    assert main(["preprocess", "--raw", "changed", "--out", "two"]) == 0
    capsys.readouterr()
    assert main(["data", "diff", "one", "two", "--out", "diff.json"]) == 0
    found = json.loads(Path("diff.json").read_text())
    assert (found["added"], found["removed"], found["changed"]) == ([], ["clip000"], ["clip004"])
    assert found["relabelled"] == {"clip003": ["still", "wave"]}
    assert found["splits"] == {"a_train": {"added": [], "removed": ["clip000"]}}
    assert "relabelled: 1 (clip003)" in capsys.readouterr().out
    assert main(["data", "diff", "one"]) == 2 and "--rev REVISION" in capsys.readouterr().err
    assert main(["data", "check", "nothing"]) == 2 and "neither a packed store" in capsys.readouterr().err


def test_raw_data_are_compared_with_a_git_revision(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")

    def run(*command):
        subprocess.run(command, check=True, capture_output=True)

    write_params(tmp_path, small_params())
    content = annotations(clips=12)
    write_raw(tmp_path / "data" / "raw" / "small", content)
    run("git", "init", "-q")
    run(sys.executable, "-m", "dvc", "init", "-q")
    run(sys.executable, "-m", "dvc", "add", "-q", "data/raw/small")
    run("git", "add", "-A")
    run("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    run("git", "tag", "v1")
    shutil.rmtree("data/raw/small")
    content["annotations"][5]["label"] = 0
    write_raw(tmp_path / "data" / "raw" / "small", content)
    assert main(["data", "diff", "small", "--rev", "v1"]) == 0
    assert "relabelled: 1 (clip005)" in capsys.readouterr().out
    assert main(["data", "diff", "small", "--rev", "v2"]) == 2
    assert "small at v2: dvc get failed" in capsys.readouterr().err
    assert main(["data", "diff", "nothing", "--rev", "v1"]) == 2
