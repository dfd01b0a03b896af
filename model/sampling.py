"""Which frames a clip consists of: uniform sampling in the three variants of the released systems.

With T frames and a clip of L: T < L takes L consecutive frames from a start, wrapping round; L <= T < 2L takes L
frames with T - L random gaps of one frame; T >= 2L takes one random frame of each of L equal segments
(PoseC3D, arXiv 2104.13586, section 3.3, with the borders of the released code).

The variants spend the random numbers differently, so the same seed gives other frames, and differ in where a
short test clip starts:
    mmaction2   no further draws; test clip i starts at i*T//num_clips (at i when T < num_clips)
    pyskl       first draws a window (`window`) per clip; starts as mmaction2
    protogcn    as pyskl, but the start is random in tests too, and wrapping stays inside the window
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from model.errors import UserError

if TYPE_CHECKING:
    import torch

VARIANTS = ("mmaction2", "pyskl", "protogcn")
TEST_SEED = 255


def sample_frames(
    num_frames: int,
    clip_length: int,
    num_clips: int,
    variant: str,
    random: Any,
    *,
    test: bool = False,
    window: tuple[float, float] = (1.0, 1.0),
) -> np.ndarray:
    """Frame indices of one sample, drawing exactly as the variant's original does.

    random: numpy.random.RandomState, or anything with its `rand`, `randint` and `choice`. window: smallest and
    largest share of the frames that a clip is taken from (pyskl, protogcn). Returns (num_clips, clip_length) int64.
    """
    if variant not in VARIANTS:
        raise UserError(f"unknown sampler '{variant}'; samplers: {', '.join(VARIANTS)}")
    if num_frames < 1:
        raise UserError("cannot sample frames of a clip without frames; remove the clip")
    clips = []
    for i in range(num_clips):
        first, kept = 0, num_frames
        if variant != "mmaction2":
            low, high = window
            kept = int((random.rand() * (high - low) + low) * num_frames)
            first = int(random.randint(num_frames - kept + 1))
        if kept >= clip_length:
            frames = _spread(kept, clip_length, random)
        elif test and variant != "protogcn":
            frames = np.arange(clip_length) + (i if kept < num_clips else i * kept // num_clips)
        else:
            frames = np.arange(clip_length) + random.randint(kept)
        clips.append(frames % kept + first if variant == "protogcn" else (frames + first) % num_frames)
    return np.stack(clips).astype(np.int64)


def _spread(num_frames: int, clip_length: int, random: Any) -> np.ndarray:
    if num_frames < 2 * clip_length:
        gaps = np.zeros(clip_length + 1, dtype=np.int64)
        gaps[random.choice(clip_length + 1, num_frames - clip_length, replace=False)] = 1
        return np.arange(clip_length) + gaps.cumsum()[:-1]
    borders = np.arange(clip_length + 1) * num_frames // clip_length
    return borders[:-1] + random.randint(np.diff(borders))


@lru_cache(maxsize=4096)
def test_frames(num_frames: int, clip_length: int, num_clips: int, variant: str, seed: int = TEST_SEED) -> np.ndarray:
    """Frames of the test clips of a sample: (num_clips, clip_length) int64, read only.

    The originals reseed before every sample, so the frames depend on nothing but the sample's length.
    """
    random = np.random.RandomState(seed)
    frames = sample_frames(num_frames, clip_length, num_clips, variant, random, test=True)
    frames.flags.writeable = False
    return frames


def batch_test_frames(
    lengths: Sequence[int] | np.ndarray, clip_length: int, num_clips: int, variant: str, seed: int = TEST_SEED
) -> np.ndarray:
    """`test_frames` of several samples: (B, num_clips, clip_length) int64."""
    different, where = np.unique(np.asarray(lengths), return_inverse=True)
    return np.stack([test_frames(int(t), clip_length, num_clips, variant, seed) for t in different])[where]


def batch_frames(
    lengths: "torch.Tensor", clip_length: int, generator: "torch.Generator | None" = None
) -> "torch.Tensor":
    """Random training clips for a batch, with the distribution of `sample_frames`, which all variants share.

    lengths: (B,) int64, frames of each sample. Returns (B, clip_length) int64, on the device of `lengths`; the
    numbers are drawn on the generator's device.
    """
    import torch

    where = generator.device if generator is not None else lengths.device
    # Double precision: floor(u * n) must reach every frame of a long sample equally.
    shape = (len(lengths), clip_length + 1)
    u = torch.rand(shape, generator=generator, dtype=torch.float64, device=where).to(lengths.device)
    frames = lengths[:, None]
    step = torch.arange(clip_length, device=lengths.device)

    wrapped = ((u[:, :1] * frames).long() + step) % frames
    start, stop = step * frames // clip_length, (step + 1) * frames // clip_length
    segments = start + (u[:, :-1] * (stop - start)).long()
    found = torch.where(frames < clip_length, wrapped, segments)
    between = ((lengths >= clip_length) & (lengths < 2 * clip_length)).nonzero()[:, 0]
    # The T - L smallest of L + 1 random keys are T - L positions drawn without replacement.
    order = u[between].argsort(dim=1)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(clip_length + 1, device=u.device).expand_as(order))
    found[between] = step + (rank < frames[between] - clip_length).long().cumsum(dim=1)[:, :-1]
    return found
