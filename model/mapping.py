"""Clips of one layout turned into another by the names of the joints.

Axes: M person, T frame, V joint, C channel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.errors import UserError
from model.layouts import Layout

# Names that makers of skeletons give to the same place.
SAME = (
    ("spine_base", "hip_center", "mid_hip"),
    ("spine_mid", "spine", "mid_spine"),
    ("spine_shoulder", "shoulder_center", "mid_shoulder"),
    ("left_foot", "left_foot_index", "left_big_toe"),
    ("right_foot", "right_foot_index", "right_big_toe"),
    ("left_hand_tip", "left_index"),
    ("right_hand_tip", "right_index"),
)
# Places between joints. OpenPose and the Kinect call the middle of the shoulders a neck or a shoulder centre.
SHOULDERS, HIPS = ("left_shoulder", "right_shoulder"), ("left_hip", "right_hip")
BETWEEN = {
    **dict.fromkeys(("neck", *SAME[2]), SHOULDERS),
    **dict.fromkeys(SAME[0], HIPS),
    **dict.fromkeys(SAME[1], (*SHOULDERS, *HIPS)),
}


@dataclass(frozen=True)
class JointMap:
    """How a layout follows from another: `sources[v]` are the joints whose mean is joint `v`, none if it has none."""

    layout: Layout
    sources: tuple[tuple[int, ...], ...]
    missing: tuple[str, ...]
    between: tuple[str, ...]

    def __str__(self) -> str:
        said = []
        if self.between:
            said.append(f"{', '.join(self.between)} from the joints around")
        if self.missing:
            said.append(f"no counterpart for {', '.join(self.missing)}: left empty")
        return "; ".join(said) or "every joint has its counterpart"


def joint_map(source: Layout, target: Layout) -> JointMap:
    """Find each joint of `target` in `source`: by its name, by another name of the place, as a mean of joints around.

    Raises UserError when there is no joint in common.
    """
    place = {name: v for v, name in enumerate(source.joints)}
    sources: list[tuple[int, ...]] = []
    missing, between = [], []
    for name in target.joints:
        names = [name, *(other for group in SAME if name in group for other in group)]
        known = next((place[each] for each in names if each in place), None)
        around = tuple(place[each] for each in BETWEEN.get(name, ()) if each in place)
        if known is not None:
            sources.append((known,))
        elif around and len(around) == len(BETWEEN[name]):
            sources.append(around)
            between.append(name)
        else:
            sources.append(())
            missing.append(name)
    if len(missing) == target.num_joints:
        raise UserError(
            f"layout '{source.name}' has no joint of '{target.name}'; joints are matched by name, "
            f"and these are {', '.join(source.joints[:5])}, …"
        )
    return JointMap(target, tuple(sources), tuple(missing), tuple(between))


def map_joints(joints: np.ndarray, by: JointMap) -> np.ndarray:
    """Joints (M, T, V, C) of the source as (M, T, V', C) of the target.

    What has no counterpart, and a mean of which a joint was not seen (all zeros), is zeros.
    """
    mapped = np.zeros((*joints.shape[:2], len(by.sources), joints.shape[3]), joints.dtype)
    for v, sources in enumerate(by.sources):
        if len(sources) == 1:
            mapped[:, :, v] = joints[:, :, sources[0]]
        elif sources:
            around = joints[:, :, list(sources)]
            seen = (around != 0).any(axis=-1).all(axis=-1)
            mapped[:, :, v] = np.where(seen[..., None], around.mean(axis=2), 0)
    return mapped


def to_channels(joints: np.ndarray, have: Sequence[str], want: Sequence[str]) -> np.ndarray:
    """Joints (…, C) with the channels `want` of those at hand; a score that is not there is 1 where a joint was seen.

    Raises UserError when a coordinate is wanted that is not there.
    """
    lacking = [channel for channel in want if channel not in have and channel != "score"]
    if lacking or ("z" in have and "z" not in want):
        raise UserError(f"has the channels {', '.join(have)}, wanted are {', '.join(want)}; choose data of that kind")
    columns = [
        joints[..., have.index(channel)] if channel in have else (joints != 0).any(axis=-1).astype(joints.dtype)
        for channel in want
    ]
    return np.stack(columns, axis=-1)
