"""The kinematic sample data: exact repetition, a body that obeys its joints, actions that look like their names."""

import hashlib
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from components.sample_data import sample_data
from model import ntu, synthetic
from model.errors import UserError
from model.synthetic_actions import ACTIONS
from model.synthetic_body import BONES, DOF, NUM_DOFS, joint_positions, sine

HASHES = {
    "S001C001P001R001A001": "f0bb5700adb342b6b6e807210688abf47305e325badfe3394bb16df8510d5a45",
    "S002C003P006R001A052": "641dec249878fe5dae4676f7f25faaf21935d27c270f5896c7413d64927675f7",
    "S001C002P015R001A008": "f92e4a8f00a432957bbc6d93ed886ea024ae383808b7cf6e508f273007f1fa70",
}
HEAD, LEFT_HAND, RIGHT_HAND = 3, 7, 11


@pytest.fixture(scope="module")
def clips() -> dict[str, ntu.RawClip]:
    """Every clip of seed 0."""
    return {name: synthetic.make_clip(name) for name in synthetic.clip_names()}


def clean(action: int, subject: int) -> np.ndarray:
    """Joints of the action in front of the middle camera, without sensor errors."""
    name = f"S{synthetic.setup_of(subject):03}C002P{subject:03}R001A{action:03}"
    return ntu.convert_pyskl(synthetic.make_clip(name, noise=0.0)).astype(np.float64)


# --- the set -------------------------------------------------------------------------------------


def test_names_make_ntu_protocols() -> None:
    names = synthetic.clip_names()
    parts = [ntu.parse_name(name) for name in names]
    assert len(names) == len(set(names)) == len(ACTIONS) * 16 * 3 == 576
    assert not ntu.missing_names().intersection(names)
    splits = ntu.ntu_splits(names, actions=60)
    subjects = {part: {name[8:12] for name in splits[part]} for part in ("xsub_train", "xsub_test")}
    assert (len(subjects["xsub_train"]), len(subjects["xsub_test"])) == (10, 6)
    assert all(splits.values()) and all(ntu.ntu_splits(names).values())
    assert {part["action"] for part in parts} & ntu.INTERACTIONS == {52, 58}


def test_clips_are_usable_and_have_a_sensors_faults(clips: dict[str, ntu.RawClip]) -> None:
    tracks = {name: len(set(clip.ids)) for name, clip in clips.items()}
    persons = {}
    for name, clip in clips.items():
        assert 28 <= len(clip.counts) <= 60
        joints = ntu.convert_pyskl(clip)
        persons[name] = len(joints)
        assert np.isfinite(joints).all() and joints.shape[1] >= 20
        body = joints[0][joints[0].any(axis=(1, 2))].astype(np.float64)
        assert 1.5 < body[..., 2].min() and body[..., 2].max() < 5.5
        assert (body[:, HEAD, 1] > body[:, 0, 1]).mean() > 0.9
    pairs = [name for name in clips if name.endswith(("A052", "A058"))]
    assert all(tracks[name] >= 2 for name in pairs) and np.mean([persons[name] == 2 for name in pairs]) > 0.95
    alone = [name for name in clips if name not in pairs]
    assert sum((clip.counts == 0).any() for clip in clips.values()) > 20  # lost frames
    phantoms = [name for name in alone if tracks[name] > 1]
    assert 15 < len(phantoms) < 80
    assert np.mean([persons[name] == 1 for name in phantoms]) > 0.6  # as the denoising is meant to do


def test_clips_repeat_to_the_byte_and_follow_their_key() -> None:
    for name, expected in HASHES.items():
        text = ntu.format_skeleton(synthetic.make_clip(name))
        assert hashlib.sha256(text).hexdigest() == expected, name
    one = synthetic.make_clip("S001C001P001R001A001")
    for other in (
        synthetic.make_clip("S001C002P001R001A001"),
        synthetic.make_clip("S001C001P001R002A001"),
        synthetic.make_clip("S001C001P001R001A001", seed=1),
    ):
        assert one.joints.shape != other.joints.shape or not np.allclose(one.joints, other.joints)
    with pytest.raises(UserError, match="not an NTU file name"):
        synthetic.make_clip("drinking")
    with pytest.raises(UserError, match="A002 is not among the sample actions"):
        synthetic.make_clip("S001C001P001R001A002")


# --- the body ------------------------------------------------------------------------------------


def test_sine_is_accurate() -> None:
    x = np.linspace(-40, 40, 20001)
    np.testing.assert_allclose(sine(x), np.sin(x), atol=1e-12)


def test_bones_keep_their_length_whatever_the_pose() -> None:
    bones = {child: np.array(vector) for child, (_, vector) in BONES.items()}
    assert sorted(bones) == sorted(set(range(25)) - {0})
    pose = np.random.default_rng(0).uniform(-90, 90, (50, NUM_DOFS))
    joints = joint_positions(pose, bones)
    for child, (parent, vector) in BONES.items():
        lengths = np.linalg.norm(joints[:, child] - joints[:, parent], axis=-1)
        np.testing.assert_allclose(lengths, np.linalg.norm(vector), atol=1e-12)


def test_angles_mean_the_same_on_both_sides() -> None:
    bones = {child: np.array(vector) for child, (_, vector) in BONES.items()}
    pose = np.random.default_rng(1).uniform(-60, 60, (5, NUM_DOFS))
    for name in ("yaw", "side", "turn", "tilt", "look"):
        pose[:, DOF[name]] = 0
    other = pose.copy()
    for name, column in DOF.items():
        if name.endswith("_l"):
            other[:, column] = pose[:, DOF[name[:-1] + "r"]]
            other[:, DOF[name[:-1] + "r"]] = pose[:, column]
    mirror = [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 20, 23, 24, 21, 22]
    mirrored = joint_positions(pose, bones)[:, mirror] * np.array([-1, 1, 1])
    np.testing.assert_allclose(joint_positions(other, bones), mirrored, atol=1e-12)


def test_a_person_keeps_their_build() -> None:
    lengths = {}
    for subject in (1, 3):
        seen = [clean(action, subject)[0] for action in (8, 10)]
        arm = [np.linalg.norm(body[:, 5] - body[:, 4], axis=-1) for body in seen]
        assert max(length.std() for length in arm) < 2e-3  # what float16 leaves
        assert abs(arm[0].mean() - arm[1].mean()) < 1e-3
        lengths[subject] = arm[0].mean()
    assert abs(lengths[1] - lengths[3]) > 2e-3


def test_knobs() -> None:
    def arm(name: str, **knobs: float) -> np.ndarray:
        joints = synthetic.make_clip(name, noise=0.0, **knobs).joints
        return np.linalg.norm(joints[:, 5] - joints[:, 4], axis=-1)

    names = ("S001C001P001R001A008", "S001C001P003R001A008")
    assert arm(names[0], style=0.0).mean() == pytest.approx(arm(names[1], style=0.0).mean(), abs=1e-6)
    assert arm(names[0]).mean() != pytest.approx(arm(names[1]).mean(), abs=1e-3)

    def restlessness(noise: float) -> float:
        joints = ntu.convert_pyskl(synthetic.make_clip(names[0], noise=noise)).astype(np.float64)
        return float(np.abs(np.diff(joints, n=2, axis=1)).mean())

    assert restlessness(0.0) < restlessness(1.0) < restlessness(2.0)


# --- the actions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", [2, 5, 9])
def test_actions_look_like_their_names(subject: int) -> None:
    hips = {action: clean(action, subject)[0][:, 0, 1] for action in (8, 9)}
    assert hips[8][-1] < hips[8][0] - 0.2 and hips[9][-1] > hips[9][0] + 0.2

    def nearest_to_head(action: int) -> float:
        body = clean(action, subject)[0]
        return min(np.linalg.norm(body[:, hand] - body[:, HEAD], axis=-1).min() for hand in (LEFT_HAND, RIGHT_HAND))

    assert max(map(nearest_to_head, (1, 28))) < 0.3 < min(map(nearest_to_head, (12, 30)))

    def hand_gap(action: int) -> np.ndarray:
        body = clean(action, subject)[0]
        return np.linalg.norm(body[:, LEFT_HAND] - body[:, RIGHT_HAND], axis=-1)

    assert max(hand_gap(10).min(), hand_gap(34).min()) < 0.25
    kick, wave = clean(24, subject)[0], clean(23, subject)[0]
    feet = kick[:, (15, 19), 1] - kick[:, (19, 15), 1]
    assert np.abs(feet).max() > 0.15
    assert (wave[:, (LEFT_HAND, RIGHT_HAND), 1] - wave[:, 20:21, 1]).max() > 0.05


@pytest.mark.parametrize("subject", [2, 5, 9])
def test_people_meet(subject: int) -> None:
    shake = clean(58, subject)
    frames = shake.any(axis=(2, 3)).all(axis=0)
    one, other = shake[:, frames]
    assert np.linalg.norm(one[:, 0] - other[:, 0], axis=-1).min() > 0.4
    assert np.linalg.norm(one[:, RIGHT_HAND] - other[:, RIGHT_HAND], axis=-1).min() < 0.35


# --- files ---------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_folder_is_the_same_with_any_number_of_workers(tmp_path: Path) -> None:
    assert sample_data(tmp_path / "one", workers=1, limit=5) == 5
    assert sample_data(tmp_path / "two", workers=2, limit=5) == 5
    one = contents(tmp_path / "one")
    assert one == contents(tmp_path / "two")
    assert all(re.fullmatch(r"S\d{3}C\d{3}P\d{3}R001A\d{3}\.skeleton", name) for name in one)
    assert all(text.count(b"\r\n") == text.count(b"\n") for text in one.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    raw = ntu.read_skeleton(tmp_path / "one" / sorted(one)[0])
    made = synthetic.make_clip(raw.name)
    assert raw.ids == made.ids and raw.counts.tolist() == made.counts.tolist()
    np.testing.assert_allclose(raw.joints, made.joints, rtol=1e-6)


def test_fewer_clips_are_spread_evenly(tmp_path: Path) -> None:
    sample_data(tmp_path / "data", workers=1, limit=72)
    parts = [ntu.parse_name(path.name) for path in (tmp_path / "data").iterdir()]
    count = {key: Counter(part[key] for part in parts) for key in ("action", "camera", "subject")}
    assert set(count["action"].values()) == {6} and len(count["action"]) == 12
    assert set(count["camera"].values()) == {24} and len(count["subject"]) == 16
    splits = ntu.ntu_splits([path.stem for path in (tmp_path / "data").iterdir()], actions=60)
    assert all(len({name[-3:] for name in splits[part]}) == 12 for part in ("xsub_train", "xsub_test"))


def test_a_new_folder_takes_the_place_of_the_old(tmp_path: Path) -> None:
    sample_data(tmp_path / "data", workers=1, limit=3)
    before = contents(tmp_path / "data")
    sample_data(tmp_path / "data", seed=1, workers=1, limit=2)
    after = contents(tmp_path / "data")
    assert len(after) == 2 and not set(after.values()) & set(before.values())


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    for arguments, says in (
        ({"limit": 0}, "limit: 0"),
        ({"limit": 577}, "limit: 577 .* 1 to 576"),
        ({"seed": -1}, "seed -1"),
        ({"noise": -0.5}, "noise -0.5"),
    ):
        with pytest.raises(UserError, match=says):
            sample_data(tmp_path / "data", **arguments)
    (tmp_path / "data").write_text("here already")
    with pytest.raises(UserError, match="is a file"):
        sample_data(tmp_path / "data", limit=1)
    assert (tmp_path / "data").read_text() == "here already"
