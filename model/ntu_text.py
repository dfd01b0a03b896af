"""The raw skeleton text of NTU RGB+D, read and written.

A `.skeleton` file is text, LF or CRLF: the number of frames; per frame the number of bodies; per body one
line of ten values (the first is the tracking id), the number of joints (25) and per joint twelve values, of
which x y z (metres, camera frame, y up, z away from the camera) are used (Shahroudy et al. 2016).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.errors import UserError
from model.ntu_quick import BODY_VALUES, JOINT_VALUES, NUM_JOINTS, parse_regular

MAX_BYTES = 64 << 20  # about ten minutes of one person; parsing needs a few times the size of the file
MAX_LINE = 1000  # characters; a joint line has about 140
FARTHEST = 1000.0  # metres; anything beyond is damage, or millimetres


@dataclass(frozen=True)
class RawClip:
    """What a `.skeleton` file says: every body of every frame, in file order.

    `counts` (T,) int64 is the number of bodies per frame; `ids` are the tracking ids of all B bodies and
    `joints` (B, 25, 3) float32 their joints in metres.
    """

    name: str
    counts: np.ndarray
    ids: tuple[int, ...]
    joints: np.ndarray

    def body_frames(self) -> np.ndarray:
        """Return (B,) int64: the frame each body belongs to."""
        return np.repeat(np.arange(len(self.counts)), self.counts)


def read_skeleton(path: str | Path) -> RawClip:
    """Read one `.skeleton` file; the clip is named after it. Raises UserError as `parse_skeleton` does."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(_too_large(str(path), size))
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    clip = parse_skeleton(content, str(path))
    return RawClip(path.stem, clip.counts, clip.ids, clip.joints)


def parse_skeleton(text: bytes, name: str) -> RawClip:
    """Parse the content of a `.skeleton` file called `name` (used in messages).

    Declared counts are checked against the lines that exist before anything is allocated, so memory is
    bounded by a small multiple of `len(text)`. Only x y z must be numbers: the mapped pixel columns of real
    recordings may hold infinities. Raises UserError naming file and line.
    """
    if len(text) > MAX_BYTES:
        raise UserError(_too_large(name, len(text)))
    quick = parse_regular(text, MAX_LINE, FARTHEST)
    if quick is not None:
        return RawClip(name, *quick)
    try:
        decoded = text.decode("ascii")
    except UnicodeDecodeError as error:
        number = text.count(b"\n", 0, error.start)
        raise _broken(name, number, "holds bytes that are not plain text") from None
    lines = decoded.rstrip().split("\n")
    if max(map(len, lines)) > MAX_LINE:
        number = next(i for i, line in enumerate(lines) if len(line) > MAX_LINE)
        raise _broken(name, number, f"is longer than {MAX_LINE} characters")
    if "_" in decoded:  # Python's float() would read 1_0 as 10
        number = next(i for i, line in enumerate(lines) if "_" in line)
        raise _broken(name, number, f"is not numbers: {_shown(lines[number])}")

    frames = _count(lines, 0, "the number of frames", name)
    at, total = 1, len(lines)
    if frames > total - 1:
        raise UserError(
            f"{name}, line 1: declares {frames} frames but only {total - 1} lines follow; "
            "the file is truncated or its header damaged: copy it again"
        )
    counts: list[int] = []
    ids: list[int] = []
    starts: list[int] = []  # line of each body's first joint
    values: list[str] = []
    for frame in range(frames):
        bodies = _count(lines, at, f"the number of bodies of frame {frame + 1}", name)
        at += 1
        if bodies * (NUM_JOINTS + 2) > total - at:
            what = f"declares {bodies} bodies in frame {frame + 1} of {frames}, but {total - at} lines are left"
            raise _broken(name, at - 1, what)
        for _ in range(bodies):
            ids.append(_body_id(lines, at, name))
            if lines[at + 1].strip() != str(NUM_JOINTS):
                joints = _count(lines, at + 1, "the number of joints", name)
                raise _broken(name, at + 1, f"declares {joints} joints, not {NUM_JOINTS}")
            at += 2
            starts.append(at)
            for number, line in enumerate(lines[at : at + NUM_JOINTS], at):
                try:
                    x, y, z, rest = line.split(None, 3)
                except ValueError:
                    rest = ""
                # counting blanks is several times quicker than splitting all twelve values
                if rest.count(" ") != JOINT_VALUES - 4 and len(line.split()) != JOINT_VALUES:
                    raise _broken(name, number, f"should hold {JOINT_VALUES} values: {_shown(line)}")
                values += (x, y, z)
            at += NUM_JOINTS
        counts.append(bodies)
    if at < total:
        raise _broken(name, at, f"comes after the {frames} frames that line 1 declares")
    return RawClip(name, np.array(counts, np.int64), tuple(ids), _numbers(values, lines, starts, name))


def _numbers(values: list[str], lines: list[str], starts: list[int], name: str) -> np.ndarray:
    """Turn the collected x y z into (B, 25, 3) float32, or name the first line that is no position."""
    try:
        joints = np.fromiter(map(float, values), np.float64, len(values))
        if (np.abs(joints) <= FARTHEST).all():
            return joints.astype(np.float32).reshape(-1, NUM_JOINTS, 3)
    except ValueError:
        pass
    for start in starts:
        for number in range(start, start + NUM_JOINTS):
            for token in lines[number].split(None, 3)[:3]:
                try:
                    fits = abs(float(token)) <= FARTHEST
                except ValueError:
                    fits = False
                if not fits:
                    what = f"has a coordinate that is not a number of metres: {_shown(token)}"
                    raise _broken(name, number, what)
    raise AssertionError("a coordinate was refused but no line holds it")


def _count(lines: list[str], number: int, what: str, name: str) -> int:
    if number >= len(lines):
        raise _broken(name, number, f"should be {what}, but the file ends before it")
    try:
        count = int(lines[number])
    except ValueError:
        raise _broken(name, number, f"should be {what}, a whole number: {_shown(lines[number])}") from None
    if count < 0:
        raise _broken(name, number, f"should be {what}, but is negative: {count}")
    return count


def _body_id(lines: list[str], number: int, name: str) -> int:
    tokens = lines[number].split()
    if len(tokens) != BODY_VALUES:
        what = f"should hold the {BODY_VALUES} values of a body: {_shown(lines[number])}"
        raise _broken(name, number, what)
    try:
        return int(tokens[0])
    except ValueError:
        raise _broken(name, number, f"should begin with a tracking id: {_shown(tokens[0])}") from None


def _broken(name: str, number: int, what: str) -> UserError:
    return UserError(f"{name}, line {number + 1}: {what}; copy the file again or leave it out")


def _too_large(name: str, size: int) -> str:
    return f"{name}: has {size} bytes, a clip may have {MAX_BYTES}; cut the recording into clips"


def _shown(line: str) -> str:
    line = line.strip()
    return repr(line if len(line) <= 40 else line[:40] + "…")


# Focal lengths and principal points of a Kinect v2, only to write plausible pixel columns.
_DEPTH = (365.0, 365.0, 256.0, 212.0)
_COLOUR = (1060.0, 1060.0, 960.0, 540.0)
_JOINT_LINE = "%.7g %.7g %.7g %.4f %.4f %.4f %.4f 0 0 0 0 2\r\n"
_BODY_BLOCK = _JOINT_LINE * NUM_JOINTS


def format_skeleton(clip: RawClip) -> bytes:
    """Write `clip` in the NTU text format: CRLF, ten body values, twelve joint values (orientations zero)."""
    points = np.asarray(clip.joints, np.float64)
    depth = np.where(points[..., 2:] > 0.1, points[..., 2:], 0.1)
    columns = [points]
    for fx, fy, cx, cy in (_DEPTH, _COLOUR):
        columns += [cx + fx * points[..., :1] / depth, cy - fy * points[..., 1:2] / depth]
    rows = np.concatenate(columns, axis=-1).reshape(len(points), NUM_JOINTS * 7).tolist()
    parts = [f"{len(clip.counts)}\r\n"]
    body = 0
    for count in clip.counts.tolist():
        parts.append(f"{count}\r\n")
        for _ in range(count):
            parts.append(f"{clip.ids[body]} 0 1 1 1 1 0 0 0 2\r\n{NUM_JOINTS}\r\n")
            parts.append(_BODY_BLOCK % tuple(rows[body]))
            body += 1
    return "".join(parts).encode("ascii")
