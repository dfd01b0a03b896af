"""The kinematic body of the sample data: 25 Kinect v2 joints moved by joint angles.

Body frame: x to the person's left, y up, z the way the person faces; metres. A pose is a row of `NUM_DOFS`
angles in degrees; `DOF` names its columns. Limb angles exist twice, `_l` and `_r`, and mean the same on both
sides (outward, forward, inward), so exchanging the columns mirrors the pose.

Only additions, multiplications, divisions and square roots are used, each correctly rounded by IEEE 754: other
processors and libraries give the same bits, which sines from a maths library would not.
"""

import numpy as np

_TRUNK = ("yaw", "bend", "side", "turn", "nod", "tilt", "look")
_ARM = ("raise", "out", "twist", "elbow", "wrist", "shrug")
_LEG = ("hip", "spread", "knee", "ankle")
DOFS = _TRUNK + tuple(f"{dof}_{side}" for side in "lr" for dof in _ARM + _LEG)
DOF = {name: column for column, name in enumerate(DOFS)}
NUM_DOFS = len(DOFS)

# Bone vectors of a body of 1.70 m in its rest pose (arms and legs hanging), child joint -> (parent, vector);
# left side only, the right side is its mirror image.
HEIGHT = 1.70
_REST = {
    1: (0, (0.0, 0.29, 0.0)),
    20: (1, (0.0, 0.23, 0.0)),
    2: (20, (0.0, 0.07, 0.01)),
    3: (2, (0.0, 0.15, 0.03)),
    4: (20, (0.17, -0.03, 0.0)),
    5: (4, (0.01, -0.27, 0.0)),
    6: (5, (0.0, -0.24, 0.0)),
    7: (6, (0.0, -0.08, 0.0)),
    21: (7, (0.0, -0.08, 0.0)),
    22: (6, (-0.02, -0.07, 0.04)),
    12: (0, (0.08, -0.03, 0.01)),
    13: (12, (0.01, -0.40, 0.0)),
    14: (13, (0.0, -0.39, 0.0)),
    15: (14, (0.0, -0.07, 0.12)),
}
_OTHER_SIDE = {4: 8, 5: 9, 6: 10, 7: 11, 21: 23, 22: 24, 12: 16, 13: 17, 14: 18, 15: 19}
BONES = dict(_REST) | {
    _OTHER_SIDE[child]: (_OTHER_SIDE.get(parent, parent), (-vector[0], *vector[1:]))
    for child, (parent, vector) in _REST.items()
    if child in _OTHER_SIDE
}

TAU = 6.283185307179586


def sine(x: np.ndarray) -> np.ndarray:
    """Return sin(x), x in radians, to 1e-11 and the same bits everywhere."""
    x = x - np.rint(x / TAU) * TAU
    # sin(pi - x) = sin(x): fold into [-pi/2, pi/2], where the series converges quickly
    x = np.where(x > TAU / 4, TAU / 2 - x, np.where(x < -TAU / 4, -TAU / 2 - x, x))
    square = x * x
    total = np.zeros_like(x)
    for k in range(8, 0, -1):
        total = (1 - total) * square / ((2 * k) * (2 * k + 1))
    return x * (1 - total)


def rotation(axis: str, degrees: np.ndarray) -> np.ndarray:
    """Return (..., 3, 3) right-handed rotations about a body axis, to be applied to column vectors."""
    radians = degrees * (TAU / 360)
    s, c = sine(radians), sine(radians + TAU / 4)
    first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.zeros((*radians.shape, 3, 3))
    fixed = 3 - first - second
    matrix[..., fixed, fixed] = 1
    matrix[..., first, first] = matrix[..., second, second] = c
    matrix[..., second, first] = s
    matrix[..., first, second] = -s
    return matrix


def product(*matrices: np.ndarray) -> np.ndarray:
    """Multiply (..., 3, 3) matrices from left to right; BLAS would round differently from machine to machine."""
    result = matrices[0]
    for other in matrices[1:]:
        terms = [result[..., :, k, None] * other[..., None, k, :] for k in range(3)]
        result = terms[0] + terms[1] + terms[2]
    return result


def apply(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Rotate vectors (..., 3) by matrices (..., 3, 3)."""
    terms = [matrix[..., :, k] * vector[..., None, k] for k in range(3)]
    return terms[0] + terms[1] + terms[2]


def joint_positions(pose: np.ndarray, bones: dict[int, np.ndarray]) -> np.ndarray:
    """Forward kinematics: pose (T, NUM_DOFS) in degrees, bone vectors by child joint -> joints (T, 25, 3).

    The hip centre is the origin; the pelvis stays upright, the legs hang from it and the spine bends above it.
    """

    def angle(name: str) -> np.ndarray:
        return pose[:, DOF[name]]

    pelvis = rotation("y", angle("yaw"))
    half = product(rotation("x", angle("bend") / 2), rotation("z", angle("side") / 2), rotation("y", angle("turn") / 2))
    chest = product(pelvis, half, half)
    frames = {1: product(pelvis, half), 20: chest, 2: chest}
    frames[3] = product(chest, rotation("y", angle("look")), rotation("x", angle("nod")), rotation("z", angle("tilt")))
    for side, sign, arm, leg in (("l", 1, (4, 5, 6, 7, 21, 22), (12, 13, 14, 15)),
                                 ("r", -1, (8, 9, 10, 11, 23, 24), (16, 17, 18, 19))):  # fmt: skip
        away = rotation("y", sign * angle(f"out_{side}"))
        shoulder = product(
            chest,
            away,
            rotation("x", -angle(f"raise_{side}")),
            away.swapaxes(-1, -2),
            rotation("y", -sign * angle(f"twist_{side}")),
        )
        forearm = product(shoulder, rotation("x", -angle(f"elbow_{side}")))
        hand = product(forearm, rotation("x", -angle(f"wrist_{side}")))
        frames[arm[0]] = product(chest, rotation("z", sign * angle(f"shrug_{side}")))
        frames[arm[1]], frames[arm[2]] = shoulder, forearm
        frames[arm[3]] = frames[arm[4]] = frames[arm[5]] = hand
        thigh = product(pelvis, rotation("z", sign * angle(f"spread_{side}")), rotation("x", -angle(f"hip_{side}")))
        shank = product(thigh, rotation("x", angle(f"knee_{side}")))
        frames[leg[0]] = pelvis
        frames[leg[1]], frames[leg[2]] = thigh, shank
        frames[leg[3]] = product(shank, rotation("x", -angle(f"ankle_{side}")))

    joints = np.zeros((len(pose), 25, 3))
    for child, (parent, _) in BONES.items():  # parents come before their children
        joints[:, child] = joints[:, parent] + apply(frames[child], bones[child])
    return joints
