"""Sample clips from a kinematic model: people of different build and manner, seen by three noisy cameras.

A clip's random numbers come from (seed, setup, camera, subject, repetition, action) alone, a person's build from
(seed, subject), a person's habits in an action from (seed, subject, action). The result is the same, byte for
byte, on every machine: see `synthetic_body` for how.
"""

from collections.abc import Iterable

import numpy as np

from model.errors import UserError
from model.ntu import RawClip, parse_name
from model.synthetic_actions import ACTIONS
from model.synthetic_body import BONES, NUM_DOFS, apply, joint_positions, product, rotation
from model.synthetic_take import LOOSE, Actor, Style, Take

SUBJECTS = tuple(range(1, 17))  # ten of them train in NTU's X-Sub protocol, six test
CAMERAS = (1, 2, 3)
MIN_FRAMES, MAX_FRAMES = 28, 60

# As in NTU RGB+D, camera 2 sees the front, camera 3 a side, camera 1 halfway; degrees from the front.
_AZIMUTH = {1: 30.0, 2: 0.0, 3: 60.0}
# Per setup: height of the cameras, distance to the middle of the scene (metres).
_SETUPS = {1: (1.35, 3.3), 2: (1.75, 2.8)}
_FIRST_ID = 72057594037900000

# Standard deviation of a joint's slow and quick error, metres at 3 m.
_ERROR = np.full(25, 0.006)
_ERROR[[5, 6, 9, 10, 13, 14, 17, 18]] = 0.009
_ERROR[[7, 11, 15, 19, 21, 22, 23, 24]] = 0.012
_LIMBS = (5, 6, 7, 9, 10, 11, 13, 14, 17, 18, 21, 22, 23, 24)


def setup_of(subject: int) -> int:
    """Return the setup a subject is recorded in: 1 for odd numbers, 2 for even ones."""
    return 2 - subject % 2


def clip_names() -> list[str]:
    """Return the names of all clips: every action by every subject before every camera, once."""
    return [
        f"S{setup_of(subject):03}C{camera:03}P{subject:03}R001A{action:03}"
        for action in sorted(ACTIONS)
        for subject in SUBJECTS
        for camera in CAMERAS
    ]


def make_clip(name: str, seed: int = 0, *, noise: float = 1.0, style: float = 1.0) -> RawClip:
    """Make the clip called `name` (SsssCcccPpppRrrrAaaa) as a sensor would record it.

    `noise` scales the sensor's errors, `style` how much people differ. Joints are metres in the camera's frame.
    Raises UserError for a name of another form and for numbers that the sample data does not have.
    """
    key = parse_name(name)
    setup, camera, subject, action = key["setup"], key["camera"], key["subject"], key["action"]
    for number, letter, known in ((setup, "S", _SETUPS), (camera, "C", CAMERAS), (subject, "P", SUBJECTS)):
        if number not in known:
            raise UserError(f"{name}: {letter}{number:03} is not in the sample data; there are {_listing(known)}")
    if action not in ACTIONS:
        raise UserError(f"{name}: A{action:03} is not among the sample actions, {_listing(ACTIONS)}")
    draw = _generator(seed, setup, camera, subject, key["repetition"], action)
    manner = _style(seed, subject, action, style)
    frames = MIN_FRAMES + int((MAX_FRAMES - MIN_FRAMES + 1) * float(draw.random()))
    take = Take(draw, frames, manner, style)
    actors = ACTIONS[action](take)

    azimuth = _AZIMUTH[camera] + take.between(-6, 6)
    facing = take.between(-10, 10)
    bodies = []
    for number, actor in enumerate(actors):
        actor.add("yaw", facing if len(actors) == 1 else 0.0)
        # the partner performs in no other clips, so that no build is both in training and test
        bones = _bones(seed, subject + 100 * number, style)
        bodies.append(_grounded(actor, bones))
    if take.touch is not None:
        # people step up until their hands meet, give or take the width of a hand
        miss = bodies[0][take.touch, 11] - bodies[1][take.touch, 11] + 0.03 * draw.standard_normal(3)
        bodies[1] = bodies[1] + miss * np.array([1.0, 0.0, 1.0])
    bodies = [_seen(body, setup, azimuth) for body in bodies]
    present = [np.ones(frames, bool) for _ in bodies]
    recorded = [_recorded(body, bodies, draw, noise) for body in bodies]
    ids = [[_FIRST_ID + int(draw.integers(1000, 99999))] * frames for _ in bodies]
    _lose_frames(present, ids, take)
    _add_phantom(recorded, present, ids, take)
    return _listed(name, recorded, present, ids)


def _listing(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def _bones(seed: int, subject: int, spread: float) -> dict[int, np.ndarray]:
    """Scale the rest body to a person: stature, then trunk, arms, legs and every bone by themselves."""
    draw = _generator(seed, 1000, subject)
    stature = 1 + spread * 0.05 * float(draw.standard_normal())
    parts = 1 + spread * 0.03 * draw.standard_normal(4)  # trunk, width, arms, legs
    own = 1 + spread * 0.015 * draw.standard_normal(25)
    bones = {}
    for child, (_, vector) in BONES.items():
        part = 1 if child in (4, 8, 12, 16) else 0 if child in (1, 2, 3, 20) else 3 if 13 <= child < 20 else 2
        scale = stature * float(parts[part]) * float(own[min(child, _mirror(child))])
        bones[child] = np.array(vector) * min(max(scale, 0.8), 1.25)
    return bones


def _mirror(child: int) -> int:
    return child + 4 if child in (4, 5, 6, 7, 12, 13, 14, 15) else child + 2 if child in (21, 22) else child


def _style(seed: int, subject: int, action: int, spread: float) -> Style:
    person, habit = _generator(seed, 2000, subject), _generator(seed, 3000, subject, action)
    posture = spread * LOOSE * (3 * person.standard_normal(NUM_DOFS) + 3 * habit.standard_normal(NUM_DOFS))
    tempo = 1 + spread * (0.12 * float(person.standard_normal()) + 0.06 * float(habit.standard_normal()))
    size = 1 + spread * (0.15 * float(person.standard_normal()) + 0.12 * float(habit.standard_normal()))
    hand = "l" if float(person.random()) < 0.15 else "r"
    return Style(min(max(tempo, 0.6), 1.6), min(max(size, 0.4), 1.8), hand, posture)


def _grounded(actor: Actor, bones: dict[int, np.ndarray]) -> np.ndarray:
    """Put a pose on the ground: the lower foot touches it, the feet that carry stay in place. (T, 25, 3)."""
    joints = joint_positions(actor.pose + actor.own, bones)
    left, right = joints[:, 14], joints[:, 18]
    carried = actor.support[:, :1] * left + actor.support[:, 1:] * right
    joints = joints - carried[:, None] * np.array([1.0, 0.0, 1.0])
    joints[..., 1] -= joints[:, (14, 15, 18, 19), 1].min(axis=1)[:, None]
    joints[..., 0] += actor.place[:, :1]
    joints[..., 2] += actor.place[:, 1:]
    return joints


def _seen(joints: np.ndarray, setup: int, azimuth: float) -> np.ndarray:
    """Take world joints into the frame of a camera that looks at the middle of the scene, 0.9 m above ground."""
    height, distance = _SETUPS[setup]
    # the camera's x points to the left of a person who faces away from it
    turn = rotation("y", np.array(180.0 - azimuth))
    tilt = (height - 0.9) / distance  # of the optical axis; sine and cosine from it by a square root
    cosine = 1 / np.sqrt(1 + tilt * tilt)
    pitch = np.array([[1, 0, 0], [0, cosine, tilt * cosine], [0, -tilt * cosine, cosine]])
    centred = joints - np.array([0.0, 0.9, 0.0])
    away = np.sqrt(distance * distance + (height - 0.9) * (height - 0.9))
    return apply(product(pitch, turn), centred) + np.array([0.0, 0.0, away])


def _recorded(body: np.ndarray, bodies: list[np.ndarray], draw: np.random.Generator, noise: float) -> np.ndarray:
    """Add the sensor's errors: an offset per clip, slow and quick jitter, more with depth and where hidden."""
    frames = len(body)
    depth = body[..., 2:] / 3.0
    spread = noise * _ERROR[:, None] * depth * depth * (1 + 2.0 * _hidden(body, bodies)[..., None])
    fresh = draw.standard_normal((frames, 25, 3))
    slow = np.zeros_like(fresh)
    slow[0] = fresh[0]
    for t in range(1, frames):
        slow[t] = 0.92 * slow[t - 1] + 0.392 * fresh[t]
    offset = draw.standard_normal((25, 3))
    quick = draw.standard_normal((frames, 25, 3))
    along = np.array([0.8, 0.8, 1.4])  # depth is the least certain
    return body + spread * along * (0.6 * offset + 0.8 * slow + 0.2 * quick)


def _hidden(body: np.ndarray, bodies: list[np.ndarray]) -> np.ndarray:
    """Return (T, 25): 1 where a limb's joint lies behind a trunk, as the camera sees it."""
    hidden = np.zeros(body.shape[:2])
    for trunk in bodies:
        x, y, z = (trunk[:, :, axis] for axis in range(3))
        middle, reach = x[:, (0, 20)].mean(axis=1), 0.17
        for joint in _LIMBS:
            inside = np.abs(body[:, joint, 0] - middle) < reach
            inside &= (body[:, joint, 1] > y[:, 0]) & (body[:, joint, 1] < y[:, 20] + 0.05)
            hidden[:, joint] = np.maximum(hidden[:, joint], inside & (body[:, joint, 2] > z[:, 1] + 0.06))
    return hidden


def _lose_frames(present: list[np.ndarray], ids: list[list[int]], take: Take) -> None:
    """Lose the first frames, a few in between, the second person for a while; now and then an id changes."""
    frames = len(take.seconds)
    if take.chance(0.08):
        gone = slice(0, 1 + int(take.between(0, 3))) if take.chance(0.5) else int(take.between(5, frames - 2))
        for seen in present:
            seen[gone] = False
    if len(present) == 2 and take.chance(0.15):
        start = int(take.between(0, frames - 8))
        present[1][start : start + int(take.between(2, 7))] = False
    if len(present) == 1 and take.chance(0.02):
        change = int(take.between(13, frames - 13))
        ids[0][change:] = [ids[0][0] + 1] * (frames - change)


def _add_phantom(recorded: list[np.ndarray], present: list[np.ndarray], ids: list[list[int]], take: Take) -> None:
    """Now and then, see a body where there is none: a short flash of one, or a piece of furniture."""
    if not take.chance(0.08):
        return
    frames = len(take.seconds)
    phantom = np.zeros((frames, 25, 3)) + recorded[0][:1]
    phantom = phantom + np.array([take.between(0.5, 1.0), take.between(-0.4, 0.0), take.between(-0.3, 0.6)])
    start = int(take.between(0, frames - 20))
    if take.chance(0.5):
        length = int(take.between(4, 11))
    else:  # broader than tall
        length = int(take.between(14, 20))
        middle = phantom[:, :1]
        phantom = middle + (phantom - middle) * np.array([2.5, 0.35, 1.0])
    phantom = phantom + 0.03 * take.draw.standard_normal((frames, 25, 3))
    recorded.append(phantom)
    seen = np.zeros(frames, bool)
    seen[start : start + length] = True
    present.append(seen)
    ids.append([_FIRST_ID + int(take.draw.integers(1000, 99999))] * frames)


def _listed(name: str, recorded: list[np.ndarray], present: list[np.ndarray], ids: list[list[int]]) -> RawClip:
    """Put the bodies into the order of a file: frame by frame."""
    seen = np.stack(present, axis=1)  # (T, bodies)
    joints = np.stack(recorded, axis=1)[seen].astype(np.float32)
    order = tuple(np.array(ids, np.int64).T[seen].tolist())
    return RawClip(name, seen.sum(axis=1).astype(np.int64), order, joints)
