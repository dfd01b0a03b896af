"""Runs the original systems' step dictionaries with our functions. Only the golden tests use it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from components.original_pipeline import STREAMS as FEATURES
from model.augment import gaussian_noise, mirror_flip, part_drop, rotate, scale, spatial_flip
from model.layouts import Layout, load_layout
from model.prepare import (
    coco_to_coco_new,
    decompress_pose,
    format_clips,
    keep_main_person,
    normalise_2d,
    normalise_3d,
    pad_frames,
)
from model.sampling import sample_frames
from model.streams import apply_stream, spatial_part


@dataclass
class Replay:
    """A random generator that answers with the recorded draws and checks that they are asked for in order."""

    draws: list[tuple[str, np.ndarray]] = field(default_factory=list)

    def take(self, call: str) -> np.ndarray:
        name, value = self.draws.pop(0)
        assert name == call, f"asked for {call}, the original drew {name}"
        return value

    def rand(self) -> float:
        return float(self.take("np.rand").item())

    def randint(self, *_: Any) -> np.ndarray:
        value = self.take("np.randint")
        return value if value.ndim else value.item()

    def choice(self, *_: Any, **__: Any) -> np.ndarray:
        return self.take("np.choice")


def run_steps(
    sample: dict[str, Any],
    steps: list[dict[str, Any]],
    variant: str,
    draws: list[tuple[str, np.ndarray]],
    functions: dict[str, Callable[..., None]] | None = None,
) -> dict[str, Any]:
    """The sample after all steps, done by `functions` (default: STEPS); `draws` must be used up."""
    sample, random = dict(sample), Replay(list(draws))
    for step in steps:
        options = {key: value for key, value in step.items() if key != "type"}
        (functions or STEPS)[step["type"]](sample, options, variant, random)
    assert not random.draws, f"not drawn: {[name for name, _ in random.draws]}"
    return sample


def layout_named(name: str, variant: str) -> Layout:
    return load_layout("openpose_protogcn" if (name, variant) == ("openpose", "protogcn") else name)


def channels_of(x: np.ndarray, dataset: str, scored: bool) -> tuple[str, ...]:
    if dataset == "nturgb+d":
        return ("x", "y", "z", "score")[: x.shape[-1]]
    return ("x", "y", "score")[: x.shape[-1]]


def _append_score(sample: dict[str, Any]) -> bool:
    if "keypoint_score" not in sample:
        return False
    score = sample.pop("keypoint_score")
    sample["keypoint"] = np.concatenate([sample["keypoint"], score[..., None]], axis=-1)
    return True


def _pre_normalize_3d(sample: dict[str, Any], options: dict[str, Any], variant: str, _: Replay) -> None:
    spine = options.get("align_spine", True)
    x = sample["keypoint"]
    layout = load_layout("nturgb+d")
    if x.shape[2] != 25:
        layout = replace(layout, origin=x.shape[2] - 1)
    if x.any() and options.get("align_center", True):
        sample["body_center"] = keep_main_person(x)[0, 0, layout.origin]
    sample["keypoint"] = normalise_3d(
        x,
        layout,
        align_spine=spine,
        align_shoulder=options.get("align_shoulder", True) if variant == "mmaction2" else spine,
        spine=tuple(options.get("zaxis", (0, 1))),
        shoulders=tuple(options.get("xaxis", (8, 4))),
        centre=options.get("align_center", True),
    )
    sample["total_frames"] = sample["keypoint"].shape[1]


def _pre_normalize_2d(sample: dict[str, Any], options: dict[str, Any], variant: str, _: Replay) -> None:
    size = sample.get("img_shape", (1080, 1920))
    if variant == "mmaction2":
        sample["keypoint"] = normalise_2d(sample["keypoint"], size)
    else:
        _append_score(sample)
        sample["keypoint"] = normalise_2d(sample["keypoint"], size, variant=variant, **options)


def _gen_ske_feat(sample: dict[str, Any], options: dict[str, Any], variant: str, _: Replay) -> None:
    dataset = options.get("dataset", "nturgb+d")
    scored = _append_score(sample)
    x = sample["keypoint"]
    layout = layout_named(dataset, variant)
    channels = channels_of(x, dataset, scored)
    parts = [apply_stream(x, layout, FEATURES[feature], channels) for feature in options["feats"]]
    sample["keypoint"] = np.concatenate(parts, axis=-1)


def _joint_to_bone(sample: dict[str, Any], options: dict[str, Any], variant: str, _: Replay) -> None:
    x, dataset = sample["keypoint"], options["dataset"]
    channels = channels_of(x, dataset, False)
    sample[options["target"]] = spatial_part(x, layout_named(dataset, variant), "bone", channels)


def _to_motion(sample: dict[str, Any], options: dict[str, Any], variant: str, _: Replay) -> None:
    x, dataset = sample["keypoint"], options["dataset"]
    channels = channels_of(x, dataset, False)
    sample["motion"] = apply_stream(x, layout_named(dataset, variant), "joint_motion", channels)


def _kinetics_transform(sample: dict[str, Any], *_: Any) -> None:
    _append_score(sample)
    sample["keypoint"] = coco_to_coco_new(sample["keypoint"])


def _augmented(sample: dict[str, Any], function: Callable[..., torch.Tensor], **options: Any) -> None:
    x = sample["keypoint"]
    tensor = torch.from_numpy(x.astype(np.float64 if x.dtype == np.float64 else np.float32))[None]
    sample["keypoint"] = function(tensor, **options)[0].numpy()


def _random_rot(sample: dict[str, Any], options: dict[str, Any], _: str, random: Replay) -> None:
    if sample["keypoint"].any():
        channels = ("x", "y", "z")[: sample["keypoint"].shape[-1]]
        draws = torch.from_numpy(np.atleast_1d(random.take("np.uniform")))[None]
        _augmented(sample, rotate, channels=channels, draws=draws)


def _random_scale(sample: dict[str, Any], options: dict[str, Any], _: str, random: Replay) -> None:
    channels = ("x", "y", "z")[: sample["keypoint"].shape[-1]]
    draws = torch.from_numpy(random.take("np.uniform"))[None]
    _augmented(sample, scale, channels=channels, draws=draws, scale=options.get("scale", 0.2))


def _random_noise(sample: dict[str, Any], options: dict[str, Any], _: str, random: Replay) -> None:
    persons, frames, joints, _size = sample["keypoint"].shape
    grid = (1, 1, 1, joints) if options.get("shared") else (1, persons, frames, joints)
    length = torch.from_numpy(random.take("np.randn").reshape(grid))
    direction = torch.from_numpy(random.take("np.uniform").T.reshape(*grid, 3))
    _augmented(sample, gaussian_noise, channels=("x", "y", "z"), draws=(length, direction), **options)


def _spatial_flip(sample: dict[str, Any], options: dict[str, Any], variant: str, random: Replay) -> None:
    layout = layout_named(options.get("dataset", "nturgb+d"), variant)
    draws = torch.from_numpy(np.atleast_1d(random.take("py.random")))
    _augmented(sample, spatial_flip, layout=layout, draws=draws, p=options.get("p", 0.5))


def _part_drop(sample: dict[str, Any], options: dict[str, Any], _: str, random: Replay) -> None:
    p, share = options.get("p", 0.2), np.atleast_1d(random.take("py.random"))
    limb = np.atleast_1d(random.take("py.randint")) if share < p else np.zeros(1, np.int64)
    draws = (torch.from_numpy(share), torch.from_numpy(limb.astype(np.int64)))
    _augmented(sample, part_drop, layout=load_layout("nturgb+d"), draws=draws, p=p)


def _flip(sample: dict[str, Any], options: dict[str, Any], _: str, random: Replay) -> None:
    layout = load_layout("coco")
    if "left_kp" not in options:
        layout = replace(layout, mirror=tuple(range(17)))
    share = torch.tensor([random.rand()], dtype=torch.float64)
    scored = _append_score(sample)
    label = torch.tensor([sample.get("label", 0)])
    _augmented(
        sample,
        mirror_flip,
        layout=layout,
        width=torch.tensor([sample["img_shape"][1]]),
        draws=share,
        labels=label,
        p=options["flip_ratio"],
        label_map=options.get("flip_label_map"),
    )
    sample["label"] = int(label)
    if scored:
        x = sample["keypoint"]
        sample["keypoint"], sample["keypoint_score"] = x[..., :2], x[..., 2]


def _sampled(sample: dict[str, Any], options: dict[str, Any], variant: str, random: Replay) -> np.ndarray:
    test = options.get("test_mode", sample.get("test_mode", False))
    frames = sample_frames(
        sample["total_frames"],
        options["clip_len"],
        options.get("num_clips", 1),
        variant,
        np.random.RandomState(options.get("seed", 255)) if test else random,
        test=test,
        window=tuple(options.get("p_interval", (1.0, 1.0))),
    )
    if test:
        random.draws.clear()  # the recorded draws are those of the seed
    sample.update(clip_len=options["clip_len"], num_clips=options.get("num_clips", 1))
    return frames.reshape(-1) + sample.get("start_index", 0)


def _uniform_sample_frames(sample: dict[str, Any], options: dict[str, Any], variant: str, random: Replay) -> None:
    variant = "mmaction2" if variant == "mmaction2" else "pyskl"
    sample["frame_inds"] = _sampled(sample, options, variant, random)


def _uniform_sample_decode(sample: dict[str, Any], options: dict[str, Any], _: str, random: Replay) -> None:
    _append_score(sample)
    frames = _sampled(sample, options, "protogcn", random)
    sample["keypoint"] = sample["keypoint"][:, frames].astype(np.float32)


def _pose_decode(sample: dict[str, Any], *_: Any) -> None:
    frames = np.ravel(sample.get("frame_inds", np.arange(sample["total_frames"]))) + sample.get("offset", 0)
    for key in ("keypoint", "keypoint_score"):
        if key in sample:
            sample[key] = sample[key][:, frames].astype(np.float32)


def _pad_to(sample: dict[str, Any], options: dict[str, Any], *_: Any) -> None:
    loop = options.get("mode", "loop") == "loop"
    sample["keypoint"] = pad_frames(sample["keypoint"], options["length"], loop=loop)
    sample["total_frames"] = options["length"]


def _format_gcn_input(sample: dict[str, Any], options: dict[str, Any], variant: str, _: Replay) -> None:
    x = sample["keypoint"]
    if "keypoint_score" in sample:
        x = np.concatenate([x, sample["keypoint_score"][..., None]], axis=-1)
    loop = options.get("mode") == "loop" and variant == "mmaction2"
    persons = options.get("num_person", 2)
    sample["keypoint"] = format_clips(x, sample.get("num_clips", 1), persons=persons, loop=loop)


def _decompress_pose(sample: dict[str, Any], options: dict[str, Any], *_: Any) -> None:
    squeeze = options.get("squeeze", True)
    x = decompress_pose(
        sample["keypoint"],
        sample.pop("frame_inds"),
        sample["total_frames"],
        squeeze=squeeze,
        max_persons=options.get("max_person", 10),
        keep=sample.get("anno_inds"),
    )
    sample.update(keypoint=x[..., :2], keypoint_score=x[..., 2], total_frames=x.shape[1], num_person=len(x))


STEPS: dict[str, Callable[..., None]] = {
    "PreNormalize3D": _pre_normalize_3d,
    "PreNormalize2D": _pre_normalize_2d,
    "GenSkeFeat": _gen_ske_feat,
    "JointToBone": _joint_to_bone,
    "ToMotion": _to_motion,
    "Kinetics_Transform": _kinetics_transform,
    "RandomRot": _random_rot,
    "RandomScale": _random_scale,
    "RandomGaussianNoise": _random_noise,
    "Spatial_Flip": _spatial_flip,
    "Part_Drop": _part_drop,
    "Flip": _flip,
    "UniformSampleFrames": _uniform_sample_frames,
    "UniformSample": _uniform_sample_frames,
    "UniformSampleDecode": _uniform_sample_decode,
    "PoseDecode": _pose_decode,
    "PadTo": _pad_to,
    "FormatGCNInput": _format_gcn_input,
    "DecompressPose": _decompress_pose,
}
