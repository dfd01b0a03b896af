"""What a released recipe feeds its network with, against what the original fed: annotations to test clips, whole."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_report import close

from components.params import parse_params
from components.preparation import prepare_clips
from components.readers import READERS
from model import feeding
from model.store import open_store, write_store
from pipeline.catalogue import params_of

FILES = {
    "pipeline_ntu_b_mid": ("protogcn/ntu60-xsub", "bone"),
    "pipeline_gym_k": ("protogcn/finegym", "kbone"),
    "pipeline_k400_j": ("protogcn/kinetics400", "joint"),
    "pipeline_mma_ntu3d_j": ("mmaction2/stgcnpp/ntu60-xsub-3d", "joint"),
    "pipeline_mma_coco_b": ("mmaction2/agcn/ntu60-xsub-2d", "bone"),
}


def write_annotations(folder: Path, sample: dict[str, Any]) -> Path:
    """A data set of one sample as released: key points in the pickle, or in a file of their own."""
    arrays = {key: value.numpy() if isinstance(value, torch.Tensor) else value for key, value in sample.items()}
    folder.mkdir()
    if "frame_inds" in arrays:
        (folder / "kpfiles").mkdir()
        bodies = {arrays["frame_dir"]: {"keypoint": arrays.pop("keypoint")}}
        (folder / "kpfiles" / "some.pkl").write_bytes(pickle.dumps(bodies))
        arrays["raw_file"] = "data/some.pkl"
    content = {"split": {"train": [arrays["frame_dir"]]}, "annotations": [arrays]}
    (folder / "set.pkl").write_bytes(pickle.dumps(content))
    return folder


def clips_of(case: dict[str, Any], name: str, stream: str, folder: Path, choose: Any) -> torch.Tensor:
    """The sample of a case, read, prepared, stored and fed as the recipe says."""
    entry = parse_params(params_of(name), name).entry
    source = READERS[entry.data.reader](write_annotations(folder / "raw", case["sample"]), **entry.data.options)
    write_store(
        folder / "store",
        prepare_clips(source.clips, entry.data.prepare, source.layout),
        layout=source.layout,
        classes=source.classes,
        splits=source.splits,
        channels=source.channels,
        data_hash="",
        source="",
        dtype=entry.data.dtype,
    )
    recipe = {**entry.recipe.model_dump(), "stream": stream}
    return choose(open_store(folder / "store"), np.array([0]), recipe).batch([0])


@pytest.mark.parametrize("file", FILES)
def test_test_clips(golden_dir: Path, tmp_path: Path, file: str) -> None:
    case = torch.load(golden_dir / "models" / f"{file}.pt", weights_only=True)
    name, stream = FILES[file]
    close(file, name, clips_of(case, name, stream, tmp_path, feeding.test_clips), case["output"])


def test_validation_clip_of_heat_maps(golden_dir: Path, tmp_path: Path) -> None:
    case = torch.load(golden_dir / "models" / "pipeline_mma_posec3d_kp_val.pt", weights_only=True)
    packed = case["output"]
    wanted = torch.zeros(packed["shape"])
    wanted.view(-1)[packed["index"].long()] = packed["value"].float()
    name = "mmaction2/posec3d/finegym"
    found = clips_of(case, name, "keypoint", tmp_path, feeding.validation_clips)
    close("pipeline_mma_posec3d_kp_val", name, found.view(wanted.shape), wanted)
