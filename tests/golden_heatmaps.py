"""Runs the original systems' steps of PoseC3D's geometry and heat maps with our functions."""

from typing import Any

import numpy as np
import torch
from golden_steps import Replay

from model import geometry2d
from model.heatmaps import keypoint_maps, limb_maps, mirrored

# The order that the original falls back to when a configuration names no limbs.
DEFAULT_LIMBS = [(0, 1), (0, 2), (1, 3), (2, 4), (0, 5), (5, 7), (7, 9), (0, 6), (6, 8), (8, 10), (5, 11), (11, 13)]
DEFAULT_LIMBS += [(13, 15), (6, 12), (12, 14), (14, 16), (11, 12)]

Sample = dict[str, Any]


def _moved(sample: Sample, function: Any, *arguments: Any, **options: Any) -> None:
    x = torch.from_numpy(sample["keypoint"].astype(np.float32))[None]
    x, size = function(x, torch.tensor([sample["img_shape"]]), *arguments, **options)
    sample.update(keypoint=x[0].numpy(), img_shape=tuple(size[0].tolist()))


def _pose_compact(sample: Sample, options: dict[str, Any], *_: Any) -> None:
    names = {"padding": "padding", "hw_ratio": "ratio", "allow_imgpad": "beyond"}
    given = {names[key]: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    _moved(sample, geometry2d.compact, **{"ratio": None, **given})


def _resize(sample: Sample, options: dict[str, Any], *_: Any) -> None:
    scale, old = options["scale"], torch.tensor([sample["img_shape"]])
    if not isinstance(scale, list):
        new = (old * scale + 0.5).long()
    elif options.get("keep_ratio", True):
        sides = [side if side > 0 else np.inf for side in scale]
        new = geometry2d.fitted(old, short=min(sides), long=max(sides))
    else:
        new = torch.tensor([scale[::-1]])
    sample["scale_factor"] = sample.get("scale_factor", 1) * (new / old).flip(-1)[0].numpy()
    _moved(sample, geometry2d.resize, new)


def _random_resized_crop(sample: Sample, options: dict[str, Any], _: str, random: Replay) -> None:
    logs, areas = (torch.from_numpy(random.take("np.uniform"))[None] for _ in range(2))
    placed = [[0, 0]]
    if random.draws and random.draws[0][0] == "py.randint":  # the original draws no place for the central square
        placed = [[int(random.take("py.randint")) for _ in range(2)]]
    _moved(sample, geometry2d.random_crop, draws=(logs, areas, torch.tensor(placed)))


def _random_crop(sample: Sample, options: dict[str, Any], _: str, random: Replay) -> None:
    top, left = (int(random.take("np.randint")) for _ in range(2))
    x = torch.from_numpy(sample["keypoint"])[None]
    x, size = geometry2d.crop(x, torch.tensor([[left, top]]), torch.tensor([[options["size"]] * 2]))
    sample.update(keypoint=x[0].numpy(), img_shape=tuple(size[0].tolist()))


def _centre_crop(sample: Sample, options: dict[str, Any], *_: Any) -> None:
    _moved(sample, geometry2d.centre_crop, options["crop_size"])


def _generate_pose_target(sample: Sample, options: dict[str, Any], variant: str, _: Replay) -> None:
    scaling = options.get("scaling", 1.0)
    height, width = (int(side * scaling + 0.5) for side in sample["img_shape"])
    x = torch.from_numpy(sample["keypoint"] * np.float32(scaling))[None]
    score = torch.ones(x.shape[:-1])
    if "keypoint_score" in sample and options.get("use_score", True):
        score = torch.from_numpy(sample["keypoint_score"])[None]
    common = {"sigma": options.get("sigma", 0.6), "threshold": 1e-4 if variant == "mmaction2" else 1e-3}
    limbs = [tuple(limb) for limb in options.get("skeletons", DEFAULT_LIMBS)]
    if options.get("with_limb", False):
        maps = limb_maps(x, score, limbs, (height, width), **common)
    else:
        maps = keypoint_maps(x, score, (height, width), **common)
    if options.get("double"):
        sides = ("left_limb", "right_limb") if options.get("with_limb") else ("left_kp", "right_kp")
        mirror = list(range(maps.shape[1]))
        for left, right in zip(*(options[side] for side in sides), strict=True):
            mirror[left], mirror[right] = right, left
        maps = torch.cat([maps, mirrored(maps, mirror)], dim=2)
    sample["imgs"] = maps[0].transpose(0, 1).numpy()


def _format_shape(sample: Sample, *_: Any) -> None:
    maps, length = sample["imgs"], sample["clip_len"]
    sample["imgs"] = maps.reshape(-1, length, *maps.shape[1:]).swapaxes(1, 2)


HEATMAP_STEPS = {
    "PoseCompact": _pose_compact,
    "Resize": _resize,
    "RandomResizedCrop": _random_resized_crop,
    "RandomCrop": _random_crop,
    "CenterCrop": _centre_crop,
    "GeneratePoseTarget": _generate_pose_target,
    "FormatShape": _format_shape,
}
