"""How an original configuration feeds its network when it tests: as our recipe and preparation."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

STREAMS = {
    "j": "joint",
    "b": "bone",
    "k": "kbone",
    "jm": "joint_motion",
    "bm": "bone_motion",
    "km": "kbone_motion",
}
# Steps that only change containers, and those that every prediction here does anyway.
SILENT = ("PoseDecode", "FormatShape", "Collect", "ToTensor", "PackActionInputs", "FormatGCNInput")
Step = dict[str, Any]


@dataclass
class Feeding:
    """`recipe` as `model.feeding` takes it, `prepare` as the packed store does, `notes` what was not understood."""

    recipe: dict[str, Any]
    prepare: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sampled: bool = False  # whether the steps so far have chosen frames


def feeding_of(values: dict[str, Any], family: str) -> Feeding:
    """The test pipeline of a configuration (`values`), whose `family` is protogcn, pyskl or mmaction2.

    What the configuration does not say is as in the released tests: the joint stream, ten clips of 100 frames.
    """
    feeding = Feeding(
        {
            "stream": "joint",
            "clip_length": 100,
            "test_clips": 10,
            "sampler": family,
            "difference": "before",
            "persons": 2,
            "finish": None,
            "augment": [],
        }
    )
    for step in _pipeline(values):
        kind = step.get("type")
        if kind in STEPS:
            STEPS[kind](feeding, step, family)
        elif kind not in SILENT:
            feeding.notes.append(f"{kind} of the test pipeline is not carried over")
        if kind == "FormatGCNInput":
            feeding.recipe["persons"] = step.get("num_person", 2)
    return feeding


def _pipeline(values: dict[str, Any]) -> list[Step]:
    """PYSKL and MMAction2 name it at the top, or keep it inside the data set of the test loader."""
    data = values.get("data", {}).get("test", {}) if isinstance(values.get("data"), dict) else {}
    loader = values.get("test_dataloader", {})
    nested = loader.get("dataset", {}) if isinstance(loader, dict) else {}
    found = values.get("test_pipeline") or data.get("pipeline") or nested.get("pipeline") or []
    return [step for step in found if isinstance(step, dict)]


def _normalise_3d(feeding: Feeding, step: Step, family: str) -> None:
    spine = step.get("align_spine", True)
    # In PYSKL and ProtoGCN one flag turns both ways; MMAction2 has a second one.
    shoulder = step.get("align_shoulder", True) if family == "mmaction2" else spine
    feeding.prepare.append({"name": "normalise_3d", "align_spine": spine, "align_shoulder": shoulder})


def _normalise_2d(feeding: Feeding, step: Step, family: str) -> None:
    variant = "mmaction2" if family == "mmaction2" else "pyskl"
    feeding.prepare.append({"name": "normalise_2d", "variant": variant})


def _features(feeding: Feeding, step: Step, family: str) -> None:
    feats = list(step.get("feats", ["j"]))
    if len(feats) != 1 or feats[0] not in STREAMS:
        feeding.notes.append(f"the features {feats} are no single stream of ours; the joint stream is assumed")
        return
    feeding.recipe["stream"] = STREAMS[feats[0]]
    if feeding.sampled:
        feeding.recipe["difference"] = "after"


def _sampling(feeding: Feeding, step: Step, family: str) -> None:
    feeding.recipe["clip_length"] = step.get("clip_len", 100)
    feeding.recipe["test_clips"] = step.get("num_clips", 1)
    feeding.sampled = True


def _coco_new(feeding: Feeding, step: Step, family: str) -> None:
    feeding.recipe["finish"] = "coco_new"


STEPS: dict[str, Callable[[Feeding, Step, str], None]] = {
    "PreNormalize3D": _normalise_3d,
    "PreNormalize2D": _normalise_2d,
    "GenSkeFeat": _features,
    "UniformSample": _sampling,
    "UniformSampleFrames": _sampling,
    "UniformSampleDecode": _sampling,
    "Kinetics_Transform": _coco_new,
}
