"""One performance of the sample data: who moves, in which manner, and the movements actions are put together from.

Angles are degrees, times seconds, distances metres.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from model.synthetic_body import DOF, NUM_DOFS, TAU, sine

FRAMES_PER_SECOND = 15.0

# At ease: an arm hanging, an arm in the lap, the legs of a person on a chair.
HANG = {"raise": 10.0, "out": 105.0, "twist": 10.0, "elbow": 16.0, "wrist": 5.0}
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
        """Rise after the delay, stay, return at the share `back` of the clip (above 1: not at all)."""
        tempo = self.style.tempo
        return self.ramp(self.delay, rise / tempo) * (1 - self.ramp(back * self.length, fall / tempo))

    def beat(self, rate: float, phase: float = 0.0) -> np.ndarray:
        """Return the angle of an oscillation of `rate` per second in the performer's tempo, not quite regular."""
        drift = 0.7 * sine(self.seconds * self.between(0.8, 2.0) + self.between(0, TAU))
        return TAU * rate * self.style.tempo * self.seconds + phase + drift

    def sway(self, size: float) -> np.ndarray:
        """Return slow wandering of about `size` either way."""
        quick = sine(TAU * self.between(0.3, 0.8) * self.seconds + self.between(0, TAU))
        slow = sine(TAU * self.between(0.05, 0.3) * self.seconds + self.between(0, TAU))
        return size * (0.4 * quick + slow)

    def stand(self, seated: float = 0.0, walks_in: float = 0.15) -> Actor:
        """Return a person at ease: on a chair, hands in the lap, with the chance `seated`, else standing.

        With the chance `walks_in` the clip begins with the last step to that place.
        """
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
        elif self.chance(walks_in):
            self.step_in(actor)
        return actor

    def step_in(self, actor: Actor) -> None:
        """Begin a step behind the place, one leg ahead."""
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
