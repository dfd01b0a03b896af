"""Augmentations: what each one may and may not change."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.augment import (
    AUGMENTATIONS,
    augment,
    check_augmentations,
    gaussian_noise,
    mirror_flip,
    part_drop,
    rotate,
    scale,
    spatial_flip,
)
from model.errors import UserError
from model.layouts import load_layout

NTU, COCO = load_layout("nturgb+d"), load_layout("coco")
XYZ, SCORED = ("x", "y", "z"), ("x", "y", "score")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clips(joints: int = 25, count: int = 4) -> Tensor:
    x = torch.randn(count, 2, 5, joints, 3, generator=seeded(1))
    x[:, 1, 2:] = 0  # the second person leaves
    x[:, 0, :, 3] = 0  # a joint that was never seen
    return x


def test_rotation_keeps_lengths_and_scores() -> None:
    x = clips()
    turned = rotate(x, channels=XYZ, generator=seeded(), theta=0.5)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert not torch.allclose(turned, x)
    plane = rotate(x, channels=SCORED, generator=seeded(), theta=0.5)
    torch.testing.assert_close(plane[..., :2].norm(dim=-1), x[..., :2].norm(dim=-1))
    assert torch.equal(plane[..., 2], x[..., 2])


def test_rotation_order_and_sense() -> None:
    x = torch.eye(3).view(1, 1, 1, 3, 3)
    angles = torch.tensor([[0.0, 0.0, torch.pi / 2]])
    turned = rotate(x, channels=XYZ, draws=angles)[0, 0, 0]
    torch.testing.assert_close(turned, torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]), atol=1e-6, rtol=0)
    both = rotate(x, channels=XYZ, draws=torch.tensor([[0.3, -0.4, 0.5]]))
    steps = x
    for axis, angle in enumerate((0.3, -0.4, 0.5)):
        single = torch.zeros(1, 3)
        single[0, axis] = angle
        steps = rotate(steps, channels=XYZ, draws=single)
    torch.testing.assert_close(both, steps)


def test_angles_stay_within_theta() -> None:
    x = torch.tensor([1.0, 0, 1]).expand(2000, 1, 1, 1, 3)
    turned = rotate(x, channels=SCORED, generator=seeded(), theta=0.2)
    angle = torch.atan2(turned[..., 1], turned[..., 0])
    assert angle.abs().max() <= 0.2 + 1e-6 and angle.max() > 0.19 and angle.min() < -0.19
    released = rotate(x, channels=SCORED, generator=seeded(), theta=0.2, upper=1.0)
    assert torch.atan2(released[..., 1], released[..., 0]).max() > 0.95


def test_scale_is_one_factor_per_clip_and_coordinate() -> None:
    x = clips()
    stretched = scale(x, channels=SCORED, generator=seeded(), scale=[0.1, 0.3])
    ratio = (stretched / x)[:, 0, :, 5]
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio), atol=1e-5)
    assert (ratio[..., 0] - 1).abs().max() <= 0.1 + 1e-5 and (ratio[..., 1] - 1).abs().max() <= 0.3 + 1e-5
    assert torch.equal(stretched[..., 2], x[..., 2])


@pytest.mark.parametrize("base", ["frame", "video"])
@pytest.mark.parametrize("shared", [False, True])
def test_noise_spares_what_is_missing(base: str, shared: bool) -> None:
    x = clips()
    noisy = gaussian_noise(x, channels=XYZ, generator=seeded(), sigma=0.01, base=base, shared=shared)
    assert torch.isfinite(noisy).all()
    assert not noisy[:, 1, 2:].any() and not noisy[:, :, :, 3][x[:, :, :, 3] == 0].any()
    step = (noisy - x).norm(dim=-1)
    assert 0 < step.max() < 0.01 * 5 * 15
    moved = (noisy - x)[:, 0, :, 7]
    assert torch.allclose(moved[:, 0], moved[:, 1], atol=1e-5) == (shared and base == "video")


def test_spatial_flip_only_exchanges_slots() -> None:
    x = clips()
    flipped = spatial_flip(x, layout=NTU, p=1.0)
    assert torch.equal(flipped[..., 7, :], x[..., 11, :]) and torch.equal(flipped[..., 20, :], x[..., 20, :])
    assert torch.equal(spatial_flip(flipped, layout=NTU, p=1.0), x)
    assert torch.equal(spatial_flip(x, layout=NTU, p=0.0), x)


def test_mirror_flip_turns_the_image() -> None:
    x = clips(17).abs() * 50
    width = torch.tensor([100.0, 200, 300, 400])
    flipped = mirror_flip(x, layout=COCO, width=width, p=1.0)
    torch.testing.assert_close(flipped[3, 0, :, 6, 0], 400 - x[3, 0, :, 5, 0])
    assert torch.equal(flipped[..., 6, 1:], x[..., 5, 1:])
    assert not flipped[:, 0, :, 4].any()  # joint 3, its mirror, is missing and stays so
    with pytest.raises(UserError, match="image size"):
        mirror_flip(x, layout=COCO, width=None)


def test_part_drop_blanks_one_limb() -> None:
    x = torch.ones(400, 2, 3, 25, 3)
    dropped = part_drop(x, layout=NTU, generator=seeded(), p=0.2)
    lost = (dropped == 0).all(dim=-1).all(dim=2).all(dim=1)
    assert torch.equal((dropped == 0).any(dim=-1).any(dim=2).any(dim=1), lost)
    found = [tuple(row.nonzero().flatten().tolist()) for row in lost if row.any()]
    assert set(found) == {tuple(sorted(part)) for part in NTU.parts.values()}
    assert 0.12 < len(found) / 400 < 0.28


def test_a_mirrored_clip_may_show_another_class() -> None:
    x = torch.rand(4, 1, 2, 17, 2) + 1
    labels = torch.tensor([5, 8, 0, 5])
    draws = torch.tensor([0.1, 0.1, 0.1, 0.9])  # the last is not mirrored
    options = {"layout": COCO, "width": torch.full((4,), 9.0), "draws": draws, "labels": labels}
    mirror_flip(x, **options, label_map={5: 8, "8": 5})  # JSON makes text of the keys
    assert labels.tolist() == [8, 5, 0, 5]


CHANCES: list[tuple[Callable[..., Tensor], int]] = [(spatial_flip, 25), (mirror_flip, 17)]


@pytest.mark.parametrize(("function", "joints"), CHANCES)
def test_half_of_the_clips_are_flipped(function: Callable[..., Tensor], joints: int) -> None:
    x = torch.rand(1000, 1, 1, joints, 3, generator=seeded())
    options = {"width": torch.full((1000,), 9.0)} if function is mirror_flip else {}
    layout = NTU if joints == 25 else COCO
    changed = (function(x, layout=layout, generator=seeded(), **options) != x).flatten(1).any(dim=1)
    assert 0.44 < changed.float().mean() < 0.56


RECIPE = [{"name": "rotate", "theta": 0.2}, {"name": "spatial_flip"}, {"name": "part_drop", "p": 1.0}]


def test_a_recipe_is_applied_in_order_and_repeats_with_its_generator() -> None:
    x = clips()
    check_augmentations(RECIPE, NTU)
    first, second = (augment(x, RECIPE, layout=NTU, channels=XYZ, generator=seeded(5)) for _ in range(2))
    assert torch.equal(first, second)
    generator = seeded(5)
    by_hand = rotate(x, channels=XYZ, generator=generator, theta=0.2)
    by_hand = spatial_flip(by_hand, layout=NTU, generator=generator)
    by_hand = part_drop(by_hand, layout=NTU, generator=generator, p=1.0)
    assert torch.equal(first, by_hand)


@pytest.mark.parametrize("name", sorted(set(AUGMENTATIONS) - {"gaussian_noise"}))
def test_frames_stacked_along_time_are_treated_alike(name: str) -> None:
    x = clips(17)
    width = torch.full((4,), 640.0)
    steps = [{"name": name}]
    alone = augment(x, steps, layout=COCO, channels=SCORED, generator=seeded(3), width=width)
    stacked = torch.cat([x, x], dim=2)
    both = augment(stacked, steps, layout=COCO, channels=SCORED, generator=seeded(3), width=width)
    torch.testing.assert_close(both, torch.cat([alone, alone], dim=2))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_inputs_are_left_alone(name: str) -> None:
    x = clips(17)
    before = x.clone()
    width = torch.full((4,), 640.0)
    augment(x, [{"name": name}], layout=COCO, channels=SCORED, generator=seeded(), width=width)
    assert torch.equal(x, before)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="unknown augmentation 'spin'"):
        check_augmentations([{"name": "spin"}], NTU)
    with pytest.raises(UserError, match="'rotate' has no option 'angle'; options: theta, upper"):
        check_augmentations([{"name": "rotate", "angle": 1}], NTU)
    bare = replace(NTU, parts={})
    with pytest.raises(UserError, match="'part_drop'.*nturgb"):
        check_augmentations([{"name": "part_drop"}], bare)
    with pytest.raises(UserError, match="'part_drop'.*nturgb"):
        part_drop(clips(), layout=bare)
    with pytest.raises(UserError, match="base 'clip' is unknown"):
        gaussian_noise(clips(), channels=XYZ, base="clip")
