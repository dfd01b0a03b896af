"""Batches equal the plain chain: prepare, augment, take the stream of the whole sequence, sample, format."""

import itertools

import numpy as np
import pytest
import torch
from golden_report import close

from model import sampling
from model.augment import part_drop, rotate, spatial_flip
from model.clips import Clips
from model.errors import UserError
from model.layouts import Layout, load_layout
from model.prepare import coco_to_coco_new, decompress_pose, format_clips, normalise_2d, normalise_3d
from model.store import Clip, Store, open_store, write_store
from model.streams import STREAMS, apply_stream

LENGTH = 16
# (persons, frames): shorter than a clip, up to twice as long, longer; a single frame.
SHAPES = [(1, 5), (2, 16), (1, 23), (2, 50), (3, 40), (1, 1)]
XYZ, XYS, XY = ["x", "y", "z"], ["x", "y", "score"], ["x", "y"]


def packed(folder, layout: Layout, channels: list[str], clips=None, dtype: str = "float32", size=None) -> Store:
    if clips is None:
        random = np.random.RandomState(1)
        clips = [random.randn(m, t, layout.num_joints, len(channels)).astype(np.float32) for m, t in SHAPES]
    write_store(
        folder,
        [Clip(str(i), i % 2, joints, image_size=size) for i, joints in enumerate(clips)],
        layout=layout,
        classes=["a", "b"],
        splits={},
        channels=channels,
        data_hash="",
        source="test",
        dtype=dtype,
    )
    return open_store(folder)


@pytest.mark.parametrize("sampler", ["protogcn", "pyskl", "mmaction2"])
@pytest.mark.parametrize(
    ("layout", "channels"), [("nturgb+d", XYZ), ("coco", XYS), ("coco_new", XYS), ("penn13", XY), ("kinect15", XYZ)]
)
def test_test_clips_equal_the_plain_chain(tmp_path, layout, channels, sampler):
    layout = load_layout(layout)
    store = packed(tmp_path / "s", layout, channels)
    rows = [4, 0, 2, 3, 1, 5]
    for stream, count, difference in itertools.product(STREAMS, (1, 10), ("before", "after")):
        clips = Clips(
            store,
            range(len(store)),
            stream=stream,
            clip_length=LENGTH,
            persons=2,
            num_clips=count,
            sampler=sampler,
            difference=difference,
            training=False,
        )
        expected = []
        for row in rows:
            joints = store.clip(row)
            frames = sampling.test_frames(joints.shape[1], LENGTH, count, sampler).reshape(-1)
            if difference == "before":
                x = apply_stream(joints, layout, stream, channels)[:, frames]
            else:
                x = apply_stream(joints[:, frames], layout, stream, channels)
            expected.append(format_clips(x, count, persons=2))
        batch = clips.batch(rows)
        assert batch.dtype == torch.float32 and batch.is_contiguous()
        assert torch.equal(batch, torch.from_numpy(np.concatenate(expected)).float()), (stream, count, difference)


@pytest.mark.parametrize("stream", STREAMS)
def test_training_clips_equal_the_plain_chain_with_the_same_draws(tmp_path, stream):
    layout = load_layout("nturgb+d")
    store = packed(tmp_path / "s", layout, XYZ)
    steps = [
        {"name": "rotate", "theta": 0.2},
        {"name": "spatial_flip", "p": 0.5},
        {"name": "part_drop", "p": 0.6},
    ]
    clips = Clips(store, [1, 2, 3, 4, 0], stream=stream, clip_length=LENGTH, persons=2, augment=steps, training=True)
    rows = torch.tensor([0, 4, 2, 1, 3, 3])
    batch = clips.batch(rows, torch.Generator().manual_seed(5))

    draws = torch.Generator().manual_seed(5)
    positions = torch.tensor([1, 2, 3, 4, 0])[rows]
    frames = sampling.batch_frames(torch.from_numpy(store.frames)[positions], LENGTH, draws)
    angles = -0.2 + 0.4 * torch.rand(6, 3, generator=draws)
    flips = torch.rand(6, generator=draws)
    drops, limbs = torch.rand(6, generator=draws), torch.randint(4, (6,), generator=draws)
    for i, position in enumerate(positions):
        x = torch.from_numpy(store.clip(position)[:2])[None]
        x = rotate(x, channels=XYZ, draws=angles[i : i + 1])
        x = spatial_flip(x, layout=layout, draws=flips[i : i + 1])
        x = part_drop(x, layout=layout, draws=(drops[i : i + 1], limbs[i : i + 1]), p=0.6)
        x = apply_stream(x, layout, stream, XYZ)[0, :, frames[i]].numpy()
        np.testing.assert_allclose(batch[i], format_clips(x, 1, persons=2)[0], atol=1e-6)
    assert (flips < 0.5).any() and (drops < 0.6).any()


@pytest.mark.parametrize("difference", ["before", "after"])
@pytest.mark.parametrize("stream", STREAMS)
def test_finishing_to_coco_new_follows_augmentation(tmp_path, stream, difference):
    coco, reached = load_layout("coco"), load_layout("coco_new")
    store = packed(tmp_path / "s", coco, XYS, size=(480, 640))
    flip = [{"name": "mirror_flip", "p": 1.0}]
    options = {"stream": stream, "clip_length": LENGTH, "difference": difference, "finish": "coco_new"}
    clips = Clips(store, [3], augment=flip, training=True, persons=2, **options)
    assert (clips.num_joints, clips.num_channels, clips.layout) == (20, 3, reached)
    batch = clips.batch([0], torch.Generator().manual_seed(0))

    frames = sampling.batch_frames(torch.tensor([50]), LENGTH, torch.Generator().manual_seed(0))[0]
    x = store.clip(3).copy()
    x[..., 0] = 640 - x[..., 0]
    x = coco_to_coco_new(x[..., list(coco.mirror), :])
    if difference == "before":
        x = apply_stream(x, reached, stream, XYS)[:, frames]
    else:
        x = apply_stream(x[:, frames], reached, stream, XYS)
    np.testing.assert_allclose(batch[0], x, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("variant", ["mmaction2", "pyskl"])
@pytest.mark.parametrize("channels", [XYS, XY])
def test_normalising_a_batch_equals_normalising_before_packing(tmp_path, channels, variant, dtype):
    layout, size = load_layout("coco"), (480, 640)
    random = np.random.RandomState(1)
    pixels = [random.uniform(0, 400, (m, t, 17, len(channels))).astype(dtype) for m, t in SHAPES]
    for x in pixels:
        x[..., 2:] = random.uniform(0, 1, x[..., 2:].shape) * (random.rand(*x[..., 2:].shape) > 0.3)
        x[0, :, 3] = 0
    before = [normalise_2d(x, size, variant=variant) for x in pixels]
    stored = "float16" if dtype == "float16" and variant == "mmaction2" else "float32"
    raw = packed(tmp_path / "raw", layout, channels, pixels, dtype=dtype, size=size)
    ready = packed(tmp_path / "ready", layout, channels, before, dtype=stored, size=size)
    for stream in ("joint", "bone_motion"):
        options = {"stream": stream, "clip_length": LENGTH, "num_clips": 2, "training": False}
        found = Clips(raw, range(6), normalise_2d=variant, **options).batch(range(6))
        wanted = Clips(ready, range(6), **options).batch(range(6))
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
        assert len(found) == 12 and not found[0, 1:].any()


def test_a_normalised_image_is_mirrored_about_its_middle(tmp_path):
    layout, size = load_layout("coco"), (480, 640)
    x = np.random.RandomState(1).uniform(1, 400, (1, LENGTH, 17, 3)).astype(np.float32)
    store = packed(tmp_path / "s", layout, XYS, [x], size=size)
    options = {"stream": "joint", "clip_length": LENGTH, "training": True}
    flip = [{"name": "mirror_flip", "p": 1.0}]
    rows, draws = [0], torch.Generator().manual_seed(0)
    normal = Clips(store, [0], normalise_2d="mmaction2", augment=flip, **options).batch(rows, draws)
    pixels = Clips(store, [0], augment=flip, **options).batch(rows, draws.manual_seed(0))
    torch.testing.assert_close(normal[..., :2], (pixels[..., :2] - torch.tensor([320, 240])) / torch.tensor([320, 240]))


def test_a_batch_does_not_depend_on_its_company(tmp_path):
    store = packed(tmp_path / "s", load_layout("nturgb+d"), XYZ)
    clips = Clips(store, range(6), stream="bone_motion", clip_length=LENGTH, num_clips=3, training=False)
    together = clips.batch(range(6))
    for row in range(6):
        assert torch.equal(clips.batch([row]), together[3 * row : 3 * row + 3])


def test_training_is_decided_by_the_generator_alone(tmp_path):
    store = packed(tmp_path / "s", load_layout("nturgb+d"), XYZ)
    augment = [{"name": name} for name in ("rotate", "scale", "gaussian_noise", "spatial_flip", "part_drop")]
    clips = Clips(store, range(6), stream="joint", clip_length=LENGTH, augment=augment, training=True)
    batches = [clips.batch(range(6), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(batches[0], batches[1]) and not torch.equal(batches[0], batches[2])


def test_attributes_and_person_slots(tmp_path):
    store = packed(tmp_path / "s", load_layout("penn13"), XY)
    clips = Clips(store, [4, 1], stream="joint", clip_length=LENGTH, training=True)
    assert len(clips) == 2 and clips.ids == ["4", "1"] and clips.labels.tolist() == [0, 1]
    assert (clips.persons, clips.num_joints, clips.num_channels) == (3, 13, 2)
    batch = clips.batch(np.array([1, 0]), torch.Generator())
    assert batch.shape == (2, 3, LENGTH, 13, 2)
    assert not batch[0, 2].any() and batch[0, 1].any() and batch[1, 2].any()
    one = Clips(store, [4], stream="joint", clip_length=LENGTH, training=False, persons=1).batch([0])
    assert one.shape == (1, 1, LENGTH, 13, 2) and one.any()


def test_augmentation_and_several_clips_are_for_their_own_mode(tmp_path):
    store = packed(tmp_path / "s", load_layout("kinect15"), XYZ)
    plain = {"stream": "joint", "clip_length": LENGTH}
    tested = Clips(store, [1], augment=[{"name": "rotate"}], training=False, **plain).batch([0])
    assert torch.equal(tested, Clips(store, [1], training=False, **plain).batch([0]))
    assert len(Clips(store, [1], num_clips=10, training=True, **plain).batch([0], torch.Generator())) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stream": "bones"}, "unknown stream 'bones'"),
        ({"sampler": "random"}, "sampler.*'random'"),
        ({"difference": "never"}, "difference.*'never'"),
        ({"finish": "coco"}, "finish.*'coco'"),
        ({"finish": "coco_new"}, "needs 17 joints.*has 15"),
        ({"augment": [{"name": "shake"}]}, "'shake'"),
        ({"clip_length": 0}, "clip_length: 0"),
        ({"persons": 0}, "persons: 0"),
        ({"positions": []}, "no clips"),
        ({"positions": [6]}, "position 6.*6 clips"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, message):
    store = packed(tmp_path / "s", load_layout("kinect15"), XYZ)
    given = {"positions": [0], "stream": "joint", "clip_length": LENGTH, "training": True, **options}
    with pytest.raises(UserError, match=message):
        Clips(store, given.pop("positions"), **given)


def joined(sample: dict) -> np.ndarray:
    return np.concatenate([sample["keypoint"].numpy(), sample["keypoint_score"].numpy()[..., None]], axis=-1)


def turned(sample: dict, joints: np.ndarray) -> np.ndarray:
    return normalise_3d(joints, load_layout("nturgb+d"), align_spine=True, align_shoulder=True)


# Released test chains: case -> joints of the sample, preparation, layout, channels, options.
CHAINS = {
    "pipeline_ntu_b_mid": (
        lambda sample: sample["keypoint"].numpy(),
        lambda sample, joints: normalise_3d(joints, load_layout("nturgb+d")),
        ("nturgb+d", XYZ),
        {"stream": "bone", "sampler": "protogcn"},
    ),
    "pipeline_gym_k": (
        joined,
        lambda sample, joints: joints,
        ("coco", XYS),
        {"stream": "kbone", "sampler": "pyskl", "difference": "after", "finish": "coco_new"},
    ),
    "pipeline_k400_j": (
        lambda sample: sample["keypoint"].numpy(),
        lambda sample, joints: decompress_pose(joints, sample["frame_inds"].numpy(), sample["total_frames"]),
        ("coco", XYS),
        {"stream": "joint", "sampler": "pyskl", "difference": "after", "finish": "coco_new"},
    ),
    "pipeline_mma_ntu3d_j": (
        lambda sample: sample["keypoint"].numpy(),
        turned,
        ("nturgb+d", XYZ),
        {"stream": "joint", "sampler": "mmaction2"},
    ),
    "pipeline_mma_coco_b": (
        joined,
        lambda sample, joints: normalise_2d(joints, sample["img_shape"]),
        ("coco", XYS),
        {"stream": "bone", "sampler": "mmaction2"},
    ),
}


def through_a_store(folder, case: str, sample: dict[str, torch.Tensor], stored: str) -> tuple[torch.Tensor, float]:
    """Ten test clips of a released chain, and the tolerance: none, unless the store rounds what was turned."""
    joints, prepare, (layout, channels), options = CHAINS[case]
    prepared = prepare(sample, joints(sample).astype(stored))
    turned = prepared.dtype == np.float64
    store = packed(folder, load_layout(layout), channels, [prepared], "float32" if turned else stored)
    clips = Clips(store, [0], clip_length=100, persons=2, num_clips=10, training=False, **options)
    return clips.batch([0]), 5e-7 if turned else 0


@pytest.mark.parametrize(("stored", "output"), [("float16", "output"), ("float32", "output_from_float32_sample")])
@pytest.mark.parametrize("case", CHAINS)
def test_released_chains_through_a_store(tmp_path, golden_dir, case, stored, output):
    golden = torch.load(golden_dir / "models" / f"{case}.pt", weights_only=True)
    batch, tolerance = through_a_store(tmp_path / "s", case, golden["sample"], stored)
    close(case, f"through a {stored} store", batch, golden[output], rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", ["pipeline_ntu_b_mid", "pipeline_gym_k"])
def test_released_chains_of_the_committed_cases(tmp_path, small_golden, case):
    with np.load(small_golden / f"clips_{case}.npz") as golden:
        sample = {key: torch.from_numpy(golden[key]) for key in ("keypoint", "keypoint_score") if key in golden}
        batch, _ = through_a_store(tmp_path / "s", case, sample, "float16")
        kept = golden["clips"]
        assert np.array_equal(batch[kept].numpy(), golden["output"].astype(np.float32))


def test_mirrored_clips_bring_their_label(tmp_path):
    store = packed(tmp_path / "s", load_layout("coco"), XYS, size=(240, 320))
    steps = [{"name": "mirror_flip", "p": 0.5, "label_map": {0: 1}}]
    options = {"stream": "joint_motion", "clip_length": LENGTH, "training": True}
    plain, mirroring = Clips(store, range(6), **options), Clips(store, range(6), augment=steps, **options)
    rows = torch.tensor([5, 4, 3, 2, 1, 0] * 4)
    labels = mirroring.labels[rows]
    moved = mirroring.batch(rows, torch.Generator().manual_seed(2), labels)
    still = plain.batch(rows, torch.Generator().manual_seed(2))
    mirrored = ~torch.isclose(moved, still).flatten(1).all(1) & (rows != 5)  # one frame has no motion to mirror
    expected = torch.where(mirrored & (rows % 2 == 0), 1, rows % 2)
    assert torch.equal(labels, expected) and 0 < mirrored.sum() < 20
    assert torch.equal(mirroring.labels, torch.tensor([0, 1, 0, 1, 0, 1]))
