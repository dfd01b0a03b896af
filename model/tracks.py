"""Bodies found frame by frame → the persons of a clip.

Axes: M person, T frame, V joint, C channel.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from model.errors import UserError

PERSONS = 2
CROWD = 200  # bodies in a frame; linking takes time by their square
WIDEST_GAP = 100  # times as many frames as are listed: more is a mistake in their numbers
FORGET = 30  # frames after which a body that was lost is another person
FARTHEST = 1.0  # sizes of the body that it may move from one sighting to the next


@dataclass(frozen=True)
class Body:
    """One body in one frame: `joints` (V, C), zeros where not seen; `person` is its track, if the source says."""

    frame: int
    joints: np.ndarray
    person: Hashable = None


def assemble(
    bodies: Sequence[Body], frames: Sequence[int], shape: tuple[int, int], persons: int = PERSONS
) -> np.ndarray:
    """Joints (M, T, V, C) float32 of at most `persons` persons, those seen most come first; zeros where not seen.

    T reaches from the first to the last of `frames`, which also names frames without a body. Where no body has a
    track, bodies are linked by nearness. `shape` is (V, C).

    Raises UserError when there is no frame, when frames are too far apart, for a person twice in a frame, and for a
    crowd.
    """
    if not frames:
        raise UserError("holds no frame")
    first, last = min(frames), max(frames)
    listed = len(set(frames))
    if last - first >= WIDEST_GAP * (listed + 1):
        raise UserError(f"frames go from {first} to {last}, but only {listed} are there; number them from 0")
    crowd = max(Counter(body.frame for body in bodies).values(), default=0)
    if crowd > CROWD:
        raise UserError(f"a frame has {crowd} bodies, at most {CROWD} can be told apart; leave out what is no person")
    named = all(body.person is not None for body in bodies)
    tracks: dict[Hashable, dict[int, np.ndarray]] = {}
    for body, person in zip(bodies, [b.person for b in bodies] if named else link(bodies), strict=True):
        track = tracks.setdefault(person, {})
        if body.frame in track:
            raise UserError(f"person {person} is twice in frame {body.frame}")
        track[body.frame] = body.joints

    def unseen(person: Hashable) -> int:
        return -sum(int(joints.any(axis=-1).sum()) for joints in tracks[person].values())

    kept = sorted(tracks, key=unseen)[:persons]
    clip = np.zeros((max(len(kept), 1), last - first + 1, *shape), np.float32)
    for slot, person in enumerate(kept):
        for frame, joints in tracks[person].items():
            clip[slot, frame - first] = joints
    return clip


def link(bodies: Sequence[Body]) -> list[int]:
    """A track number for each body: in every frame the nearest pairs of bodies and tracks join, the nearest first."""
    found = [0] * len(bodies)
    ends: dict[int, tuple[int, np.ndarray]] = {}  # track → last frame and joints
    by_frame: dict[int, list[int]] = {}
    for number, body in enumerate(bodies):
        by_frame.setdefault(body.frame, []).append(number)
    count = 0
    for frame in sorted(by_frame):
        ends = {track: end for track, end in ends.items() if frame - end[0] <= FORGET}
        free = list(by_frame[frame])
        pairs = [(_apart(bodies[n].joints, joints), n, track) for n in free for track, (_, joints) in ends.items()]
        for apart, number, track in sorted(pairs):
            if apart <= FARTHEST and number in free and ends[track][0] < frame:
                found[number] = track
                ends[track] = (frame, bodies[number].joints)
                free.remove(number)
        for number in free:
            found[number] = count
            ends[count] = (frame, bodies[number].joints)
            count += 1
    return found


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    """Mean distance of the joints that both show, in sizes of the body; infinite when there is none."""
    both = one[:, :2].any(axis=1) & other[:, :2].any(axis=1)
    if not both.any():
        return float("inf")
    a, b = one[both, :2], other[both, :2]
    size = float(np.ptp(np.concatenate([a, b]), axis=0).max()) or 1.0
    return float(np.linalg.norm(a - b, axis=1).mean()) / size
