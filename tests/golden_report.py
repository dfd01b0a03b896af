"""Comparisons with recorded numbers that leave a line: case, what was compared, the error found, the tolerance.

`make golden` prints the lines; elsewhere they are only kept.
"""

from typing import Any

import numpy as np
import torch

LINES: list[str] = []


def at_most(case: str, what: str, error: float, tolerance: float) -> None:
    """Assert that an error is within its tolerance."""
    error = float(error)
    LINES.append(f"{case:34} {what:34} error {error:8.1e}   tolerance {tolerance:.0e}")
    assert error <= tolerance, LINES[-1]


def close(
    case: str,
    what: str,
    found: Any,
    wanted: Any,
    *,
    rtol: float = 1e-6,
    atol: float = 1e-6,
    max_bad_frac: float = 0.0,
    bad_atol: float = 0.0,
) -> None:
    """Assert |found - wanted| <= atol + rtol |wanted| everywhere, for arrays of one shape.

    The share `max_bad_frac` may exceed that up to `bad_atol`: where a window has a hard border, a rounding error can
    move it by a pixel.
    """
    found, wanted = _array(found), _array(wanted)
    assert found.shape == wanted.shape, f"{case}: {what} has shape {found.shape}, not {wanted.shape}"
    difference = np.abs(found - wanted)
    largest = float(difference.max(initial=0.0))
    scale = float(np.abs(wanted).max(initial=0.0))
    LINES.append(f"{case:34} {what:34} error {largest:8.1e}   tolerance {atol:.0e} + {rtol:.0e} of up to {scale:.1e}")
    excess = difference - rtol * np.abs(wanted)
    bad = int((excess > atol).sum())
    if bad:
        LINES[-1] += f", {bad} of {excess.size} beyond"
    assert not np.isnan(found).any() and bad <= max_bad_frac * excess.size, LINES[-1]
    assert not bad or largest <= bad_atol, LINES[-1]


def same(case: str, what: str, found: Any, wanted: Any) -> None:
    """Assert that arrays are equal."""
    close(case, what, found, wanted, rtol=0, atol=0)


def refused(case: str, what: str) -> None:
    """Note that a case which the original refuses is refused, which the caller has asserted."""
    LINES.append(f"{case:34} {what:34} refused, as by the original")


def _array(x: Any) -> np.ndarray:
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu().double()
    return np.asarray(x, dtype=np.float64)
