"""How an original configuration feeds its network when it tests: as our recipe and preparation."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from components.params import Heatmap

STREAMS = {
    "j": "joint",
    "b": "bone",
    "k": "kbone",
    "jm": "joint_motion",
    "bm": "bone_motion",
    "km": "kbone_motion",
}
# Steps that only change containers, and those that every prediction here does anyway.
SILENT = ("PoseDecode", "FormatShape", "Collect", "ToTensor", "PackActionInputs")
MAP_PERSONS = 10  # heat maps merge all persons; no released data have more
Step = dict[str, Any]


@dataclass
class Feeding:
    """`recipe` as `model.feeding` takes it, `prepare` as the packed store does, `notes` what was not understood."""

    family: str
    recipe: dict[str, Any]
    prepare: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sampled: bool = False  # whether the steps so far have chosen frames


def feeding_of(values: dict[str, Any], family: str, heatmaps: bool) -> Feeding:
    """The test pipeline of a configuration (`values`), whose `family` is protogcn, pyskl or mmaction2.

    What the configuration does not say is as in the released tests: ten clips of 100 frames of joints, or of 48 heat
    maps of key points.
    """
    recipe: dict[str, Any] = {"sampler": family, "augment": [], "test_clips": 10}
    if heatmaps:
        threshold = 1e-4 if family == "mmaction2" else 1e-3
        maps = Heatmap(threshold=threshold).model_dump()
        recipe |= {"stream": "keypoint", "clip_length": 48, "persons": MAP_PERSONS, "heatmap": maps}
    else:
        recipe |= {"stream": "joint", "clip_length": 100, "persons": 2}
        recipe |= {"difference": "before", "finish": None, "normalise_2d": None}
    feeding = Feeding(family, recipe)
    steps = MAP_STEPS if heatmaps else JOINT_STEPS
    for step in _pipeline(values):
        kind = step.get("type")
        if kind in steps:
            steps[kind](feeding, step)
        elif kind not in SILENT:
            feeding.notes.append(f"{kind} of the test pipeline is not carried over")
    return feeding


def _pipeline(values: dict[str, Any]) -> list[Step]:
    """PYSKL and MMAction2 name it at the top, or keep it inside the data set of the test loader."""
    data = values.get("data", {}).get("test", {}) if isinstance(values.get("data"), dict) else {}
    loader = values.get("test_dataloader", {})
    nested = loader.get("dataset", {}) if isinstance(loader, dict) else {}
    found = values.get("test_pipeline") or data.get("pipeline") or nested.get("pipeline") or []
    return [step for step in found if isinstance(step, dict)]


def _normalise_3d(feeding: Feeding, step: Step) -> None:
    spine = step.get("align_spine", True)
    # In PYSKL and ProtoGCN one flag turns both ways; MMAction2 has a second one.
    shoulder = step.get("align_shoulder", True) if feeding.family == "mmaction2" else spine
    feeding.prepare.append({"name": "normalise_3d", "align_spine": spine, "align_shoulder": shoulder})


def _normalise_2d(feeding: Feeding, step: Step) -> None:
    feeding.recipe["normalise_2d"] = "mmaction2" if feeding.family == "mmaction2" else "pyskl"
    if step.get("mode", "fix") != "fix":
        feeding.notes.append(f"PreNormalize2D's mode {step['mode']!r} is not carried over: images are mapped whole")


def _features(feeding: Feeding, step: Step) -> None:
    feats = list(step.get("feats", ["j"]))
    if len(feats) != 1 or feats[0] not in STREAMS:
        feeding.notes.append(f"the features {feats} are no single stream of ours; the joint stream is assumed")
        return
    feeding.recipe["stream"] = STREAMS[feats[0]]
    if feeding.sampled:
        feeding.recipe["difference"] = "after"


def _sampling(feeding: Feeding, step: Step) -> None:
    feeding.recipe["clip_length"] = step.get("clip_len", feeding.recipe["clip_length"])
    feeding.recipe["test_clips"] = step.get("num_clips", 1)
    feeding.sampled = True


def _coco_new(feeding: Feeding, step: Step) -> None:
    feeding.recipe["finish"] = "coco_new"


def _persons(feeding: Feeding, step: Step) -> None:
    feeding.recipe["persons"] = step.get("num_person", 2)


def _box(feeding: Feeding, step: Step) -> None:
    feeding.recipe["heatmap"]["padding"] = step.get("padding", 0.25)


def _size(feeding: Feeding, step: Step) -> None:
    """The short side to a length, then a crop; or both sides at once."""
    width, height = step.get("scale", (-1, 64))
    feeding.recipe["heatmap"] |= {"test_size": height, "test_crop": width == -1 and step.get("keep_ratio", True)}


def _crop(feeding: Feeding, step: Step) -> None:
    feeding.recipe["heatmap"] |= {"test_size": step.get("crop_size", 64), "test_crop": True}


def _maps(feeding: Feeding, step: Step) -> None:
    points, limbs = step.get("with_kp", True), step.get("with_limb", False)
    if points and limbs:
        feeding.notes.append("key points and limbs in one volume are not supported; key points are assumed")
    feeding.recipe["stream"] = "limb" if limbs and not points else "keypoint"
    drawn = {"sigma": 0.6, "use_score": True, "double": False}
    feeding.recipe["heatmap"] |= {key: step.get(key, default) for key, default in drawn.items()}


JOINT_STEPS: dict[str, Callable[[Feeding, Step], None]] = {
    "PreNormalize3D": _normalise_3d,
    "PreNormalize2D": _normalise_2d,
    "GenSkeFeat": _features,
    "UniformSample": _sampling,
    "UniformSampleFrames": _sampling,
    "UniformSampleDecode": _sampling,
    "Kinetics_Transform": _coco_new,
    "FormatGCNInput": _persons,
}
MAP_STEPS: dict[str, Callable[[Feeding, Step], None]] = {
    "UniformSample": _sampling,
    "UniformSampleFrames": _sampling,
    "PoseCompact": _box,
    "Resize": _size,
    "CenterCrop": _crop,
    "GeneratePoseTarget": _maps,
}
