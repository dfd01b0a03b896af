"""The data side against numbers recorded from the original systems.

A case is a sample, the original's step dictionaries, every random draw, and the result. `golden_steps` maps the
steps to our functions. A choice of cases is committed; SIXSTREAM_GOLDEN adds all of them.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_report import close, refused, same
from golden_steps import FEATURES, STEPS, run_steps

from model import sampling
from model.augment import part_drop, rotate, spatial_flip
from model.errors import UserError
from model.layouts import load_layout
from model.prepare import filter_kinetics, keep_main_person, normalise_3d
from model.samplers import class_specific_indices, epoch_indices
from model.streams import apply_stream

COMMITTED = Path(__file__).parent / "golden" / "data_steps.npz"
# The original crashes or refuses where ours has a meaning.
ACCEPTED = {"norm3d/no_center/pyskl", "norm3d/three_persons/pyskl"}
# What the originals note of a crop for steps that no recipe has.
UNREAD = {"crop_quadruple", "crop_bbox"}


class Cases:
    """The step cases of one folder or committed file, with their arrays."""

    def __init__(self, source: Path, functions: dict[str, Callable[..., None]] = STEPS) -> None:
        self.functions = functions
        self.folder = source if source.is_dir() else None
        self.files: dict[str, Any] = {}
        if self.folder:
            index = json.loads((source / "index.json").read_text())
        else:
            self.files[""] = np.load(source)
            index = json.loads(str(self.files[""]["index"]))
        self.cases = [case for case in index["cases"] if self.runs(case)]
        self.by_id = {case["id"]: case for case in index["cases"]}

    def runs(self, case: dict[str, Any]) -> bool:
        """Whether all steps of a case are known; those of heat maps and other parts have tests of their own."""
        return bool(case.get("pipeline")) and all(step["type"] in self.functions for step in case["pipeline"])

    def array(self, case: dict[str, Any], key: str) -> np.ndarray:
        key = key.partition(" (sparse")[0]  # a remark of the index
        name = case["file"] if self.folder else ""
        if name not in self.files:
            assert self.folder
            self.files[name] = np.load(self.folder / name)
        stored = self.files[name]
        if f"{key}@idx" not in stored:
            return stored[key]
        dense = np.zeros(stored[f"{key}@shape"], stored[f"{key}@val"].dtype)
        dense.reshape(-1)[stored[f"{key}@idx"]] = stored[f"{key}@val"]
        return dense

    def check(self, case: dict[str, Any]) -> None:
        """Assert that a case comes out as the original's."""
        shared = self.by_id.get(case["fields"].get("source", ""), {}).get("inputs", {})
        keys = {**shared, **case["inputs"]}
        sample = {**case["fields"], **{name: self.array(case, key) for name, key in keys.items()}}
        draws = [(call, self.array(case, key)) for _, call, key in case.get("draws", [])]
        if "raises" in case and case["id"] not in ACCEPTED:
            with pytest.raises(UserError):
                run_steps(sample, case["pipeline"], case["variant"], draws, self.functions)
            refused(case["id"], case["pipeline"][-1]["type"])
            return
        found = run_steps(sample, case["pipeline"], case["variant"], draws, self.functions)
        wanted = {name: self.array(case, key) for name, key in case.get("outputs", {}).items() if name not in UNREAD}
        for name, value in (case.get("out_fields") or {}).items():
            if value == "unchanged":
                wanted[name] = sample[name]
            elif (isinstance(value, int) and name in found and name != "flip") or name == "img_shape":
                wanted[name] = np.array(value)
        for name, value in wanted.items():
            close(case["id"], name, found[name], value, **(case.get("tol") or {}))


SMALL = Cases(COMMITTED)


@pytest.mark.parametrize("case", SMALL.cases, ids=lambda case: case["id"])
def test_committed_case(case: dict[str, Any]) -> None:
    SMALL.check(case)


def test_all_step_cases(golden_dir: Path) -> None:
    full = Cases(golden_dir / "pipeline")
    assert len(full.cases) > 480
    for case in full.cases:
        full.check(case)


def test_kinetics_filter(golden_dir: Path) -> None:
    index = json.loads((golden_dir / "pipeline" / "index.json").read_text())["cases"]
    stored = np.load(golden_dir / "pipeline" / "dataset.npz")
    toc = next(case["inputs"] for case in index if case["id"] == "k400_toc")
    data = {name: stored[key] for name, key in toc.items()}
    thresholds = [round(float(threshold), 1) for threshold in data["thresholds"]]
    valid = [dict(zip(thresholds, row.tolist(), strict=True)) for row in data["valid"]]
    ends = np.append(data["offsets"], len(data["box_score"]))
    counts = []
    for case in index:
        if case["op"] != "PoseDataset filtering":
            continue
        ratio, threshold = case["fields"]["valid_ratio"], case["fields"]["box_thr"]
        kept = filter_kinetics(valid, data["total_frames"], valid_ratio=ratio, box_threshold=threshold)
        wanted = [data["frame_dir"].tolist().index(name) for name in stored[case["outputs"]["frame_dir"]]]
        same(case["id"], "kept clips", kept, wanted)
        if ratio:
            boxes = [int((data["box_score"][ends[i] : ends[i + 1]] >= threshold).sum()) for i in kept]
            assert boxes == stored[case["outputs"]["kept_boxes"]].tolist()
        counts.append(len(kept))
    assert sorted(counts) == [84, 87, 100, 100]


SAMPLER_CASES = json.loads((COMMITTED.parent / "data_samplers.json").read_text())


@pytest.mark.parametrize("case", SAMPLER_CASES["distributed"])
def test_distributed_order(case: dict[str, Any]) -> None:
    names = ("seed", "epoch", "rank", "world", "shuffle")
    found = epoch_indices(case["n"], **{name: case[name] for name in names if name in case})
    assert found.tolist() == case["indices"]


@pytest.mark.parametrize("case", SAMPLER_CASES["class_specific"])
def test_class_specific_order(case: dict[str, Any]) -> None:
    options = {name: case[name] for name in ("seed", "epoch", "rank", "world")}
    assert class_specific_indices(case["labels"], case["class_prob"], **options).tolist() == case["indices"]


def test_every_order_of_the_samplers(golden_dir: Path) -> None:
    names = ("seed", "epoch", "rank", "world", "shuffle")
    full = torch.load(golden_dir / "models" / "samplers.pt", weights_only=True)
    for number, case in enumerate(full["distributed"]):
        found = epoch_indices(case["n"], **{name: case[name] for name in names if name in case})
        same(f"samplers {number}", "order", found, case["indices"])
    for number, case in enumerate(full["class_specific"]):
        labels = np.arange(case["n"]) % case["classes"]
        options = {name: case[name] for name in names[:4]}
        found = class_specific_indices(labels, case["class_prob"], **options)
        same(f"samplers class {number}", "order", found, case["indices"])
    stored = np.load(golden_dir / "pipeline" / "dataset.npz")
    for case in json.loads((golden_dir / "pipeline" / "index.json").read_text())["cases"]:
        options = {name: case["fields"].get(name) for name in names[:4]}
        if case["op"] == "DistributedSampler":
            found = epoch_indices(case["fields"]["n"], **options)
        elif case["op"] == "ClassSpecificDistributedSampler":
            labels = stored[case["inputs"]["labels"]]
            found = class_specific_indices(labels, case["fields"]["class_prob"], **options)
        else:
            continue
        same(case["id"], "order", found, stored[case["outputs"]["indices"]])


def model_cases(golden_dir: Path, pattern: str) -> list[tuple[str, dict[str, Any]]]:
    paths = sorted((golden_dir / "models").glob(pattern))
    assert paths
    return [(path.stem, torch.load(path, weights_only=True)) for path in paths]


def test_streams_of_every_layout(golden_dir: Path) -> None:
    for name, case in model_cases(golden_dir, "streams_*.pt"):
        x, layout = case["input"].numpy(), load_layout(case["layout"])
        if case["score"] is not None and x.shape[-1] == 2:
            x = np.concatenate([x, case["score"].numpy()[..., None]], axis=-1)
        planar = ("x", "y", "score")[: x.shape[-1]]
        channels = ("x", "y", "z") if case["layout"] == "nturgb+d" else planar
        for key, wanted in case["outputs"].items():
            streams = [apply_stream(x, layout, FEATURES[feature], channels) for feature in key.split("+")]
            found = np.concatenate(streams, axis=-1)
            close(name, key, found, wanted)


def test_preparation_and_augmentation(golden_dir: Path) -> None:
    layout = load_layout("nturgb+d")
    for name, case in model_cases(golden_dir, "preproc_*.pt"):
        for which in ("plain", "swap", "single"):
            x = case["input" if which == "plain" else f"input_{which}"].numpy()
            for align in (False, True):
                found = normalise_3d(x, layout, align_spine=align, align_shoulder=align)
                key = f"prenorm_{which}_align{int(align)}"
                close(name, key, found, case[key])
            assert keep_main_person(x).shape[1] == case[f"frames_{which}"]
        x = case["input"][None]
        angles = torch.as_tensor(case["rot_theta"], dtype=torch.float64).view(1, 3)
        turned = rotate(x.double(), channels=("x", "y", "z"), draws=angles)[0]
        close(name, "rotated", turned, case["rotated"])
        same(name, "flipped", spatial_flip(x, layout=layout, p=1.0)[0], case["flipped"])
        for limb, wanted in case["part_drop"].items():
            draws = (torch.zeros(1), torch.tensor([int(limb)]))
            same(name, f"part drop {limb}", part_drop(x, layout=layout, draws=draws)[0], wanted)


# The step lists of the released configurations, by the family of the file name.
def released_steps(name: str) -> tuple[str, list[dict[str, Any]]]:
    feature = name.split("_")[2]
    clips = {"clip_len": 100, "num_clips": 10, "test_mode": True}
    after = [{"type": "PoseDecode"}, {"type": "FormatGCNInput"}]
    if name.startswith("pipeline_mma"):
        feature, planar = name.split("_")[3], "coco" in name
        first = {"type": "PreNormalize2D" if planar else "PreNormalize3D"}
        stream = {"type": "GenSkeFeat", "dataset": "coco" if planar else "nturgb+d", "feats": [feature]}
        return "mmaction2", [first, stream, {"type": "UniformSampleFrames", **clips}, *after]
    if name.startswith("pipeline_ntu"):
        first = {"type": "PreNormalize3D", "align_spine": False}
        stream = {"type": "GenSkeFeat", "feats": [feature]}
        return "protogcn", [first, stream, {"type": "UniformSampleDecode", **clips}, after[1]]
    stream = {"type": "GenSkeFeat", "dataset": "coco_new", "feats": [feature]}
    steps = [{"type": "UniformSampleFrames", **clips}, after[0], {"type": "Kinetics_Transform"}, stream, after[1]]
    unpack = [{"type": "DecompressPose", "squeeze": True}] if name.startswith("pipeline_k400") else []
    return "protogcn", [*unpack, *steps]


@pytest.mark.parametrize("precision", ["released", "float32"])
@pytest.mark.parametrize("family", ["ntu", "gym", "k400", "mma_ntu3d", "mma_coco"])
def test_whole_chains(golden_dir: Path, family: str, precision: str) -> None:
    for name, case in model_cases(golden_dir, f"pipeline_{family}_*.pt"):
        sample = {
            key: value.numpy() if isinstance(value, torch.Tensor) else value for key, value in case["sample"].items()
        }
        if precision == "float32":
            for key in ("keypoint", "keypoint_score"):
                if key in sample:
                    sample[key] = sample[key].astype(np.float32)
        variant, steps = released_steps(name)
        found = run_steps(sample, steps, variant, [])["keypoint"]
        wanted = case["output" if precision == "released" else "output_from_float32_sample"].numpy()
        close(name, f"whole chain, {precision}", found, wanted)


def test_test_clip_indices(golden_dir: Path) -> None:
    for name, case in model_cases(golden_dir, "clip_indices_*.pt"):
        variants = {
            "UniformSampleDecode": "protogcn",
            "UniformSampleFrames": "pyskl",
            "frame_inds": "mmaction2",
        }
        for entry in case["cases"]:
            for key, variant in variants.items():
                if key in entry:
                    shape = (entry["total_frames"], entry["clip_len"], entry["num_clips"])
                    found = sampling.test_frames(*shape, variant).reshape(-1)
                    same(name, f"{variant} {shape}", found.reshape(-1), entry[key].reshape(-1))
