"""Heat maps of batches: equal to drawing single windows, whatever the batch, chunk, layout or number of persons."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.plain.heatmaps import plain_keypoint_maps, plain_limb_maps
from model import geometry2d, heatmaps
from model.clips import Clips
from model.errors import UserError
from model.heatmap_clips import HeatmapClips
from model.heatmaps import keypoint_maps, limb_maps, mirrored
from model.layouts import Layout, load_layout
from model.store import Clip, Store, open_store, write_store

SIZES = [(16, 16), (24, 40), (64, 48)]


def scattered(layout: Layout, size: tuple[int, int], persons: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Joints inside and outside of the image, some limbs shorter than a pixel, some scores too low to count."""
    random = np.random.default_rng(seed)
    x = random.uniform(-0.2, 1.2, (3, persons, 4, layout.num_joints, 2)) * [size[1], size[0]]
    start, end = layout.limbs[0]
    x[:, :, :2, end] = x[:, :, :2, start] + 0.5
    x[:, :, 0] = x[:, :, 0].round()
    score = random.uniform(0, 1, x.shape[:-1]) * (random.random(x.shape[:-1]) > 0.2)
    return torch.from_numpy(x).float(), torch.from_numpy(score).float()


@pytest.mark.parametrize("chunk", [1 << 17, 50])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "persons"), [("coco", 1), ("penn13", 3), ("openpose", 2)])
def test_batches_equal_single_windows(
    monkeypatch: pytest.MonkeyPatch, name: str, persons: int, size: tuple[int, int], chunk: int
) -> None:
    monkeypatch.setitem(heatmaps.CHUNK, "cpu", chunk)
    layout = load_layout(name)
    x, score = scattered(layout, size, persons)
    for sigma, threshold in ((0.6, 1e-4), (1.3, 0.3)):
        common = (size, sigma, threshold)
        points = keypoint_maps(x, score, size, sigma=sigma, threshold=threshold)
        limbs = limb_maps(x, score, layout.limbs, size, sigma=sigma, threshold=threshold)
        for n in range(len(x)):
            one, weight = x[n].numpy(), score[n].numpy()
            wanted = plain_keypoint_maps(one, weight, *common), plain_limb_maps(one, weight, layout.limbs, *common)
            np.testing.assert_allclose(points[n], wanted[0], atol=1e-6)
            np.testing.assert_allclose(limbs[n], wanted[1], atol=5e-6)
            assert (wanted[0].max() > 0.5) and (wanted[1].max() > 0.5)


def test_a_short_limb_is_its_start_with_the_starts_score() -> None:
    x = torch.tensor([[8.0, 8.0], [8.5, 8.5]]).view(1, 1, 1, 2, 2)
    score = torch.tensor([0.9, 0.4]).view(1, 1, 1, 2)
    limb = limb_maps(x, score, [(0, 1)], (16, 16))
    assert torch.equal(limb, keypoint_maps(x, score, (16, 16))[:, :1])
    assert limb.max() == pytest.approx(0.9)
    assert not limb_maps(x, torch.tensor([0.9, 0.0]).view(1, 1, 1, 2), [(0, 1)], (16, 16)).any()


def test_mirrored_maps_are_those_of_the_mirrored_body() -> None:
    layout = load_layout("coco")
    x, score = scattered(layout, (32, 32), 1)
    x = (x * 4).round() / 4
    across = torch.cat([31 - x[..., :1], x[..., 1:]], dim=-1)[..., list(layout.mirror), :]
    weight = score[..., list(layout.mirror)]
    for maps, again, mirror in (
        (keypoint_maps(x, score, (32, 32)), keypoint_maps(across, weight, (32, 32)), layout.mirror),
        (
            limb_maps(x, score, layout.limbs, (32, 32)),
            limb_maps(across, weight, layout.limbs, (32, 32)),
            layout.mirror_limbs,
        ),
    ):
        assert torch.equal(mirrored(mirrored(maps, mirror), mirror), maps)
        # Windows are cut towards zero, so the two differ in what lies 3 sigma out, exp(-4.5) and less.
        torch.testing.assert_close(mirrored(maps, mirror), again, atol=0.0112, rtol=0)


def planar_store(folder: Path, *, scored: bool = True, **changes: Any) -> Store:
    """Six clips of one or two COCO bodies in 240 x 320 pixels; the second misses its left wrist."""
    random = np.random.default_rng(3)
    clips = []
    for number in range(6):
        pose = random.uniform(60, 200, (1 + number % 2, 1, 17, 2))
        joints = (pose + random.normal(0, 3, (len(pose), 12 + 9 * number, 17, 2))).astype(np.float32)
        score = random.uniform(0.2, 1, joints.shape[:-1]).astype(np.float32)
        if number == 1:
            joints[:, :, 9], score[:, :, 9] = 0, 0
        joints = np.concatenate([joints, score[..., None]], axis=-1) if scored else joints
        clips.append(Clip(f"c{number}", number % 3, joints, {}, changes.get("image_size", (240.0, 320.0))))
    write_store(
        folder,
        clips,
        layout=load_layout("coco"),
        classes=["a", "b", "c"],
        splits={"all": [clip.id for clip in clips]},
        channels=changes.get("channels", ["x", "y", "score"] if scored else ["x", "y"]),
        data_hash="0" * 32,
        source="made for tests",
    )
    return open_store(folder)


@pytest.fixture()
def store(tmp_path: Path) -> Store:
    return planar_store(tmp_path / "store")


def feed(store: Store, stream: str = "keypoint", *, training: bool = False, persons: Any = None, **options: Any) -> Any:
    joints = Clips(
        store,
        range(len(store)),
        stream="joint",
        clip_length=8,
        num_clips=2,
        persons=persons,
        sampler="mmaction2",
        training=training,
    )
    return HeatmapClips(joints, stream, **({"resize": 18, "train_size": 16, "test_size": 20} | options))


@pytest.mark.parametrize(("stream", "channels"), [("keypoint", 17), ("limb", 17)])
def test_shapes_and_equality_of_batch_and_single_clips(store: Store, stream: str, channels: int) -> None:
    clips = feed(store, stream)
    assert (clips.num_clips, clips.num_channels, clips.num_joints, len(clips)) == (4, channels, 17, 6)
    batch = clips.batch(torch.arange(6))
    assert batch.shape == (24, channels, 8, 20, 20) and batch.dtype == torch.float32
    single = torch.cat([clips.batch([row]) for row in range(6)])
    torch.testing.assert_close(batch, single, rtol=0, atol=1e-6)
    assert 0.2 < float(batch.amax((1, 2, 3, 4)).min()) and float(batch.max()) <= 1


@pytest.mark.parametrize("stream", ["keypoint", "limb"])
def test_the_mirrored_clips_follow_each_samples_own(store: Store, stream: str) -> None:
    clips, plain = feed(store, stream), feed(store, stream, double=False)
    both = clips.batch([4, 1]).unflatten(0, (2, 2, 2))
    once = plain.batch([4, 1]).unflatten(0, (2, 2))
    mirror = clips.layout.mirror_limbs if stream == "limb" else clips.layout.mirror
    assert torch.equal(both[:, 0], once)
    assert torch.equal(both[:, 1], once.flip(-1)[:, :, list(mirror)])


def test_training_follows_from_the_generator(store: Store) -> None:
    clips = feed(store, training=True)
    assert clips.num_clips == 1
    batches = [clips.batch([0, 3, 5], torch.Generator().manual_seed(seed)) for seed in (7, 7, 8)]
    assert batches[0].shape == (3, 17, 8, 16, 16)
    assert torch.equal(batches[0], batches[1]) and not torch.equal(batches[0], batches[2])


def test_half_of_the_training_clips_are_mirrored(store: Store) -> None:
    fixed: dict[str, Any] = {"area": (1.0, 1.0)}
    rows = torch.zeros(64, dtype=torch.int64)
    never, always = (feed(store, training=True, flip=flip, **fixed) for flip in (0.0, 1.0))
    half = feed(store, training=True, **fixed)
    maps = [clips.batch(rows, torch.Generator().manual_seed(0)) for clips in (never, always, half)]
    same, other = ((maps[2] == maps[side]).flatten(1).all(1) for side in (0, 1))
    assert torch.equal(same, ~other) and 16 < int(same.sum()) < 48


def test_a_missing_joint_is_not_drawn_and_a_score_may_be_left_aside(store: Store, tmp_path: Path) -> None:
    row = [1]
    assert not feed(store).batch(row)[:2, 9].any()
    by_position = feed(store, use_score=False).batch(row)
    assert not by_position[:2, 9].any()
    unscored = feed(planar_store(tmp_path / "unscored", scored=False)).batch(row)
    assert torch.equal(by_position, unscored)
    assert float(by_position.max()) > float(feed(store).batch(row).max())


def test_absent_persons_draw_nothing(store: Store) -> None:
    assert torch.equal(feed(store, persons=1).batch([0, 2, 4]), feed(store).batch([0, 2, 4]))
    assert not torch.equal(feed(store, persons=1).batch([3]), feed(store).batch([3]))


def test_a_square_box_needs_no_crop_and_an_image_does(store: Store, tmp_path: Path) -> None:
    assert torch.equal(feed(store).batch(range(6)), feed(store, test_crop=False).batch(range(6)))
    # Joints within 10 pixels have no box: the image of 240 x 320 itself is cut, or squeezed.
    x = np.full((1, 8, 17, 2), 40.0, np.float32) + np.random.default_rng(0).uniform(0, 5, (17, 2)).astype(np.float32)
    layout, channels = load_layout("coco"), ["x", "y"]
    clip = Clip("c", 0, x, {}, (240.0, 320.0))
    about = {"layout": layout, "channels": channels, "classes": ["a"], "splits": {}, "data_hash": "", "source": "here"}
    write_store(tmp_path / "narrow", [clip], **about)
    for crop, column in ((True, 40 / 12 - 3), (False, 40 / 16)):
        maps = feed(open_store(tmp_path / "narrow"), test_crop=crop).batch([0])
        assert int(maps[0].sum((0, 1, 2)).argmax()) == pytest.approx(column, abs=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": ["x", "y", "z"]}, "heat maps \\('keypoint'\\) are drawn from 2D key points in pixels only"),
        ({"image_size": None}, "has no image sizes, which heat maps need"),
    ],
)
def test_stores_that_hold_no_pixels_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        feed(planar_store(tmp_path / "store", **changes))


def test_unknown_maps_are_refused(store: Store) -> None:
    with pytest.raises(UserError, match="unknown heat maps 'joint'; there are keypoint, limb"):
        feed(store, "joint")


def test_random_crops_lie_inside_and_keep_the_area() -> None:
    size = torch.tensor([[64, 64], [64, 90], [200, 64]]).repeat(300, 1)
    x = torch.zeros(len(size), 1, 1, 1, 2)
    moved, new = geometry2d.random_crop(x, size, generator=torch.Generator().manual_seed(0))
    corner = -moved.view(-1, 2).flip(-1).long()
    assert (corner >= 0).all() and (corner + new <= size).all()
    square = (new[:, 0] == new[:, 1]) & (new[:, 0] == size.amin(1))
    share, aspect = new.prod(1) / size.prod(1), new[:, 1] / new[:, 0]
    assert ((share > 0.54) & (share <= 1) & (aspect > 0.72) & (aspect < 1.38))[~square].all()
    assert len(new[size[:, 0] == size[:, 1]].unique(dim=0)) > 100
    # A box three times as high as wide holds no candidate of 0.56 of its area: the middle square.
    assert square[size[:, 0] == 200].all() and (corner[size[:, 0] == 200] == torch.tensor([68, 0])).all()


def test_a_box_of_too_few_pixels_or_of_nothing_leaves_the_image_alone() -> None:
    x = torch.zeros(2, 1, 3, 4, 2)
    x[0] = 100 + torch.rand(1, 3, 4, 2)
    same, size = geometry2d.compact(x, torch.tensor([[240, 320], [240, 320]]))
    assert torch.equal(same, x) and size.tolist() == [[240, 320], [240, 320]]
