"""What a released recipe feeds its network with, against what the original fed: annotations to test clips, whole."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.params import parse_params
from components.preparation import prepare_clips
from components.readers import READERS
from model.feeding import test_clips as clips_of_test
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


@pytest.mark.parametrize("file", FILES)
def test_test_clips(golden_dir: Path, tmp_path: Path, file: str) -> None:
    case = torch.load(golden_dir / "models" / f"{file}.pt", weights_only=True)
    name, stream = FILES[file]
    entry = parse_params(params_of(name), name).entry
    source = READERS[entry.data.reader](write_annotations(tmp_path / "raw", case["sample"]), **entry.data.options)
    write_store(
        tmp_path / "store",
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
    found = clips_of_test(open_store(tmp_path / "store"), np.array([0]), recipe).batch([0])
    wanted = case["output"]
    error = (found - wanted).abs().max().item()
    print(f"{file} by {name}: largest error {error:.1e} of 1e-06 + 1e-06 x value")
    torch.testing.assert_close(found, wanted.to(found), atol=1e-6, rtol=1e-6)
