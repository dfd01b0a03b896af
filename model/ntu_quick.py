"""Raw NTU text read as arrays of bytes, for files as regular as the published ones; others are `ntu_text`'s.

Separators are found all at once, which tells how many values each line has; the digits of all coordinates are then
added up column by column. A decimal of at most 15 digits is an exact integer over an exact power of ten, whose
quotient in double precision is the nearest double, so the numbers are those of Python's float().
"""

import numpy as np

NUM_JOINTS, BODY_VALUES, JOINT_VALUES = 25, 10, 12
LINES = NUM_JOINTS + 2  # of a body
WIDTH = 14  # bytes looked at of a number: one more than its digits may be
_PLACES = 10.0 ** np.arange(WIDTH - 1, -1, -1)
_POWERS = 10 ** np.arange(WIDTH + 1, dtype=np.int64)


def parse_regular(
    text: bytes, longest_line: int, farthest: float
) -> tuple[np.ndarray, tuple[int, ...], np.ndarray] | None:
    """Bodies per frame (T,) int64, their ids, and their joints (B, 25, 3) float32.

    None for everything that is not single-spaced plain text of just the lines that its counts announce, with
    coordinates of at most `farthest` metres: what is wrong with it, if anything, is for a slower reader to say.
    """
    bytes_ = np.frombuffer(text, np.uint8)
    if not text.endswith(b"\n") or bytes_.max() > 126 or b"_" in text:
        return None
    gaps = np.flatnonzero(bytes_ <= 32)
    kinds = bytes_[gaps]
    ends = np.flatnonzero(kinds == 10)  # of lines, among the gaps
    returns = int((kinds == 13).sum())
    close = int((np.diff(gaps) == 1).sum())
    if (
        gaps[0] == 0
        or returns not in (0, len(ends))
        or close != returns
        or (kinds == 32).sum() + returns + len(ends) != len(kinds)
    ):
        return None
    if returns and not (kinds[ends - 1] == 13).all():
        return None
    starts = np.concatenate([[0], gaps[ends[:-1]] + 1])  # of lines, in the text
    first = np.concatenate([[0], ends[:-1] + 1])  # gap of each line
    values = ends - first + (0 if returns else 1)
    if np.diff(gaps[ends], prepend=-1).max() > longest_line:
        return None
    laid_out = _layout(text, values, starts, gaps[first])
    if laid_out is None:
        return None
    counts, headers = laid_out
    heads = [text[s:e] for s, e in zip(starts[headers].tolist(), gaps[first[headers]].tolist(), strict=True)]
    if not all(head.isdigit() for head in heads):
        return None
    lines = (headers[:, None] + np.arange(2, LINES)).reshape(-1)
    stops = gaps[first[lines, None] + np.arange(3)]
    begins = np.concatenate([starts[lines, None], stops[:, :2] + 1], axis=1)
    numbers = _decimals(text, bytes_, begins.reshape(-1), stops.reshape(-1))
    if numbers is None or not (np.abs(numbers) <= farthest).all():
        return None
    return counts, tuple(map(int, heads)), numbers.astype(np.float32).reshape(-1, NUM_JOINTS, 3)


def _layout(
    text: bytes, values: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Bodies per frame, and the line of each body's ten values, if the lines are just those that are announced."""
    headers = np.flatnonzero(values == BODY_VALUES)
    if not len(headers) or headers[-1] + LINES > len(values):
        return None
    single = values == 1
    single[headers + 1] = False
    announced = np.flatnonzero(single)
    words = [text[s:e] for s, e in zip(starts[announced].tolist(), ends[announced].tolist(), strict=True)]
    if not words or not all(word.isdigit() and len(word) < 9 for word in words):
        return None
    frames, counts = int(words[0]), np.array(words[1:], np.int64)
    before = np.cumsum(counts) - counts
    if (
        len(counts) != frames
        or counts.sum() != len(headers)
        or not np.array_equal(announced[1:], 1 + np.arange(frames) + LINES * before)
    ):
        return None
    expected = np.repeat(announced[1:] + 1, counts) + LINES * (np.arange(len(headers)) - np.repeat(before, counts))
    if len(values) != 1 + frames + LINES * len(headers) or not np.array_equal(headers, expected):
        return None
    joints = values[headers[:, None] + np.arange(2, LINES)]
    counted = all(text[s : s + 3].rstrip() == b"25" for s in starts[headers + 1].tolist())
    return (counts, headers) if counted and (joints == JOINT_VALUES).all() else None


def _decimals(text: bytes, bytes_: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray | None:
    """The numbers in text[begins:ends] as float64, None if one is no number."""
    length = (ends - begins).clip(max=WIDTH)
    padded = np.concatenate([np.full(WIDTH, 48, np.uint8), bytes_])
    # Right-aligned, a row for each place of a number.
    shown = np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(padded, WIDTH)[ends].T)
    places = np.arange(WIDTH, dtype=np.uint8)[:, None]
    minus = bytes_[begins] == 45
    np.copyto(shown, 48, where=places < (WIDTH - length + minus).astype(np.uint8))
    dots = shown == 46
    points = np.add.reduce(dots, axis=0, dtype=np.uint8)
    after = np.add.reduce((WIDTH - 1 - places) * dots, axis=0, dtype=np.uint8).astype(np.int64)
    np.copyto(shown, 48, where=dots)
    shown -= 48
    # What is longer, has an exponent, two points or no digit is left to Python.
    odd = (shown.max(axis=0) > 9) | (length >= WIDTH) | (points > 1) | (length - minus - points < 1)
    digits = (_PLACES @ shown.astype(np.float64)).astype(np.int64)
    after[odd] = 0
    # The point takes a place of its own, so the digits before it stand ten times too high.
    high = digits // _POWERS[after + 1]
    high[points == 0] = 0
    values = (digits - high * (_POWERS[after + 1] - _POWERS[after])) / _POWERS[after].astype(np.float64)
    values = np.where(minus, -values, values)
    for place in np.flatnonzero(odd).tolist():
        try:
            values[place] = float(text[begins[place] : ends[place]])
        except ValueError:
            return None
    return values
