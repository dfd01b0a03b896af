"""Streams: linear maps over joints, time differences, and the three ways of computing them agree."""

import numpy as np
import pytest
import torch

from model.errors import UserError
from model.layouts import LAYOUTS, load_layout
from model.streams import (
    CHANNELS,
    STREAMS,
    apply_stream,
    is_motion,
    motion_matrix,
    motion_of,
    spatial_part,
    stream_matrix,
)

XYZ, SCORED, PLANE = CHANNELS


def joints(name: str, channels: tuple[str, ...] = XYZ, frames: int = 6) -> np.ndarray:
    shape = (2, frames, load_layout(name).num_joints, len(channels))
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_bone_is_joint_minus_parent_and_kbone_minus_grandparent() -> None:
    layout, x = load_layout("nturgb+d"), joints("nturgb+d")
    bone, kbone = (apply_stream(x, layout, stream, XYZ) for stream in ("bone", "kbone"))
    np.testing.assert_array_equal(bone[:, :, 21], x[:, :, 21] - x[:, :, 22])
    np.testing.assert_array_equal(kbone[:, :, 21], x[:, :, 21] - x[:, :, 7])
    assert not bone[:, :, 20].any() and not kbone[:, :, [1, 2, 4, 8, 20]].any()
    np.testing.assert_allclose(kbone[:, :, 3], bone[:, :, 3] + bone[:, :, 2], atol=1e-6)


def test_motion_is_next_minus_this_and_zero_at_the_end() -> None:
    layout, x = load_layout("kinect20"), joints("kinect20")
    moved = apply_stream(x, layout, "joint_motion", XYZ)
    np.testing.assert_array_equal(moved[:, :-1], x[:, 1:] - x[:, :-1])
    assert not moved[:, -1].any()
    assert not apply_stream(x[:, :1], layout, "bone_motion", XYZ).any()


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_matrices_give_the_stream(name: str, stream: str, channels: tuple[str, ...]) -> None:
    layout, x = load_layout(name), joints(name, channels)
    expected = np.einsum("cvu,mtuc->mtvc", stream_matrix(layout, stream, channels), x)
    if is_motion(stream):
        now, following = motion_matrix(layout, channels).T
        moved = np.zeros_like(expected)
        moved[:, :-1] = now * expected[:, :-1] + following * expected[:, 1:]
        expected = moved
    np.testing.assert_allclose(apply_stream(x, layout, stream, channels), expected, atol=1e-6)


@pytest.mark.parametrize("name", LAYOUTS)
def test_coordinates_do_not_depend_on_where_the_body_is(name: str) -> None:
    sums = stream_matrix(load_layout(name), "bone", XYZ).sum(axis=2)
    np.testing.assert_array_equal(sums, 0)


def test_scores_are_averaged_or_differenced_as_released() -> None:
    scored = {name: joints(name, SCORED) for name in ("coco", "coco_new")}
    for name, x in scored.items():
        bone = apply_stream(x, load_layout(name), "bone", SCORED)
        np.testing.assert_allclose(bone[:, :, 1, 2], (x[:, :, 1, 2] + x[:, :, 0, 2]) / 2, atol=1e-6)
    coco, coco_new = scored["coco"], scored["coco_new"]
    root = apply_stream(coco, load_layout("coco"), "bone", SCORED)[:, :, 0]
    np.testing.assert_array_equal(root[..., :2], 0)
    np.testing.assert_array_equal(root[..., 2], coco[:, :, 0, 2])  # the zero vector keeps its score
    kbone = apply_stream(coco_new, load_layout("coco_new"), "kbone", SCORED)
    np.testing.assert_array_equal(kbone[:, :, 1, 2], coco_new[:, :, 1, 2] - coco_new[:, :, 19, 2])
    np.testing.assert_array_equal(motion_matrix(load_layout("coco"), SCORED), [[-1, 1], [-1, 1], [0.5, 0.5]])
    np.testing.assert_array_equal(motion_matrix(load_layout("coco_new"), SCORED), [[-1, 1]] * 3)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(("name", "channels"), [("nturgb+d", XYZ), ("coco", SCORED), ("coco_new", SCORED)])
def test_gathered_frames_give_the_stream_of_the_whole(name: str, stream: str, channels: tuple[str, ...]) -> None:
    layout, x = load_layout(name), joints(name, channels, frames=9)
    frames = np.array([0, 3, 3, 8, 7])
    whole = apply_stream(x, layout, stream, channels)[:, frames]
    now, following = x[:, frames], x[:, np.minimum(frames + 1, 8)]
    last = np.broadcast_to(frames == 8, (2, 5))
    tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in (now, following)]
    for pair, ends in (((now, following), last), (tensors, torch.from_numpy(last.copy()))):
        found, then = (spatial_part(a, layout, stream, channels) for a in pair)
        if is_motion(stream):
            found = motion_of(found, then, layout, channels, ends)
        np.testing.assert_array_equal(np.asarray(found), whole)


@pytest.mark.parametrize("stream", STREAMS)
def test_float16_is_subtracted_in_float16(stream: str) -> None:
    layout, x = load_layout("nturgb+d"), joints("nturgb+d").astype(np.float16)
    found = apply_stream(x, layout, stream, XYZ)
    same = apply_stream(torch.from_numpy(x), layout, stream, XYZ)
    np.testing.assert_array_equal(found.astype(np.float32), same.float().numpy())
    if stream == "bone":
        rounded = (x[:, :, 5] - x[:, :, 4]).astype(np.float32)
        exact = x[:, :, 5].astype(np.float32) - x[:, :, 4].astype(np.float32)
        np.testing.assert_array_equal(found[:, :, 5], rounded)
        assert found.dtype == np.float32 and (rounded != exact).any()


def test_inputs_are_left_alone() -> None:
    layout, x = load_layout("coco"), joints("coco", SCORED)
    before = x.copy()
    for stream in STREAMS:
        apply_stream(x, layout, stream, SCORED)
    motion_of(x, x, layout, SCORED, np.ones(x.shape[:-2], bool))
    np.testing.assert_array_equal(x, before)


def test_unknown_names_are_refused() -> None:
    layout, x = load_layout("coco"), joints("coco")
    with pytest.raises(UserError, match="unknown stream 'velocity'"):
        apply_stream(x, layout, "velocity", XYZ)
    with pytest.raises(UserError, match="channels .* not supported"):
        spatial_part(x, layout, "bone", ("x", "y", "z", "score"))
