"""Preparation of single samples."""

import numpy as np
import pytest
import torch

from model.errors import UserError
from model.layouts import load_layout
from model.prepare import (
    coco_to_coco_new,
    decompress_pose,
    filter_kinetics,
    format_clips,
    keep_main_person,
    normalise_2d,
    normalise_3d,
    pad_frames,
    rotation_between,
)

NTU = load_layout("nturgb+d")


def sample(persons: int = 2, frames: int = 6) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(persons, frames, 25, 3)).astype(np.float32) + 3


def test_centring_moves_the_first_origin_to_zero() -> None:
    x = sample()
    x[0, 3, 7] = 0
    centred = normalise_3d(x, NTU)
    np.testing.assert_array_equal(centred[0, 0, 1], 0)
    np.testing.assert_array_equal(centred[1], x[1] - x[0, 0, 1])
    np.testing.assert_array_equal(centred[0, 3, 7], 0)
    assert centred.dtype == np.float32


def test_aligned_sample_stands_up_and_faces_front() -> None:
    x = normalise_3d(sample(), NTU, align_spine=True, align_shoulder=True)
    shoulders = x[0, 0, 8] - x[0, 0, 4]
    np.testing.assert_allclose(shoulders / np.linalg.norm(shoulders), [1, 0, 0], atol=1e-6)
    upright = normalise_3d(sample(), NTU, align_spine=True)
    spine = upright[0, 0, 1] - upright[0, 0, 0]
    np.testing.assert_allclose(spine / np.linalg.norm(spine), [0, 0, 1], atol=1e-6)


def test_main_person_comes_first_and_decides_the_frames() -> None:
    x = sample(frames=5)
    x[0, :2] = 0
    np.testing.assert_array_equal(keep_main_person(x), x[::-1])
    x[1, 4:] = 0  # now both have frames missing; person 1 still has more
    np.testing.assert_array_equal(keep_main_person(x), x[::-1, :4])
    x[1, 3:] = 0  # three each: the first stays first
    np.testing.assert_array_equal(keep_main_person(x), x[:, 2:])


def test_more_than_two_persons() -> None:
    x = sample(persons=4)
    x[[0, 1, 3], 0] = 0
    np.testing.assert_array_equal(keep_main_person(x), x[[2, 1, 0, 3]])


def test_empty_sample_comes_back_unchanged() -> None:
    x = np.zeros((2, 4, 25, 3), np.float16)
    assert normalise_3d(x, NTU, align_spine=True) is x


@pytest.mark.parametrize("vector", [(0.0, 0, 2), (0.0, 0, -2), (0.0, 0, 0)])
def test_parallel_and_opposite_vectors_are_not_turned(vector: tuple[float, ...]) -> None:
    np.testing.assert_array_equal(rotation_between(np.array(vector), np.array([0, 0, 1.0])), np.eye(3))


def test_rotation_between_is_a_rotation() -> None:
    rotation = rotation_between(np.array([0.3, -2.0, 0.7]), np.array([0, 0, 1.0]))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)


def test_pixels_to_unit_square() -> None:
    corners = np.array([[0, 0], [640, 480], [320, 240]], np.float32).reshape(1, 1, 3, 2)
    expected = [[-1, -1], [1, 1], [0, 0]]
    np.testing.assert_allclose(normalise_2d(corners, (480, 640))[0, 0], expected)
    scored = np.concatenate([corners, [[[[0.0], [0.9], [0.8]]]]], axis=-1)
    pyskl = normalise_2d(scored, (480, 640), variant="pyskl")
    np.testing.assert_allclose(pyskl[0, 0], [[0, 0, 0], [1, 1, 0.9], [0, 0, 0.8]])
    box = normalise_2d(scored, (480, 640), variant="pyskl", mode="auto")
    np.testing.assert_allclose(box[0, 0, :, :2], [[0, 0], [1, 1], [-1, -1]])
    assert scored[0, 0, 1, 0] == 640  # the input is left alone
    with pytest.raises(UserError, match="variant 'mm'"):
        normalise_2d(corners, variant="mm")
    with pytest.raises(UserError, match="mode 'auto'"):
        normalise_2d(corners, mode="auto")


def test_coco_new_adds_three_middles() -> None:
    x = np.random.default_rng(0).random((2, 3, 17, 3)).astype(np.float32)
    wide = coco_to_coco_new(x)
    assert wide.shape == (2, 3, 20, 3)
    np.testing.assert_array_equal(wide[..., :17, :], x)
    np.testing.assert_allclose(wide[..., 18, :], x[..., [5, 6, 11, 12], :].mean(axis=-2), atol=1e-6)
    np.testing.assert_array_equal(coco_to_coco_new(torch.from_numpy(x)).numpy(), wide)


def bodies() -> tuple[np.ndarray, np.ndarray]:
    keypoints = np.arange(5 * 17 * 3, dtype=np.float16).reshape(5, 17, 3)
    return keypoints, np.array([1, 4, 4, 4, 6])


def test_bodies_are_unpacked_into_slots() -> None:
    keypoints, frames = bodies()
    packed = decompress_pose(keypoints, frames, 8)
    assert packed.shape == (3, 3, 17, 3)
    np.testing.assert_array_equal(packed[:, 1], keypoints[1:4])
    assert not packed[1:, 0].any()
    loose = decompress_pose(keypoints, frames, 8, squeeze=False)
    assert loose.shape == (3, 8, 17, 3)
    np.testing.assert_array_equal(loose[:, [1, 4, 6]], packed)


def test_crowds_keep_the_surest_bodies() -> None:
    keypoints, frames = bodies()
    packed = decompress_pose(keypoints, frames, 8, max_persons=2)
    np.testing.assert_array_equal(packed[:, 1], keypoints[[3, 2]])


def test_unpacking_mistakes_are_named() -> None:
    keypoints, frames = bodies()
    with pytest.raises(UserError, match="clip7: frame_inds must not decrease"):
        decompress_pose(keypoints, frames[::-1], 8, where="clip7")
    with pytest.raises(UserError, match="clip7: no detected body"):
        decompress_pose(keypoints, frames, 8, keep=np.zeros(5, bool), where="clip7")


def test_box_filter() -> None:
    valid = [{0.5: 10, 0.9: 1}, {0.5: 10, 0.9: 5}]
    assert filter_kinetics(valid, [10, 10], valid_ratio=0.4, box_threshold=0.9).tolist() == [1]
    assert filter_kinetics(valid, [10, 10], valid_ratio=0.0, box_threshold=0.5).tolist() == [0, 1]
    with pytest.raises(UserError, match="box threshold 0.55"):
        filter_kinetics(valid, [10, 10], valid_ratio=0.4, box_threshold=0.55)


def test_padding_and_formatting() -> None:
    x = sample(persons=1, frames=6)
    np.testing.assert_array_equal(pad_frames(x, 8, loop=True)[:, 6:], x[:, :2])
    assert not pad_frames(x, 8)[:, 6:].any()
    clips = format_clips(x, 3)
    assert clips.shape == (3, 2, 2, 25, 3)
    np.testing.assert_array_equal(clips[1, 0], x[0, 2:4])
    assert not clips[:, 1].any()
    np.testing.assert_array_equal(format_clips(x, 3, loop=True)[:, 1], clips[:, 0])
    np.testing.assert_array_equal(format_clips(sample(persons=3), persons=1)[0], sample(persons=3)[:1])
    with pytest.raises(UserError, match="do not divide"):
        format_clips(x, 4)
    with pytest.raises(UserError, match="cannot be padded to 5"):
        pad_frames(x, 5)
