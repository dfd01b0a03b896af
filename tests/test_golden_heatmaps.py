"""PoseC3D's geometry and heat maps against numbers recorded from the original systems."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_heatmaps import HEATMAP_STEPS
from golden_report import close
from golden_steps import STEPS
from test_golden_data import Cases, model_cases

from model.clips import Clips
from model.heatmap_clips import HeatmapClips
from model.heatmaps import keypoint_maps, limb_maps
from model.layouts import load_layout
from model.store import Clip, open_store, write_store

SMALL = Cases(Path(__file__).parent / "golden" / "heatmap_steps.npz", STEPS | HEATMAP_STEPS)


@pytest.mark.parametrize("case", SMALL.cases, ids=lambda case: case["id"])
def test_committed_case(case: dict[str, Any]) -> None:
    SMALL.check(case)


def test_every_geometry_and_heat_map_case(golden_dir: Path) -> None:
    full = Cases(golden_dir / "pipeline", STEPS | HEATMAP_STEPS)
    cases = [case for case in full.cases if any(step["type"] in HEATMAP_STEPS for step in case["pipeline"])]
    # Points and limbs at once, which PYSKL refuses and MMAction2 mixes up, cannot be asked of ours.
    cases = [case for case in cases if not case["id"].startswith("both/")]
    assert len(cases) >= 80
    for case in cases:
        full.check(case)


def dense(packed: dict[str, Any]) -> torch.Tensor:
    maps = torch.zeros(packed["shape"])
    maps.view(-1)[packed["index"].long()] = packed["value"]
    return maps


def test_maps_alone(golden_dir: Path) -> None:
    for name, case in model_cases(golden_dir, "heatmap_*.pt"):
        x, score, size = case["keypoint"][None], case["keypoint_score"][None], tuple(case["img_shape"])
        limbs = load_layout("coco").limbs
        found = limb_maps(x, score, limbs, size) if case["limb"] else keypoint_maps(x, score, size)
        close(name, "maps", found[0].transpose(0, 1), dense(case["output"]), atol=1e-5, rtol=1e-4)


def clips_of(
    folder: Path, sample: dict[str, Any], stream: str, num_clips: int = 1, sampler: str = "mmaction2", **options: Any
) -> HeatmapClips:
    """One sample of the originals, in float16 as released, packed and fed as in a test."""
    joints = np.concatenate([sample["keypoint"], np.asarray(sample["keypoint_score"])[..., None]], axis=-1)
    size = tuple(float(side) for side in sample["img_shape"])
    write_store(
        folder,
        [Clip(id="a", label=0, joints=joints, image_size=size)],
        layout=load_layout("coco"),
        classes=["a"],
        splits={"test": ["a"]},
        channels=["x", "y", "score"],
        data_hash="",
        source="golden",
        dtype="float16",
    )
    sampling: dict[str, Any] = {"clip_length": 48, "num_clips": num_clips, "sampler": sampler}
    return HeatmapClips(Clips(open_store(folder), [0], stream="joint", training=False, **sampling), stream, **options)


def test_the_validation_pipeline_from_a_store(golden_dir: Path, tmp_path: Path) -> None:
    [(name, case)] = model_cases(golden_dir, "pipeline_mma_posec3d_*.pt")
    clips = clips_of(tmp_path / "store", case["sample"], stream="keypoint", double=False)
    close(name, "maps", clips.batch([0]), dense(case["output"]), atol=1e-4, rtol=1e-3, max_bad_frac=1e-4, bad_atol=0.03)


def test_the_released_tests_from_a_store(golden_dir: Path, tmp_path: Path) -> None:
    full = Cases(golden_dir / "pipeline", STEPS | HEATMAP_STEPS)
    chosen = [case for case in full.cases if "posec3d" in case["id"] and "/train/" not in case["id"]]
    assert len(chosen) == 7
    for number, case in enumerate(chosen):
        sample = {**case["fields"], **{name: full.array(case, key) for name, key in case["inputs"].items()}}
        pyskl, sampling = case["variant"] == "pyskl", case["pipeline"][0]
        clips = clips_of(
            tmp_path / str(number),
            sample,
            stream="limb" if "limb" in case["id"] else "keypoint",
            num_clips=sampling["num_clips"],
            sampler=case["variant"],
            threshold=1e-3 if pyskl else 1e-4,
            test_crop=not pyskl,
            double=case["pipeline"][-2].get("double", False),
        )
        close(
            case["id"], "maps from a store", clips.batch([0]), full.array(case, case["outputs"]["imgs"]), **case["tol"]
        )
