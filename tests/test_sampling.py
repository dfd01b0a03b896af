"""Frame sampling: what every clip must satisfy, and that batches draw from the same distribution."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import sampling
from model.errors import UserError
from model.samplers import class_specific_indices, epoch_indices
from model.sampling import VARIANTS, batch_frames, batch_test_frames, sample_frames

LENGTHS = st.integers(1, 400)
CLIPS = st.integers(1, 64)


def check_clip(frames: np.ndarray, num_frames: int, clip_length: int) -> None:
    assert frames.shape == (clip_length,)
    assert frames.min() >= 0 and frames.max() < num_frames
    steps = np.diff(frames)
    if num_frames < clip_length:
        assert ((steps == 1) | ((frames[:-1] == num_frames - 1) & (frames[1:] == 0))).all()
    elif num_frames < 2 * clip_length:
        assert ((steps == 1) | (steps == 2)).all()
    else:
        border = np.arange(clip_length + 1) * num_frames // clip_length
        assert (frames >= border[:-1]).all() and (frames < border[1:]).all()


@settings(max_examples=150, deadline=None)
@given(LENGTHS, CLIPS, st.sampled_from(VARIANTS), st.booleans(), st.integers(0, 99))
def test_sampled_clips(num_frames: int, clip_length: int, variant: str, test: bool, seed: int) -> None:
    random = np.random.RandomState(seed)
    for clip in sample_frames(num_frames, clip_length, 3, variant, random, test=test):
        check_clip(clip, num_frames, clip_length)


@settings(max_examples=100, deadline=None)
@given(st.lists(LENGTHS, min_size=1, max_size=8), CLIPS, st.integers(0, 99))
def test_batched_clips(lengths: list[int], clip_length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    frames = batch_frames(torch.tensor(lengths), clip_length, generator)
    assert frames.dtype == torch.int64
    for clip, num_frames in zip(frames.numpy(), lengths, strict=True):
        check_clip(clip, num_frames, clip_length)


@pytest.mark.parametrize("num_frames", [1, 3, 7, 8, 11, 15, 16, 17, 37])
@pytest.mark.parametrize("variant", ["mmaction2", "protogcn"])
def test_batches_have_the_distribution_of_single_samples(num_frames: int, variant: str) -> None:
    draws, clip_length = 4000, 8
    random = np.random.RandomState(0)
    single = sample_frames(num_frames, clip_length, draws, variant, random)
    generator = torch.Generator().manual_seed(0)
    batch = batch_frames(torch.full((draws,), num_frames), clip_length, generator).numpy()
    for k in range(clip_length):
        one, other = (np.bincount(f[:, k], minlength=num_frames) / draws for f in (single, batch))
        # Standard deviation of a difference of two shares of 4000 draws: at most 0.011.
        assert np.abs(one - other).max() < 0.05
    gaps = [np.mean(np.diff(f, axis=1) == 2) for f in (single, batch)]
    assert abs(gaps[0] - gaps[1]) < 0.02


def test_batches_follow_their_generator() -> None:
    lengths = torch.tensor([5, 12, 40])
    first, second = (batch_frames(lengths, 8, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, batch_frames(lengths, 8, torch.Generator().manual_seed(8)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_test_clips_depend_on_the_length_only(variant: str) -> None:
    lengths = [70, 5, 130, 70, 250]
    before = np.random.get_state()[1].copy()  # the global generator is not touched
    batch = batch_test_frames(lengths, 64, 10, variant)
    assert (np.random.get_state()[1] == before).all()
    assert batch.shape == (5, 10, 64)
    np.testing.assert_array_equal(batch[0], batch[3])
    for clips, num_frames in zip(batch, lengths, strict=True):
        random = np.random.RandomState(255)
        np.testing.assert_array_equal(clips, sample_frames(num_frames, 64, 10, variant, random, test=True))


def test_short_test_clips_start_where_the_variant_says() -> None:
    starts = {variant: sampling.test_frames(30, 100, 10, variant)[:, 0].tolist() for variant in VARIANTS}
    assert starts["mmaction2"] == starts["pyskl"] == list(range(0, 30, 3))
    assert starts["protogcn"] != starts["pyskl"]
    assert sampling.test_frames(4, 100, 10, "pyskl")[:, 0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]


def test_variants_spend_random_numbers_differently() -> None:
    frames = [sampling.test_frames(150, 100, 2, variant) for variant in VARIANTS]
    assert not np.array_equal(frames[0], frames[1])
    np.testing.assert_array_equal(frames[1], frames[2])


def test_remembered_clips_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        sampling.test_frames(50, 20, 1, "pyskl")[0, 0] = 3


def test_a_window_limits_where_a_clip_comes_from() -> None:
    random = np.random.RandomState(0)
    clips = sample_frames(300, 20, 50, "protogcn", random, window=(0.5, 0.5))
    assert (np.ptp(clips, axis=1) < 150).all() and clips.max() > 200


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="unknown sampler 'pyskel'"):
        sample_frames(10, 5, 1, "pyskel", np.random.RandomState(0))
    with pytest.raises(UserError, match="without frames"):
        sample_frames(0, 5, 1, "pyskl", np.random.RandomState(0))
    with pytest.raises(UserError, match="label 2 has no factor"):
        class_specific_indices([0, 2], [1, 1], seed=0, epoch=0)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(0, 9))
def test_ranks_share_an_epoch(count: int, world: int, epoch: int) -> None:
    shares = [epoch_indices(count, seed=1, epoch=epoch, rank=rank, world=world) for rank in range(world)]
    assert {len(share) for share in shares} == {-(-count // world)}
    assert set(np.concatenate(shares)) == set(range(count))
    single = epoch_indices(count, seed=1, epoch=epoch)
    np.testing.assert_array_equal(np.stack(shares, axis=1).reshape(-1)[:count], single)


def test_class_factors_repeat_and_thin_out() -> None:
    labels = np.repeat([0, 1, 2], 10)
    drawn = class_specific_indices(labels, [1, 2.5, 0.3], seed=0, epoch=0)
    assert np.bincount(labels[drawn]).tolist() == [10, 25, 3]
    again = class_specific_indices(labels, [1, 2.5, 0.3], seed=0, epoch=1)
    assert not np.array_equal(drawn, again)
