"""Raw NTU text read line by line, every value of every line by its name: what `model.ntu_text` must equal."""

import io
from typing import Any

import numpy as np

from model.ntu_text import RawClip

BODY = (
    "body", "clipped", "left_confidence", "left_state", "right_confidence", "right_state", "restricted", "lean_x",
    "lean_y", "tracking",
)  # fmt: skip
JOINT = (
    "x", "y", "z", "depth_x", "depth_y", "colour_x", "colour_y", "turn_w", "turn_x", "turn_y", "turn_z", "tracking",
)  # fmt: skip


def plain_read(text: bytes, name: str) -> RawClip:
    """The clip in the text of a `.skeleton` file."""
    stream = io.StringIO(text.decode("ascii"))
    frames: list[list[dict[str, Any]]] = []
    for _ in range(int(stream.readline())):
        bodies = []
        for _ in range(int(stream.readline())):
            body: dict[str, Any] = dict(zip(BODY, stream.readline().split(), strict=True))
            body["joints"] = []
            for _ in range(int(stream.readline())):
                body["joints"].append({k: float(v) for k, v in zip(JOINT, stream.readline().split(), strict=True)})
            bodies.append(body)
        frames.append(bodies)
    everyone = [body for bodies in frames for body in bodies]
    joints = np.zeros((len(everyone), 25, 3), np.float32)
    for b, body in enumerate(everyone):
        for v, joint in enumerate(body["joints"]):
            joints[b, v] = [joint["x"], joint["y"], joint["z"]]
    counts = np.array([len(bodies) for bodies in frames], np.int64)
    return RawClip(name, counts, tuple(int(body["body"]) for body in everyone), joints)
