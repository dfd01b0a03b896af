"""A small dataset and parameters of its own, for tests that run components or the whole pipeline."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from components.storage import dvc_md5, dvc_object, file_md5

JOINTS = ["hip", "neck", "left_hand", "right_hand", "left_foot", "right_foot"]
PARENTS = [-1, 0, 1, 1, 0, 0]
CLASSES = ["still", "wave", "kick"]


def annotations(clips: int = 36, seed: int = 0) -> dict[str, Any]:
    """An annotation dictionary in PYSKL's form: three classes that differ in which limb moves."""
    rng = np.random.default_rng(seed)
    samples = []
    for number in range(clips):
        label, frames = number % 3, int(rng.integers(12, 24))
        pose = np.array([[0, 0, 3], [0, 0.5, 3], [-0.4, 0.3, 3], [0.4, 0.3, 3], [-0.2, -0.8, 3], [0.2, -0.8, 3]])
        x = pose + rng.normal(0, 0.01, (1, frames, 6, 3))
        swing = 0.3 * np.sin(np.linspace(0, 6, frames) + rng.uniform(0, 6))
        if label:
            x[0, :, 3 if label == 1 else 5, 1] += swing
        samples.append(
            {
                "frame_dir": f"clip{number:03d}",
                "label": label,
                "total_frames": frames,
                "keypoint": x.astype(np.float32),
                "subject": number // 3 % 6,
            }
        )
    names = [sample["frame_dir"] for sample in samples]
    test = [name for name, sample in zip(names, samples, strict=True) if sample["subject"] >= 4]
    return {"split": {"a_train": [n for n in names if n not in test], "a_test": test}, "annotations": samples}


def write_raw(folder: Path, content: dict[str, Any]) -> Path:
    """The pickle and the JSON that describes its joints, in a folder of their own."""
    folder.mkdir(parents=True)
    (folder / "small.pkl").write_bytes(pickle.dumps(content))
    about = {"name": "small", "joints": JOINTS, "parents": PARENTS, "classes": CLASSES}
    (folder / "small.json").write_text(json.dumps(about))
    return folder


def small_params(**changes: Any) -> dict[str, Any]:
    """Parameters for the small dataset: two members, one ensemble, two epochs."""
    recipe = {
        "clip_length": 12,
        "test_clips": 2,
        "network": {"protogcn": {"base_channels": 16, "num_stages": 2, "inflate_stages": [2], "down_stages": [2]}},
        "streams": {"joint": {"network": {"num_prototypes": 4}}, "bone": {"network": {"num_prototypes": 4}}},
        "epochs": 2,
        "batch_size": 6,
        "lr": 0.02,
    }
    content = {
        "dataset": "small",
        "protocol": "development",
        "members": {
            "joint": {"model": "protogcn", "stream": "joint", "seed": 0},
            "bone": {"model": "protogcn", "stream": "bone", "seed": 0},
        },
        "ensembles": {"two": {"members": {"joint": 1, "bone": 1}}},
        "report": {"baseline": "", "ranked_by": ""},
        "register": {"ensemble": "two", "draws": 200},
        "datasets": {
            "small": {
                "data": {"reader": "annotations", "prepare": [{"name": "normalise_3d"}]},
                "split": {"name": "a", "train": "a_train", "test": ["a_test"]},
                "recipe": recipe,
            }
        },
    }
    return {**content, **changes}


def write_params(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def write_remote(folder: Path, raw: Path) -> str:
    """A DVC remote that holds the folder `raw`; the address of its object."""
    listing = []
    for file in sorted(raw.iterdir()):
        listing.append({"md5": file_md5(file), "relpath": file.name})
        place = Path(dvc_object(str(folder), file_md5(file)))
        place.parent.mkdir(parents=True)
        shutil.copyfile(file, place)
    place = Path(dvc_object(str(folder), dvc_md5(raw)))
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(listing, sort_keys=True))
    return str(place)
