"""Raw NTU text, its conversions and protocols: against the original tools' results, and against damage."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from golden_report import same
from hypothesis import given, settings
from hypothesis import strategies as st

from model import ntu
from model.errors import UserError

CONVERSIONS = {
    "pyskl": ntu.convert_pyskl,
    "mmaction2": ntu.convert_mmaction2,
    "umurl": ntu.convert_umurl,
}
GOLDEN = Path(__file__).parent / "golden"
EXPECTED = json.loads((GOLDEN / "ntu_expected.json").read_text())
TEXT = (GOLDEN / "ntu_two_frames.skeleton").read_bytes()


@pytest.fixture(scope="module")
def clips() -> dict[str, ntu.RawClip]:
    with np.load(GOLDEN / "ntu_raw.npz") as stored:
        names = sorted({key.split(".")[0] for key in stored})
        return {
            name: ntu.RawClip(
                name,
                stored[f"{name}.counts"].astype(np.int64),
                tuple(stored[f"{name}.ids"].tolist()),
                stored[f"{name}.joints"],
            )
            for name in names
        }


def damaged(line: int, replacement: bytes) -> bytes:
    """The golden text with one line (counted from 1) replaced."""
    lines = TEXT.split(b"\n")
    lines[line - 1] = replacement
    return b"\n".join(lines)


# --- conversions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", sorted(CONVERSIONS))
@pytest.mark.parametrize("case", sorted(EXPECTED["cases"]))
def test_conversion_is_the_original_bit_for_bit(case: str, variant: str, clips: dict) -> None:
    expected = EXPECTED["cases"][case]
    raw = clips[expected["name"]]
    if expected[variant] is None:
        with pytest.raises(UserError, match=expected["name"]):
            CONVERSIONS[variant](raw)
        return
    joints = CONVERSIONS[variant](raw)
    assert list(joints.shape) == expected[variant]["shape"]
    assert hashlib.sha256(joints.tobytes()).hexdigest() == expected[variant]["sha256"]


@pytest.mark.parametrize("case", sorted(EXPECTED["cases"]))
def test_tracks_and_their_motion(case: str, clips: dict) -> None:
    expected = EXPECTED["cases"][case]
    if "tracks" not in expected:
        pytest.skip("the original stops before it has tracks")
    raw = clips[expected["name"]]
    tracks = dict(zip(dict.fromkeys(raw.ids), ntu._tracks(raw), strict=True))
    assert set(map(str, tracks)) == set(expected["tracks"])
    for body, track in tracks.items():
        other = expected["tracks"][str(body)]
        assert (track.start, len(track.joints)) == (other["start"], other["frames"])
        assert track.motion == pytest.approx(other["motion"], abs=1e-6)


def test_full_golden_text(golden_dir: Path) -> None:
    folder = golden_dir / "pipeline"
    arrays = np.load(folder / "ntu_raw.npz")
    replayed = 0
    for case in json.loads((folder / "index.json").read_text())["cases"]:
        if case["op"].startswith("raw NTU") and case["outputs"]:
            raw = ntu.read_skeleton(folder / case["fields"]["file"])
            joints = CONVERSIONS[case["variant"].lower()](raw)
            (key,) = case["outputs"].values()
            same(case["id"], "joints", joints, arrays[key].astype(joints.dtype))
            replayed += 1
    assert replayed == 46


def test_two_zero_tracks_are_refused_not_crashed_on() -> None:
    frames = 15
    raw = ntu.RawClip(
        "zeros",
        np.full(frames, 2),
        (1, 2) * frames,
        np.zeros((2 * frames, 25, 3), np.float32),
    )
    with pytest.raises(UserError, match="zeros: every joint is zero"):
        ntu.convert_pyskl(raw)


# --- text --------------------------------------------------------------------------------------------------


def test_text_gives_counts_ids_and_joints() -> None:
    raw = ntu.parse_skeleton(TEXT, "two")
    lines = TEXT.decode().splitlines()
    assert raw.counts.tolist() == [2, 2]
    assert raw.ids == tuple(int(lines[at].split()[0]) for at in (2, 29, 57, 84))
    assert raw.body_frames().tolist() == [0, 0, 1, 1]
    assert raw.joints.dtype == np.float32
    assert raw.joints[0, 0].tolist() == [np.float32(value) for value in lines[4].split()[:3]]
    assert raw.joints[3, 24].tolist() == [np.float32(value) for value in lines[-1].split()[:3]]


def test_line_ends_do_not_matter() -> None:
    one = ntu.parse_skeleton(TEXT, "lf")
    other = ntu.parse_skeleton(TEXT.replace(b"\n", b"\r\n"), "crlf")
    assert np.array_equal(one.joints, other.joints) and one.ids == other.ids


def test_what_is_written_is_read_back() -> None:
    raw = ntu.parse_skeleton(TEXT, "two")
    text = ntu.format_skeleton(raw)
    again = ntu.parse_skeleton(text, "two")
    assert np.array_equal(raw.joints, again.joints)
    assert (raw.counts.tolist(), raw.ids) == (again.counts.tolist(), again.ids)
    lines = text.split(b"\r\n")
    assert b"\n" not in text.replace(b"\r\n", b"")
    assert len(lines[2].split()) == 10 and lines[3] == b"25" and len(lines[4].split()) == 12


@given(st.integers(0, 4), st.integers(0, 5), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_round_trip_of_any_clip(frames: int, most: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    counts = draw.integers(0, most + 1, frames)
    joints = draw.normal(0, 2, (int(counts.sum()), 25, 3)).astype(np.float32)
    raw = ntu.RawClip("any", counts, tuple(range(len(joints))), joints)
    again = ntu.parse_skeleton(ntu.format_skeleton(raw), "any")
    assert again.counts.tolist() == counts.tolist() and again.ids == raw.ids
    np.testing.assert_allclose(again.joints, joints, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "line 1: should be the number of frames"),
        (b"\n\n", "line 1: should be the number of frames"),
        (damaged(1, b"3"), "line 112: should be the number of bodies of frame 3"),
        (damaged(1, b"1"), "line 57: comes after the 1 frames"),
        (damaged(1, b"-2"), "line 1: .* negative"),
        (damaged(1, b"two"), "line 1: .* whole number: 'two'"),
        (damaged(1, b"9" * 900), "line 1: "),
        (damaged(1, b"1000000000000"), "line 1: declares 1000000000000 frames but only 110 lines"),
        (damaged(2, b"900000000000"), "line 2: declares 900000000000 bodies in frame 1 of 2"),
        (damaged(2, b"-1"), "line 2: .* negative"),
        (damaged(3, b"12 0 1 1"), "line 3: should hold the 10 values of a body"),
        (damaged(3, b"id 0 1 1 1 1 0 0 0 2"), "line 3: should begin with a tracking id"),
        (damaged(4, b"24"), "line 4: declares 24 joints, not 25"),
        (damaged(4, b"x"), "line 4: should be the number of joints"),
        (damaged(5, b"0.1 0.2 0.3"), "line 5: should hold 12 values"),
        (damaged(6, b""), "line 6: should hold 12 values"),
        (damaged(7, b"0.1 0.2 zero 1 1 1 1 0 0 0 1 2"), "line 7: .* number of metres: 'zero'"),
        (damaged(8, b"0.1 NaN 0.3 1 1 1 1 0 0 0 1 2"), "line 8: .* number of metres: 'NaN'"),
        (damaged(9, b"-inf 0.2 0.3 1 1 1 1 0 0 0 1 2"), "line 9: .* number of metres: '-inf'"),
        (damaged(9, b"1e39 0.2 0.3 1 1 1 1 0 0 0 1 2"), "line 9: .* number of metres: '1e39'"),
        (damaged(9, b"1_0 0.2 0.3 1 1 1 1 0 0 0 1 2"), "line 9: is not numbers"),
        (damaged(10, b"\xff\xfe 0.2 0.3"), "line 10: holds bytes that are not plain text"),
        (damaged(10, "\u0663 0.2 0.3".encode()), "line 10: holds bytes that are not plain text"),
        (damaged(11, b"1" * 2_000_000), "line 11: is longer than 1000 characters"),
        (TEXT + b"1\n", "line 112: comes after the 2 frames"),
        (TEXT[: len(TEXT) // 2], "line 57: declares 2 bodies in frame 2 of 2, but 1 lines are left"),
    ],
)
def test_damage_is_named_with_its_line(text: bytes, says: str) -> None:
    with pytest.raises(UserError, match=f"^broken.skeleton.*{says}"):
        ntu.parse_skeleton(text, "broken.skeleton")


def test_every_truncation_is_refused() -> None:
    whole = TEXT.rstrip()
    # a cut inside the last line's last value leaves a shorter number, which no reader can notice
    for end in range(0, whole.rfind(b" ") + 1, 97):
        with pytest.raises(UserError, match="^cut, line"):
            ntu.parse_skeleton(whole[:end], "cut")


def test_unmapped_pixels_of_real_recordings_are_accepted() -> None:
    line = TEXT.split(b"\n")[4].split()
    line[3:7] = [b"-Infinity", b"NaN", b"-Infinity", b"NaN"]
    raw = ntu.parse_skeleton(damaged(5, b" ".join(line)), "unmapped")
    assert np.array_equal(raw.joints, ntu.parse_skeleton(TEXT, "two").joints)


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "S001C001P001R001A001.skeleton"
    with pytest.raises(UserError, match=f"{path.name}: cannot be read"):
        ntu.read_skeleton(path)
    path.write_bytes(TEXT)
    assert ntu.read_skeleton(path).name == "S001C001P001R001A001"
    path.write_bytes(TEXT[:300])
    with pytest.raises(UserError, match=str(path)):
        ntu.read_skeleton(path)
    monkeypatch.setattr("model.ntu_text.MAX_BYTES", 100)
    with pytest.raises(UserError, match="has 300 bytes, a clip may have 100"):
        ntu.read_skeleton(path)


# --- names and protocols -----------------------------------------------------------------------------------


def test_names() -> None:
    numbers = {"setup": 17, "camera": 2, "subject": 103, "repetition": 1, "action": 60}
    assert ntu.parse_name("S017C002P103R001A060") == numbers
    assert ntu.parse_name("S017C002P103R001A060.skeleton") == numbers
    for wrong in ("S17C002P103R001A060", "S017C002P103R001A060x", "clip", "S017C002P103R001A06\u0661"):
        with pytest.raises(UserError, match="not an NTU file name"):
            ntu.parse_name(wrong)


@pytest.mark.parametrize("case", ["pyskl/ntu60", "pyskl/ntu120", "mmaction2/ntu120"])
def test_splits_are_the_original_ones(case: str) -> None:
    expected = EXPECTED["splits"][case]
    names = [name for name in expected["files"] if name not in expected["missing"]]
    splits = ntu.ntu_splits(names, actions=60 if case.endswith("60") else 120)
    for protocol in ("xsub", "xview", "xset"):
        if f"{protocol}_train" in expected:
            assert splits[f"{protocol}_train"] == expected[f"{protocol}_train"]
            assert splits[f"{protocol}_test"] == expected[f"{protocol}_val"]


def test_every_golden_split(golden_dir: Path) -> None:
    arrays = np.load(golden_dir / "pipeline" / "ntu_raw.npz")
    for case in json.loads((golden_dir / "pipeline" / "index.json").read_text())["cases"]:
        if case["op"] != "splits":
            continue
        actions = 60 if case["id"].endswith("60") else 120
        names = [name for name in case["fields"]["files"] if name not in case["fields"]["missing"]]
        # MMAction2's tool takes actions above 60 into NTU60 where it finds them.
        names = [name for name in names if ntu.parse_name(name)["action"] <= actions]
        splits = ntu.ntu_splits(names, actions=actions)
        for name, key in case["outputs"].items():
            wanted = [names.index(member) for member in arrays[key] if member in names]
            found = [names.index(member) for member in splits[name.replace("val", "test")]]
            same(case["id"], name, found, wanted)


def test_splits_partition_and_refuse_other_counts() -> None:
    names = [f"S{s:03}C{c:03}P{p:03}R001A{a:03}" for s in (1, 2) for c in (1, 2, 3) for p in (1, 3) for a in (1, 61)]
    for actions, left in ((60, 12), (120, 24)):
        splits = ntu.ntu_splits(names, actions=actions)
        for protocol in {key.split("_")[0] for key in splits}:
            both = splits[f"{protocol}_train"] + splits[f"{protocol}_test"]
            assert len(both) == len(set(both)) == left
    with pytest.raises(UserError, match="actions: 61"):
        ntu.ntu_splits(names, actions=61)


def test_missing_lists_and_names_of_actions() -> None:
    missing = [ntu.parse_name(name) for name in ntu.missing_names()]
    early = [name for name in ntu.missing_names() if ntu.parse_name(name)["action"] <= 60]
    assert (len(missing), len(early)) == (535, 302)
    splits60, splits120 = ntu.ntu_splits(early, actions=60), ntu.ntu_splits(ntu.missing_names(), actions=120)
    assert len(splits60["xsub_train"]) == 229 and len(splits60["xview_train"]) == 274
    assert len(splits120["xsub_train"]) == 334 and len(splits120["xset_train"]) == 252
    names = ntu.action_names()
    assert len(names) == 120 and names[0] == "drink water" and names[11] == "writing"
    assert all(name == name.strip() and name.isascii() for name in names)
    assert len(ntu.XSUB60_TRAIN) == 20 and len(ntu.XSUB120_TRAIN) == 53 and len(ntu.INTERACTIONS) == 26
