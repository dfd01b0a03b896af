"""What clips look like before anyone trains on them: what is missing, jumps, swapped sides, copies.

Axes: N clip, M person, T frame, V joint, C channel.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from model.layouts import Layout

MOMENTS = 8  # frames of the short form in which clips are compared
NEAR = 0.03  # clips nearer than this share of their own spread are copies; distinct takes are several times as far
PROJECTED = 32  # dimensions in which candidates are sought
CHUNK = 256
MOST_PAIRS = 100_000
SWAPPED = 0.5  # sides count as swapped when exchanging them makes a step this much shorter …
STEP = 0.1  # … and the step was at least this share of the body


@dataclass(frozen=True)
class Look:
    """One clip. Sizes are those of the body: the larger side of the box round its joints, a median over frames.

    `unseen` (V,) counts the rows (persons in frames) in which a joint is missing, of `rows`; `jump` is the longest
    step of a joint from one frame to the next, in sizes; `swaps` counts steps that look as if left and right were
    exchanged; `drift` is how far bones change their length, in shares of it (3D only, else NaN); `low` and `high`
    (D,) bound the coordinates; `moves` is false for a picture that stands still.
    """

    persons: int
    rows: int
    empty_frames: int
    unseen: np.ndarray
    size: float
    jump: float
    jump_frame: int
    swaps: int
    drift: float
    low: np.ndarray
    high: np.ndarray
    moves: bool


def look_at(clip: np.ndarray, layout: Layout, channels: Sequence[str]) -> Look:
    """Look at the joints (M, T, V, C) of one clip, with zeros where a joint was not seen."""
    dims = 2 if channels[-1] != "z" else 3
    places = clip[..., :dims].astype(np.float32)
    seen = (places != 0).any(axis=-1)  # (M, T, V)
    if channels[-1] == "score":
        seen &= clip[..., 2] > 0
    present = seen.any(axis=-1)  # (M, T)
    shown = places[seen] if seen.any() else np.zeros((1, dims), np.float32)
    low = np.where(seen[..., None], places, np.inf).min(axis=2)
    high = np.where(seen[..., None], places, -np.inf).max(axis=2)
    sides = (high - low)[present].max(axis=-1) if present.any() else np.ones(1)
    size = float(np.median(sides)) or 1.0
    both = seen[:, 1:] & seen[:, :-1]
    steps = np.linalg.norm(np.diff(places, axis=1), axis=-1)  # (M, T-1, V)
    steps = np.where(both, steps, 0).max(axis=-1)  # (M, T-1) of the joint that moves most
    worst = np.unravel_index(steps.argmax(), steps.shape) if steps.size else None
    return Look(
        persons=int(present.any(axis=1).sum()),
        rows=int(present.sum()),
        empty_frames=int((~present.any(axis=0)).sum()),
        unseen=(~seen & present[..., None]).sum(axis=(0, 1)),
        size=size,
        jump=float(steps[worst]) / size if worst else 0.0,
        jump_frame=int(worst[1]) + 1 if worst else 0,
        swaps=_swaps(places, seen, layout, size),
        drift=_drift(places, seen, layout) if dims == 3 else float("nan"),
        low=shown.min(axis=0),
        high=shown.max(axis=0),
        moves=bool(steps.any()),
    )


def _mean(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Mean over the last axis of the values where `where`; 0 where there are none."""
    count = where.sum(axis=-1)
    return np.where(where, values, 0).sum(axis=-1) / np.maximum(count, 1)


def _swaps(places: np.ndarray, seen: np.ndarray, layout: Layout, size: float) -> int:
    mirror = np.array(layout.mirror)
    sided = np.flatnonzero(mirror != np.arange(len(mirror)))
    if not len(sided) or places.shape[1] < 2:
        return 0
    twins = mirror[sided]
    before, now, other = places[:, :-1, sided], places[:, 1:, sided], places[:, 1:, twins]
    known = seen[:, :-1, sided] & seen[:, 1:, sided] & seen[:, 1:, twins]
    kept = _mean(np.linalg.norm(now - before, axis=-1), known)
    swapped = _mean(np.linalg.norm(other - before, axis=-1), known)
    return int(((swapped < SWAPPED * kept) & (kept > STEP * size)).sum())


def _drift(places: np.ndarray, seen: np.ndarray, layout: Layout) -> float:
    """Median over bones of their lengths' standard deviation over time as a share of the mean; the worst person's."""
    child, parent = np.array(layout.edges).T
    known = seen[:, :, child] & seen[:, :, parent]  # (M, T, E)
    lengths = np.linalg.norm(places[:, :, child] - places[:, :, parent], axis=-1)
    count = known.sum(axis=1)
    mean = np.where(known, lengths, 0).sum(axis=1) / np.maximum(count, 1)
    spread = np.sqrt(np.where(known, (lengths - mean[:, None]) ** 2, 0).sum(axis=1) / np.maximum(count, 1))
    sound = (count > 1) & (mean > 0)
    return max(
        (float(np.median((spread[m] / mean[m])[sound[m]])) for m in range(len(mean)) if sound[m].any()), default=0.0
    )


def exact_copies(clips: Iterator[np.ndarray]) -> list[list[int]]:
    """Groups of two or more positions whose joints are the same bits, in order of the first."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for position, clip in enumerate(clips):
        digest = hashlib.sha256(str(clip.shape).encode())
        digest.update(np.ascontiguousarray(clip).tobytes())
        groups[digest.digest()].append(position)
    return [group for group in groups.values() if len(group) > 1]


def short_form(clip: np.ndarray, dims: int) -> np.ndarray:
    """(MOMENTS * V * dims,) float32: the body that moves most at evenly spread moments, its place and size taken off.

    Copies that were moved, scaled, trimmed by little or stored less exactly stay near each other.
    """
    body = clip[..., :dims].astype(np.float32)
    if len(body) > 1:
        body = body[[np.abs(np.diff(body, axis=1)).sum(axis=(1, 2, 3)).argmax()]]
    body = body[0]
    times = np.linspace(0, len(body) - 1, MOMENTS)
    low = np.floor(times).astype(int)
    share = (times - low)[:, None, None].astype(np.float32)
    short = body[low] * (1 - share) + body[np.minimum(low + 1, len(body) - 1)] * share
    short = short - short.mean(axis=(0, 1))
    spread = float(np.sqrt((short**2).mean()))
    return (short / spread if spread > 0 else short).reshape(-1)


def near_copies(shorts: np.ndarray, near: float = NEAR) -> list[tuple[int, int]]:
    """Pairs (i < j) of rows of (N, D) that are nearer than `near` of their spread; at most MOST_PAIRS.

    Candidates are found in a random projection, which keeps distances well within the factor of 2 that is allowed
    for (Johnson and Lindenstrauss 1984), then measured. Rows are sorted along the direction in which they differ most
    and compared with those that are near along it.
    """
    count, dims = shorts.shape
    limit = near * np.sqrt(dims)
    plane = np.random.default_rng(0).normal(0, PROJECTED**-0.5, (dims, PROJECTED)).astype(np.float32)
    flat = shorts @ plane if dims > PROJECTED else shorts
    # Along the direction in which the rows differ most; a distance along one direction is never the larger one.
    axes = (
        np.linalg.eigh(np.cov(flat.T.astype(np.float64)))[1].astype(np.float32) if count > 1 else np.eye(flat.shape[1])
    )
    along = flat @ axes[:, -1]
    order = np.argsort(along, kind="stable")
    flat, along = flat[order], along[order]
    ends = np.searchsorted(along, along + 2 * limit, side="right")
    squares = (flat**2).sum(axis=1)
    pairs: list[tuple[int, int]] = []
    for start in range(0, count, CHUNK):
        own, others = slice(start, start + CHUNK), slice(start, int(ends[min(start + CHUNK, count) - 1]))
        apart = squares[own, None] + squares[others] - 2 * flat[own] @ flat[others].T
        for i, j in zip(*np.nonzero(apart < 4 * limit**2), strict=True):
            if i >= j:
                continue
            a, b = sorted((int(order[start + i]), int(order[start + j])))
            if np.linalg.norm(shorts[a] - shorts[b]) < limit:
                pairs.append((a, b))
                if len(pairs) == MOST_PAIRS:
                    return sorted(pairs)
    return sorted(pairs)
