"""What the people of the sample data do: joint-angle trajectories of twelve actions.

Numbers and names are those of NTU RGB+D. Four pairs differ in a detail: drinking and phoning (where the hand
rests), writing and typing (which hands move, and how), clapping and rubbing (how the hands move against each
other), hand-shake and push (what the arms and the other person do). Angles are degrees, times seconds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from model.synthetic_body import DOF, NUM_DOFS, sine

FRAMES_PER_SECOND = 15.0
_TAU = 6.283185307179586

# Poses of one arm, found so that the hand of a body of average size reaches the named place.
HANG = {"raise": 10.0, "out": 105.0, "twist": 10.0, "elbow": 16.0, "wrist": 5.0}
MOUTH = {"raise": 62.0, "out": 7.0, "twist": 30.0, "elbow": 128.0, "wrist": 5.0}
EAR = {"raise": 99.0, "out": 47.0, "twist": -26.0, "elbow": 132.0, "wrist": 5.0}
CUP = {"raise": 11.0, "out": 80.0, "twist": 19.0, "elbow": 95.0, "wrist": 20.0}
PEN = {"raise": 23.0, "out": 36.0, "twist": 33.0, "elbow": 73.0, "wrist": 5.0}
PAPER = {"raise": 19.0, "out": 24.0, "twist": 42.0, "elbow": 76.0, "wrist": 0.0}
KEYS = {"raise": 22.0, "out": 28.0, "twist": 33.0, "elbow": 70.0, "wrist": 5.0}
FRONT = {"raise": 30.0, "out": 40.0, "twist": 36.0, "elbow": 104.0, "wrist": 0.0}
SHAKE = {"raise": 46.0, "out": 0.0, "twist": 37.0, "elbow": 37.0, "wrist": 0.0}
READY = {"raise": 19.0, "out": 117.0, "twist": 12.0, "elbow": 134.0, "wrist": 10.0}
PUSH = {"raise": 64.0, "out": 0.0, "twist": 29.0, "elbow": 49.0, "wrist": -60.0}
WAVE_LOW = {"raise": 77.0, "out": 58.0, "twist": -43.0, "elbow": 102.0, "wrist": 0.0}
WAVE_HIGH = {"raise": 135.0, "out": 70.0, "twist": -49.0, "elbow": 67.0, "wrist": 0.0}
LAP = {"raise": 17.0, "out": 59.0, "twist": 39.0, "elbow": 57.0, "wrist": 0.0}
SEAT = {"hip_l": 84.0, "hip_r": 84.0, "knee_l": 88.0, "knee_r": 88.0, "spread_l": 8.0, "spread_r": 8.0}

# How far a person's own angles stray: trunk, then arm and leg of each side (columns of DOFS).
LOOSE = np.array([1.5, 0.8, 0.6, 0.8, 1.2, 0.8, 1.2] + [1, 1.3, 1.2, 1.1, 1, 0.6, 0.6, 0.5, 0.4, 0.4] * 2)


@dataclass(frozen=True)
class Style:
    """How a person moves: rate and size of movements, the leading hand (l or r), angles added to every pose."""

    tempo: float
    size: float
    hand: str
    posture: np.ndarray


@dataclass
class Actor:
    """One person of a clip.

    `pose` (T, NUM_DOFS) is what the action asks for, `own` (T, NUM_DOFS) the person's posture and sway, added to
    it; `place` (T, 2) is where the person stands, metres to the left and ahead; `support` (T, 2) weighs the left
    and the right foot: the weighted mean of the feet stays at that place.
    """

    pose: np.ndarray
    own: np.ndarray
    place: np.ndarray
    support: np.ndarray

    def arm(self, side: str, weight: np.ndarray | float, target: Mapping[str, float]) -> None:
        """Move an arm towards a pose by `weight` (T,) from 0 to 1."""
        self.move(weight, {f"{dof}_{side}": angle for dof, angle in target.items()})

    def move(self, weight: np.ndarray | float, target: Mapping[str, float]) -> None:
        """Move the named columns towards a pose by `weight` (T,) from 0 to 1."""
        for dof, angle in target.items():
            self.pose[:, DOF[dof]] += weight * (angle - self.pose[:, DOF[dof]])

    def add(self, dof: str, angle: np.ndarray | float) -> None:
        self.pose[:, DOF[dof]] += angle


class Take:
    """One performance: its random numbers, its times and its performer's style."""

    def __init__(self, draw: np.random.Generator, frames: int, style: Style, looseness: float) -> None:
        self.draw, self.style, self.looseness = draw, style, looseness
        self.seconds = np.arange(frames) / FRAMES_PER_SECOND
        self.length = float(self.seconds[-1])
        self.delay = self.between(0.0, 0.18) * self.length
        self.touch: int | None = None  # frame in which the right hands of two people meet
        self.near = style.hand
        self.far = "l" if style.hand == "r" else "r"

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.draw.random())

    def chance(self, probability: float) -> bool:
        return float(self.draw.random()) < probability

    def ramp(self, start: float, duration: float) -> np.ndarray:
        """Rise smoothly from 0 to 1, beginning at `start`."""
        x = np.minimum(np.maximum((self.seconds - start) / duration, 0.0), 1.0)
        return x * x * (3 - 2 * x)

    def hold(self, rise: float, back: float, fall: float) -> np.ndarray:
        """Rise after the delay, stay, and return from the share `back` of the clip on (not, if that is above 1)."""
        tempo = self.style.tempo
        return self.ramp(self.delay, rise / tempo) * (1 - self.ramp(back * self.length, fall / tempo))

    def beat(self, rate: float, phase: float = 0.0) -> np.ndarray:
        """Return the angle of an oscillation of `rate` per second in the performer's tempo, not quite regular."""
        drift = 0.7 * sine(self.seconds * self.between(0.8, 2.0) + self.between(0, _TAU))
        return _TAU * rate * self.style.tempo * self.seconds + phase + drift

    def sway(self, size: float) -> np.ndarray:
        """Return slow wandering of about `size` either way."""
        quick = sine(_TAU * self.between(0.3, 0.8) * self.seconds + self.between(0, _TAU))
        slow = sine(_TAU * self.between(0.05, 0.3) * self.seconds + self.between(0, _TAU))
        return size * (0.4 * quick + slow)

    def stand(self, seated: float = 0.0) -> Actor:
        """Return a person at ease with the arms hanging or, with the chance `seated`, on a chair, hands in the lap."""
        frames = len(self.seconds)
        own = self.style.posture + self.looseness * 3 * LOOSE * self.draw.standard_normal(NUM_DOFS)
        own = own + np.zeros((frames, NUM_DOFS))
        for dof, size in (("yaw", 2), ("bend", 1.5), ("side", 1.2), ("turn", 2), ("nod", 2.5), ("look", 4)):
            own[:, DOF[dof]] += self.sway(size)
        pose = np.zeros((frames, NUM_DOFS))
        place = np.stack([self.sway(0.012), self.sway(0.012)], axis=1)
        actor = Actor(pose, own, place, np.full((frames, 2), 0.5))
        actor.move(1.0, {"knee_l": 5.0, "knee_r": 5.0, "nod": 6.0, "hip_l": 2.0, "hip_r": 2.0})
        for side in "lr":
            actor.arm(side, 1.0, HANG)
            for dof in ("raise", "out", "elbow"):
                own[:, DOF[f"{dof}_{side}"]] += self.sway(2.0)
        if self.chance(seated):
            actor.move(1.0, SEAT)
            for side in "lr":
                actor.arm(side, 1.0, LAP)
        elif self.chance(0.15):  # the last step of walking in
            self.step_in(actor)
        return actor

    def step_in(self, actor: Actor) -> None:
        left = 1 - self.ramp(0.0, self.between(0.5, 0.9))
        actor.place[:, 1] -= left * self.between(0.15, 0.4)
        lead, trail = ("l", "r") if self.chance(0.5) else ("r", "l")
        for dof, angle in (
            (f"hip_{lead}", 22),
            (f"knee_{lead}", 12),
            (f"hip_{trail}", -14),
            (f"knee_{trail}", 22),
        ):
            actor.add(dof, angle * left)


def mix(one: Mapping[str, float], other: Mapping[str, float], share: float) -> dict[str, float]:
    """Return the pose that lies `share` of the way from one arm pose to another."""
    return {dof: one[dof] + share * (other[dof] - one[dof]) for dof in one}


def _to_head(take: Take, place: float, back: float) -> tuple[Actor, np.ndarray]:
    """Bring the leading hand to the head: `place` 0 is the mouth, 1 the ear."""
    actor = take.stand(seated=0.3)
    if take.chance(0.6):  # the thing is already in the hand
        actor.arm(take.near, 1.0, mix(HANG, CUP, take.between(0.5, 1.1)))
    lift = take.hold(take.between(0.5, 1.0), back, take.between(0.5, 1.0))
    actor.arm(take.near, lift, mix(MOUTH, EAR, place))
    return actor, lift


def drink(take: Take) -> list[Actor]:
    actor, lift = _to_head(take, take.between(-0.1, 0.3), take.between(0.6, 1.05))
    sip = lift * (0.5 + 0.5 * sine(take.beat(take.between(0.25, 0.6))))
    actor.add("nod", -take.style.size * take.between(3, 14) * sip)
    actor.add(f"raise_{take.near}", take.style.size * take.between(2, 12) * sip)
    return [actor]


def phone(take: Take) -> list[Actor]:
    actor, lift = _to_head(take, take.between(0.6, 1.05), take.between(0.75, 1.4))
    lean = 1.0 if take.near == "l" else -1.0
    actor.add("tilt", -lean * take.between(0, 9) * lift)
    actor.add("nod", lift * take.sway(4))
    actor.add(f"raise_{take.near}", lift * take.sway(4))
    return [actor]


def _at_table(take: Take, near: Mapping[str, float], far: Mapping[str, float], bow: float) -> tuple[Actor, np.ndarray]:
    actor = take.stand(seated=0.5)
    work = take.hold(take.between(0.4, 0.9), take.between(0.85, 1.5), 0.7)
    actor.arm(take.near, work, near)
    actor.arm(take.far, work, far)
    actor.move(work, {"nod": bow + take.between(-7, 7), "bend": 0.4 * bow + take.between(-4, 4)})
    return actor, work


def write(take: Take) -> list[Actor]:
    actor, work = _at_table(take, PEN, mix(KEYS, PAPER, take.between(0.5, 2.5)), bow=28)
    size, line = take.style.size, take.beat(take.between(0.2, 0.4))
    beat = take.beat(take.between(1.3, 2.6))
    actor.add(f"twist_{take.near}", work * size * (take.between(2, 6) * sine(line) + 2.5 * sine(beat)))
    actor.add(f"elbow_{take.near}", work * size * take.between(1.5, 4.5) * sine(beat + 1.2))
    actor.add(f"wrist_{take.near}", work * size * take.between(3, 10) * sine(beat + 2.0))
    actor.add(f"elbow_{take.far}", work * take.sway(1.5))
    return [actor]


def type_keys(take: Take) -> list[Actor]:
    actor, work = _at_table(
        take, mix(KEYS, PEN, take.between(-1.0, 0.5)), mix(KEYS, PEN, take.between(-1.0, 0.5)), bow=14
    )
    size, rate = take.style.size, take.between(1.3, 2.6)
    two_handed = take.chance(0.75)
    for side, share in ((take.near, 1.0), (take.far, 1.0 if two_handed else 0.2)):
        beat = take.beat(rate, take.between(0, _TAU))
        actor.add(f"elbow_{side}", work * size * share * take.between(1.5, 4.5) * sine(beat))
        actor.add(f"wrist_{side}", work * size * share * take.between(3, 10) * sine(beat + 0.6))
        actor.add(f"twist_{side}", work * size * share * (take.sway(2.5) + 1.5 * sine(beat * 0.5)))
    return [actor]


def _hands_in_front(take: Take, level: float) -> tuple[Actor, np.ndarray]:
    actor = take.stand(seated=0.2)
    work = take.hold(take.between(0.4, 0.8), take.between(0.75, 1.4), 0.6)
    level += take.between(-9, 9)
    for side in "lr":
        actor.arm(side, work, FRONT | {"raise": FRONT["raise"] + level, "elbow": FRONT["elbow"] + level})
    actor.add("nod", work * take.between(0, 14))
    return actor, work


def clap(take: Take) -> list[Actor]:
    actor, work = _hands_in_front(take, 5)
    beat = take.beat(take.between(1.0, 2.2))
    apart = take.style.size * take.between(10, 26) * (1 + sine(beat)) / 2
    still = take.between(0.2, 1) if take.chance(0.4) else 1.0  # some clap with one hand against the other
    actor.add(f"twist_{take.near}", -work * apart)
    actor.add(f"twist_{take.far}", -work * apart * still)
    actor.add(f"elbow_{take.near}", work * take.between(0, 3) * sine(beat + 0.8))
    return [actor]


def rub(take: Take) -> list[Actor]:
    actor, work = _hands_in_front(take, -5)
    beat = take.beat(take.between(1.0, 2.4))
    slide = take.style.size * take.between(4, 11)
    other = take.between(0.3, 1.0)
    for side, share in ((take.near, 1.0), (take.far, -other)):
        actor.add(f"elbow_{side}", work * slide * share * sine(beat))
        actor.add(f"raise_{side}", -0.5 * work * slide * share * sine(beat))
        actor.add(f"twist_{side}", -work * (take.between(0, 5) + take.sway(1.5)))
    return [actor]


def wave(take: Take) -> list[Actor]:
    actor = take.stand(seated=0.2)
    lift = take.hold(take.between(0.4, 0.8), take.between(0.7, 1.3), 0.6)
    actor.arm(take.near, lift, mix(WAVE_LOW, WAVE_HIGH, take.between(-0.4, 1.0)))
    swing = take.style.size * take.between(7, 26) * sine(take.beat(take.between(0.9, 2.0)))
    actor.add(f"twist_{take.near}", lift * swing)
    actor.add(f"out_{take.near}", lift * 0.3 * swing)
    return [actor]


def kick(take: Take) -> list[Actor]:
    actor = take.stand()
    leg = take.near if take.chance(0.8) else take.far
    tempo = take.style.tempo
    start = take.delay + take.between(0.1, 0.35) * take.length
    swing = take.ramp(start, 0.35 / tempo)
    windup, out = swing * (1 - swing) * 4, take.ramp(start + 0.3 / tempo, 0.3 / tempo)
    kicked = out * (1 - take.ramp(start + take.between(0.7, 0.9) / tempo, 0.6))
    size = take.style.size
    actor.add(f"hip_{leg}", size * (-22 * windup + take.between(35, 70) * kicked))
    actor.add(f"knee_{leg}", size * (45 * windup + take.between(-5, 15) * kicked))
    actor.add("bend", size * (4 * windup - take.between(4, 12) * kicked))
    actor.add(f"raise_{'l' if leg == 'r' else 'r'}", size * take.between(5, 30) * kicked)
    carries = np.stack([np.full_like(out, leg == "r"), np.full_like(out, leg == "l")], axis=1)
    lifted = np.maximum(windup, kicked)[:, None]
    actor.support = lifted * carries + (1 - lifted) * actor.support
    return [actor]


def _seat_change(take: Take, down: bool) -> list[Actor]:
    actor = take.stand()
    start = take.delay + take.between(0.05, 0.4) * take.length
    change = take.ramp(start, take.between(0.8, 1.6) / take.style.tempo)
    sitting = change if down else 1 - change
    actor.move(sitting, SEAT)
    for side in "lr":
        actor.arm(side, sitting, mix(HANG, LAP, take.between(0.4, 1.2)))
    actor.add("bend", take.style.size * take.between(20, 40) * 4 * change * (1 - change))
    return [actor]


def sit_down(take: Take) -> list[Actor]:
    return _seat_change(take, down=True)


def stand_up(take: Take) -> list[Actor]:
    return _seat_change(take, down=False)


def _facing(take: Take, gap: float) -> tuple[Actor, Actor]:
    """Two people face each other across `gap` metres, the leading one on either side."""
    one, other = take.stand(), take.stand()
    side = 1.0 if take.chance(0.5) else -1.0
    for actor, sign in ((one, side), (other, -side)):
        actor.add("yaw", -90 * sign + take.between(-12, 12))
        actor.place[:, 0] += sign * gap / 2
    return one, other


def shake_hands(take: Take) -> list[Actor]:
    one, other = _facing(take, take.between(0.85, 1.1))
    lift = take.hold(take.between(0.4, 0.8), take.between(0.65, 1.1), 0.6)
    shake = take.style.size * take.between(2, 9) * sine(take.beat(take.between(0.8, 1.8)))
    take.touch = int(lift.argmax())
    for actor in (one, other):
        reach = lift * take.between(0.8, 1.05)
        actor.arm("r", reach, SHAKE)
        actor.add("elbow_r", lift * shake)
        actor.add("bend", lift * take.between(0, 10))
        if take.chance(0.15):  # a second hand on top
            actor.arm("l", reach * take.between(0.6, 1.0), SHAKE)
    return [one, other]


def push(take: Take) -> list[Actor]:
    one, other = _facing(take, take.between(0.65, 0.95))
    start = take.delay + take.between(0.1, 0.35) * take.length
    tempo = take.style.tempo
    ready = take.ramp(start - 0.4, 0.4)
    thrust = take.ramp(start, take.between(0.25, 0.5) / tempo)
    thrust = thrust * (1 - take.ramp(start + take.between(0.5, 1.2), 0.6))
    hands = "lr" if take.chance(0.6) else take.near
    for side in hands:
        one.arm(side, ready * take.between(0.2, 1.0), READY)
        one.arm(side, thrust, mix(PUSH, SHAKE, take.between(-0.1, 0.6)))
        one.arm(side, take.ramp(start + 1.2, 0.8), HANG)
    one.add("bend", take.between(2, 12) * thrust)
    hit = take.ramp(start + 0.15, 0.3) * (1 - take.ramp(start + take.between(0.7, 1.3), 0.8))
    force = take.style.size * take.between(0.3, 1.2)
    other.add("bend", -10 * force * hit)
    for side in "lr":
        other.add(f"raise_{side}", 16 * force * hit)
    other.place[:, 0] += (1 if other.place[0, 0] > 0 else -1) * 0.18 * force * take.ramp(start + 0.2, 0.5)
    return [one, other]


ACTIONS: dict[int, Callable[[Take], list[Actor]]] = {
    1: drink,
    8: sit_down,
    9: stand_up,
    10: clap,
    12: write,
    23: wave,
    24: kick,
    28: phone,
    30: type_keys,
    34: rub,
    52: push,
    58: shake_hands,
}
