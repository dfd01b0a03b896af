"""NTU RGB+D: conversions of raw clips to joint arrays, file names and protocols.

The three published conversions choose bodies differently; each is reproduced to the stored bit depth. Data
sets: Shahroudy et al. 2016 (60 actions), Liu et al. 2019 (120 actions). `ntu_text` reads the text format.

Axes: M person, T frame, V joint (25), C channel (x y z in metres, camera frame).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from model.errors import UserError
from model.ntu_text import MAX_BYTES, NUM_JOINTS, RawClip, format_skeleton, parse_skeleton, read_skeleton

__all__ = [
    "MAX_BYTES", "RawClip", "action_names", "convert_mmaction2", "convert_pyskl", "convert_umurl", "format_skeleton",
    "missing_names", "ntu_splits", "parse_name", "parse_skeleton", "read_skeleton",
]  # fmt: skip

# Two-person actions of NTU RGB+D 120.
INTERACTIONS = frozenset(range(50, 61)) | frozenset(range(106, 121))

XSUB60_TRAIN = frozenset((1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38))
XSUB120_TRAIN = XSUB60_TRAIN | frozenset((
    45, 46, 47, 49, 50, 52, 53, 54, 55, 56, 57, 58, 59, 70, 74, 78, 80,
    81, 82, 83, 84, 85, 86, 89, 91, 92, 93, 94, 95, 97, 98, 100, 103,
))  # fmt: skip
XVIEW_TRAIN = frozenset((2, 3))

# PYSKL's denoising of clips with several tracks.
SHORTEST_TRACK = 12  # frames
WIDEST_BODY = 0.8  # a body is upright: its x extent is at most this share of its y extent
BAD_SHARE = 0.69754  # a track with at least this share of frames wider than that is a phantom

# MMAction2's and UmURL's selection.
LISTED_BODIES = 4

_NAME = re.compile(r"S([0-9]{3})C([0-9]{3})P([0-9]{3})R([0-9]{3})A([0-9]{3})")


@dataclass
class _Track:
    """One tracking id: joints (T, 25, 3) held contiguously from its first frame on."""

    start: int
    joints: np.ndarray
    motion: float

    @property
    def end(self) -> int:
        return self.start + len(self.joints)


def convert_pyskl(raw: RawClip) -> np.ndarray:
    """Return the key points (M, T, 25, 3) float16 that PYSKL's tool makes of a raw clip, M being 1 or 2.

    Frames without a body are dropped; of several tracks (one per tracking id), those that are short or broad
    like furniture are removed as phantoms, the others are ordered by motion and merged into two slots.

    Departure: where the original returns nothing or fails (no body in any frame, no track left, only zeros)
    this raises UserError, so that the caller can set the clip aside with the reason.
    """
    tracks = _tracks(raw)
    if not tracks:
        raise UserError(f"{raw.name}: no body in any frame; leave the clip out")
    if len(tracks) > 1:
        tracks = [track for track in tracks if len(track.joints) >= SHORTEST_TRACK]
        if not tracks:
            raise UserError(f"{raw.name}: all its tracks are shorter than {SHORTEST_TRACK} frames; leave it out")
    if len(tracks) > 1:
        tracks = [track for track in map(_upright, tracks) if track is not None]
        if not tracks:
            raise UserError(f"{raw.name}: none of its tracks is upright like a body; leave it out")
        tracks.sort(key=lambda track: -track.motion)
    joints = (tracks[0].joints[None] if len(tracks) == 1 else _two_slots(tracks)).astype(np.float16)
    if not joints.any():
        raise UserError(f"{raw.name}: every joint is zero; leave the clip out")
    return joints


def _tracks(raw: RawClip) -> list[_Track]:
    """Gather bodies by tracking id, in order of appearance; time counts only frames that have a body."""
    times = np.repeat(np.arange(np.count_nonzero(raw.counts)), raw.counts[raw.counts > 0]).tolist()
    rows: dict[int, list[int]] = {}
    for row, body in enumerate(raw.ids):
        rows.setdefault(body, []).append(row)
    tracks = []
    for own in rows.values():
        joints = raw.joints[own]
        tracks.append(_Track(times[own[0]], joints, _motion(joints)))
    return tracks


def _motion(joints: np.ndarray) -> float:
    """Sum over x y z of the variance over all frames and joints."""
    return float(joints.reshape(-1, 3).var(axis=0).sum())


def _upright(track: _Track) -> _Track | None:
    """Apply the spread test: drop a phantom, take the motion of a partly bad track from its good frames."""
    extent = track.joints.max(axis=1) - track.joints.min(axis=1)
    good = extent[:, 0] <= WIDEST_BODY * extent[:, 1]
    if good.all():
        return track
    if 1 - good.mean() >= BAD_SHARE:
        return None
    return _Track(track.start, track.joints, min(track.motion, _motion(track.joints[good])))


def _two_slots(tracks: list[_Track]) -> np.ndarray:
    """Merge tracks, strongest first, into (2, T, 25, 3): each takes the first slot it finds free."""
    slots = np.zeros((2, max(track.end for track in tracks), NUM_JOINTS, 3), np.float32)
    hulls: list[tuple[int, int] | None] = [None, None]
    for track in tracks:
        for slot, hull in enumerate(hulls):
            if hull is None or track.end <= hull[0] or track.start >= hull[1]:
                slots[slot, track.start : track.end] = track.joints
                hulls[slot] = (
                    (track.start, track.end) if hull is None else (min(track.start, hull[0]), max(track.end, hull[1]))
                )
                break
    seen = np.flatnonzero(np.abs(slots).sum(axis=(0, 2, 3)) >= 1e-3)
    if len(seen):
        slots = slots[:, seen[0] : seen[-1] + 1]
    if not slots[0, 0, 1].any() and slots[1, 0, 1].any():
        slots = slots[::-1]
    return slots


def convert_mmaction2(raw: RawClip) -> np.ndarray:
    """Return the key points (M, T, 25, 3) float16 that MMAction2's tool makes of a raw clip, M = 0, 1 or 2.

    Bodies are told apart by their place in the listing, not by tracking id; frames without a body are zeros;
    the two places of highest spread are kept. A clip without bodies gives M = 0.
    """
    chosen = _two_listed(raw)
    return chosen[chosen.reshape(len(chosen), -1).sum(axis=1) != 0].astype(np.float16)


def convert_umurl(raw: RawClip) -> np.ndarray:
    """Return UmURL's array (3, T, 25, 2) float32, before its normalisation: MMAction2's choice of bodies."""
    return np.ascontiguousarray(_two_listed(raw).transpose(3, 1, 2, 0))


def _two_listed(raw: RawClip) -> np.ndarray:
    frames = raw.body_frames()
    places = np.arange(len(frames)) - (np.cumsum(raw.counts) - raw.counts)[frames]
    kept = places < LISTED_BODIES
    bodies = np.zeros((LISTED_BODIES, len(raw.counts), NUM_JOINTS, 3), np.float32)
    bodies[places[kept], frames[kept]] = raw.joints[kept]
    energy = np.array([_energy(body) for body in bodies])
    return bodies[energy.argsort()[::-1][:2]]


def _energy(body: np.ndarray) -> float:
    """Sum over x y z of the standard deviation over all joints of the frames whose sum is not zero."""
    present = body[body.sum(axis=(1, 2)) != 0]
    return float(present.reshape(-1, 3).std(axis=0).sum()) if len(present) else 0.0


def parse_name(name: str) -> dict[str, int]:
    """Split `SsssCcccPpppRrrrAaaa` (a `.skeleton` ending is ignored) into its five numbers.

    Raises UserError for any other name.
    """
    match = _NAME.fullmatch(name.removesuffix(".skeleton"))
    if match is None:
        raise UserError(f"{name}: not an NTU file name; it must read like S001C002P003R001A010.skeleton")
    setup, camera, subject, repetition, action = map(int, match.groups())
    return {"setup": setup, "camera": camera, "subject": subject, "repetition": repetition, "action": action}


def ntu_splits(names: Iterable[str], actions: int = 120) -> dict[str, list[str]]:
    """Sort clip names into the protocols of the data sets, keeping their order.

    `actions` 60 gives X-Sub and X-View of NTU RGB+D, leaving out clips of actions above 60; 120 gives X-Sub
    and X-Set of NTU RGB+D 120 and X-View besides. Subjects 1 to 40 are split alike in both. Raises UserError
    for names that are not NTU's.
    """
    if actions not in (60, 120):
        raise UserError(f"actions: {actions} is neither 60 (NTU RGB+D) nor 120 (NTU RGB+D 120)")
    train_subjects = XSUB60_TRAIN if actions == 60 else XSUB120_TRAIN
    protocols = ("xsub", "xview") if actions == 60 else ("xsub", "xview", "xset")
    splits: dict[str, list[str]] = {f"{p}_{part}": [] for p in protocols for part in ("train", "test")}
    for name in names:
        parts = parse_name(name)
        if parts["action"] > actions:
            continue
        trains = {
            "xsub": parts["subject"] in train_subjects,
            "xview": parts["camera"] in XVIEW_TRAIN,
            "xset": parts["setup"] % 2 == 0,
        }
        for protocol in protocols:
            splits[f"{protocol}_{'train' if trains[protocol] else 'test'}"].append(name)
    return splits


@cache
def missing_names() -> frozenset[str]:
    """Return the 535 clips of NTU RGB+D 120 whose skeletons are known to be missing or useless.

    The 302 of NTU RGB+D are those with actions up to 60.
    """
    return frozenset((Path(__file__).parent / "ntu_missing.txt").read_text(encoding="ascii").split())


@cache
def action_names() -> tuple[str, ...]:
    """Return the names of the 120 actions; action A001 is the first."""
    text = (Path(__file__).parent / "labels" / "ntu120.txt").read_text(encoding="ascii")
    return tuple(text.splitlines())
