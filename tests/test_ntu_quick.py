"""The quick reader of raw NTU text gives the bits of the slow one, or nothing."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_readers import raw

from model import ntu_text
from model.errors import UserError
from model.ntu_quick import parse_regular

GOOD = raw("S001C001P001R001A001", 4, 1)
LIMITS = (ntu_text.MAX_LINE, ntu_text.FARTHEST)
NUMBERS = [
    "0",
    "-0",
    "7",
    "12.",
    ".5",
    "-.5",
    "1e-3",
    "-1.234567E-05",
    "0.1234567890123456789",
    "123.45678901",
    "-999.9999999",
]


def slow(text: bytes, monkeypatch: pytest.MonkeyPatch) -> ntu_text.RawClip:
    with monkeypatch.context() as patch:
        patch.setattr(ntu_text, "parse_regular", lambda *_: None)
        return ntu_text.parse_skeleton(text, "clip")


def same(text: bytes, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the quick reader took the text; what it found must then be what the slow one finds."""
    quick = parse_regular(text, *LIMITS)
    if quick is None:
        return False
    expected = slow(text, monkeypatch)
    counts, ids, joints = quick
    assert np.array_equal(counts, expected.counts) and ids == expected.ids and joints.dtype == np.float32
    assert joints.tobytes() == expected.joints.tobytes()
    return True


def test_regular_files_are_read_with_either_line_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert same(GOOD, monkeypatch) and same(GOOD.replace(b"\r\n", b"\n"), monkeypatch)


def test_golden_files_are_read(golden_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted((golden_dir / "pipeline" / "raw_skeleton").glob("*.skeleton"))
    taken = [same(file.read_bytes(), monkeypatch) for file in files]
    assert sum(taken) >= len(files) - 2  # some are broken on purpose


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_are_the_nearest_doubles(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = GOOD.split(b"\r\n")
    values = lines[4].split()
    lines[4] = b" ".join([number.encode(), *values[1:]])
    text = b"\r\n".join(lines)
    assert same(text, monkeypatch)
    assert parse_regular(text, *LIMITS)[2][0, 0, 0] == np.float32(float(number))


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_random_decimals_are_pythons(data: st.DataObject) -> None:
    lines = GOOD.split(b"\r\n")
    # Trainings in this process may have set that denormal numbers are zero.
    number = data.draw(st.floats(-999, 999, allow_subnormal=False))
    text = data.draw(st.sampled_from(["%.7g", "%.6f", "%r", "%.12f", "%.3e"])) % number
    lines[4] = b" ".join([text.encode(), *lines[4].split()[1:]])
    found = parse_regular(b"\r\n".join(lines), *LIMITS)
    assert found is not None and found[2][0, 0, 0] == np.float32(float(text))


PIECES = [b" ", b"\n", b"\r\n", b"-", b".", b"e", b"9", b"_", b"\xff", b"nan", b"\t", b"25", b"1\r\n", b"\x0b"]


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_damage_is_never_read_otherwise(data: st.DataObject) -> None:
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.one_of(st.integers(0, len(GOOD)), st.integers(0, 60)))
        if data.draw(st.booleans()):
            content[at:at] = data.draw(st.sampled_from(PIECES))
        else:
            del content[at : at + data.draw(st.integers(1, 30))]
    with pytest.MonkeyPatch.context() as monkeypatch:
        try:
            same(bytes(content), monkeypatch)
        except UserError as error:
            pytest.fail(f"the quick reader took what the slow one refuses: {error}")
