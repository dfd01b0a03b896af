"""What the people of the sample data do: joint-angle trajectories of twelve actions.

Numbers and names are those of NTU RGB+D. Four pairs differ in a detail: drinking and phoning (where the hand
rests), writing and typing (which hands move, and how), clapping and rubbing (how the hands move against each
other), hand-shake and push (what the arms and the other person do). Angles are degrees, times seconds.
"""

from collections.abc import Callable, Mapping

import numpy as np

from model.synthetic_body import TAU, sine
from model.synthetic_take import HANG, LAP, SEAT, Actor, Take

# Poses of one arm, found so that the hand of a body of average size reaches the named place.
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
HIP = {"raise": 24.0, "out": 137.0, "twist": 50.0, "elbow": 80.0, "wrist": 20.0}
WAVE_LOW = {"raise": 77.0, "out": 58.0, "twist": -43.0, "elbow": 102.0, "wrist": 0.0}
WAVE_HIGH = {"raise": 135.0, "out": 70.0, "twist": -49.0, "elbow": 67.0, "wrist": 0.0}


def mix(one: Mapping[str, float], other: Mapping[str, float], share: float) -> dict[str, float]:
    """Return the pose that lies `share` of the way from one arm pose to another."""
    return {dof: one[dof] + share * (other[dof] - one[dof]) for dof in one}


def _to_head(take: Take, place: float, back: float, seated: float) -> tuple[Actor, np.ndarray]:
    """Bring the leading hand to the head: `place` 0 is the mouth, 1 the ear."""
    actor = take.stand(seated)
    if take.chance(0.6):  # the thing is already in the hand
        actor.arm(take.near, 1.0, mix(HANG, CUP, take.between(0.5, 1.1)))
    lift = take.hold(take.between(0.5, 1.0), back, take.between(0.5, 1.0))
    actor.arm(take.near, lift, mix(MOUTH, EAR, place))
    return actor, lift


def drink(take: Take) -> list[Actor]:
    actor, lift = _to_head(take, take.between(-0.15, 0.2), take.between(0.55, 0.95), seated=0.25)
    sip = lift * (0.5 + 0.5 * sine(take.beat(take.between(0.25, 0.6))))
    actor.add("nod", -take.style.size * take.between(6, 18) * sip)
    actor.add(f"raise_{take.near}", take.style.size * take.between(4, 16) * sip)
    return [actor]


def phone(take: Take) -> list[Actor]:
    actor, lift = _to_head(take, take.between(0.7, 1.1), take.between(0.8, 1.5), seated=0.1)
    lean = 1.0 if take.near == "l" else -1.0
    actor.add("tilt", -lean * take.between(4, 14) * lift)
    actor.add("nod", lift * take.sway(4))
    actor.add(f"raise_{take.near}", lift * take.sway(4))
    if take.chance(0.4):
        actor.arm(take.far, lift, HIP)
    return [actor]


def _at_table(
    take: Take, near: Mapping[str, float], far: Mapping[str, float], bow: float, seated: float
) -> tuple[Actor, np.ndarray]:
    actor = take.stand(seated)
    work = take.hold(take.between(0.4, 0.9), take.between(0.85, 1.5), 0.7)
    actor.arm(take.near, work, near)
    actor.arm(take.far, work, far)
    actor.move(work, {"nod": bow + take.between(-7, 7), "bend": 0.4 * bow + take.between(-4, 4)})
    return actor, work


def write(take: Take) -> list[Actor]:
    actor, work = _at_table(take, PEN, mix(KEYS, PAPER, take.between(0.5, 2.5)), bow=32, seated=0.2)
    size, line = take.style.size, take.beat(take.between(0.2, 0.4))
    beat = take.beat(take.between(1.3, 2.6))
    actor.add(f"twist_{take.near}", work * size * (take.between(4, 9) * sine(line) + 3.5 * sine(beat)))
    actor.add(f"elbow_{take.near}", work * size * take.between(2, 5) * sine(beat + 1.2))
    actor.add(f"wrist_{take.near}", work * size * take.between(4, 11) * sine(beat + 2.0))
    actor.add(f"elbow_{take.far}", work * take.sway(1.5))
    return [actor]


def type_keys(take: Take) -> list[Actor]:
    actor, work = _at_table(
        take,
        mix(KEYS, PEN, take.between(-1.0, 0.5)),
        mix(KEYS, PEN, take.between(-1.0, 0.5)),
        bow=10,
        seated=0.5,
    )
    size, rate = take.style.size, take.between(1.3, 2.6)
    two_handed = take.chance(0.85)
    for side, share in ((take.near, 1.0), (take.far, 1.0 if two_handed else 0.3)):
        beat = take.beat(rate, take.between(0, TAU))
        actor.add(f"elbow_{side}", work * size * share * take.between(3, 7) * sine(beat))
        actor.add(f"wrist_{side}", work * size * share * take.between(5, 14) * sine(beat + 0.6))
        actor.add(f"twist_{side}", work * size * share * (take.sway(2.5) + 1.5 * sine(beat * 0.5)))
    return [actor]


def _hands_in_front(take: Take, level: float, bow: float) -> tuple[Actor, np.ndarray]:
    actor = take.stand(seated=0.1)
    work = take.hold(take.between(0.4, 0.8), take.between(0.75, 1.4), 0.6)
    level += take.between(-7, 7)
    for side in "lr":
        actor.arm(side, work, FRONT | {"raise": FRONT["raise"] + level, "elbow": FRONT["elbow"] + level})
    actor.add("nod", work * (bow + take.between(-6, 6)))
    return actor, work


def clap(take: Take) -> list[Actor]:
    actor, work = _hands_in_front(take, 9, bow=0)
    beat = take.beat(take.between(1.0, 2.2))
    apart = take.style.size * take.between(14, 32) * (1 + sine(beat)) / 2
    still = take.between(0.3, 1) if take.chance(0.4) else 1.0  # some clap with one hand against the other
    actor.add(f"twist_{take.near}", -work * apart)
    actor.add(f"twist_{take.far}", -work * apart * still)
    actor.add(f"elbow_{take.near}", work * take.between(0, 3) * sine(beat + 0.8))
    return [actor]


def rub(take: Take) -> list[Actor]:
    actor, work = _hands_in_front(take, -9, bow=14)
    beat = take.beat(take.between(1.0, 2.4))
    slide = take.style.size * take.between(6, 14)
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
    swing = take.style.size * take.between(12, 32) * sine(take.beat(take.between(0.9, 2.0)))
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
    one, other = take.stand(walks_in=0.0), take.stand(walks_in=0.0)
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
    hands = "lr" if take.chance(0.75) else take.near
    for side in hands:
        one.arm(side, ready * take.between(0.2, 1.0), READY)
        one.arm(side, thrust, mix(PUSH, SHAKE, take.between(-0.1, 0.4)))
        one.arm(side, take.ramp(start + 1.2, 0.8), HANG)
    one.add("bend", take.between(2, 12) * thrust)
    hit = take.ramp(start + 0.15, 0.3) * (1 - take.ramp(start + take.between(0.7, 1.3), 0.8))
    force = take.style.size * take.between(0.6, 1.4)
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
