"""Reader of PYSKL-form annotation pickles, `{"split": {name: ids}, "annotations": [samples]}`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from components.files import read_json
from components.pickles import load_pickle
from components.source import Source, set_aside
from model import ntu
from model.errors import UserError
from model.layouts import Layout, layout_from_dict, load_layout
from model.store import Clip
from model.streams import CHANNELS

# What an annotation may call a factor; the first that is there counts.
FACTOR_KEYS = {"subject": ("subject",), "camera": ("camera", "view"), "setup": ("setup",)}
LAYOUT_OF_JOINTS = {25: "nturgb+d", 17: "coco"}

Sample = dict[str, Any]


@dataclass(frozen=True)
class Annotations:
    """An annotation pickle with the content of the JSON beside it; `wheres` name each sample in messages."""

    path: Path
    about: dict[str, Any]
    samples: list[Sample]
    ids: list[str]
    wheres: list[str]
    labels: list[int]
    split: dict[Any, Any]

    @property
    def beside(self) -> Path:
        """Where the JSON lies, if there is one."""
        return self.path.with_suffix(".json")

    def classes(self, given: Sequence[str] | None, layout: Layout) -> list[str]:
        """Class names, those `given` before the JSON's. Raises UserError for a label without a name."""
        names = _classes(given or self.about.get("classes"), layout, self.ids, max(self.labels), self.beside)
        for label, where in zip(self.labels, self.wheres, strict=True):
            if not 0 <= label < len(names):
                raise UserError(f"{where}: label {label} is out of range for {len(names)} classes; correct either")
        return names

    def splits(self) -> dict[str, list[str]]:
        """Ids of every split, in the order of the file. Raises UserError naming ids that no sample has."""
        return _splits(self.split, self.about.get("splits", {}), self.ids, self.path, self.beside)


def open_annotations(path: Path) -> Annotations:
    """Read the pickle at `path`, or the one in that folder. Raises UserError for a file not of PYSKL's form."""
    path = _one_pickle(path)
    beside = path.with_suffix(".json")
    about = read_json(beside) if beside.is_file() else {}
    if not isinstance(about, dict):
        raise UserError(f"{beside}: must be a JSON object with the data set's joints, classes and splits")
    content = load_pickle(path)
    if not isinstance(content, dict) or not isinstance(content.get("split"), dict):
        raise UserError(f"{path}: must hold a dictionary with 'split' and 'annotations', as PYSKL writes it")
    samples = content.get("annotations")
    if not isinstance(samples, list) or not samples or not all(isinstance(sample, dict) for sample in samples):
        raise UserError(f"{path}: 'annotations' must be a list of dictionaries, one per sample")
    ids = _ids(samples, path)
    wheres = [f"{path}: sample {id}" for id in ids]
    labels = [whole(sample, "label", where) for sample, where in zip(samples, wheres, strict=True)]
    return Annotations(path, about, samples, ids, wheres, labels, content["split"])


def read_annotations(
    path: str | Path,
    *,
    strict: bool = False,
    layout: str | None = None,
    classes: Sequence[str] | None = None,
    channels: Sequence[str] | None = None,
) -> Source:
    """Read an annotation pickle, or a folder that holds one.

    A JSON file of the same name beside it may give `joints` and `parents` (or name a shipped `layout`), `classes`,
    `channels` and `splits`, the last as lists of ids or, for checking, as numbers of clips. Arguments go before it.
    Without either, 25 joints are taken for NTU's and 17 for COCO's. 2D key points are joined by their scores as a
    third channel; three values without a separate score are x y z unless `channels` says otherwise. A split keeps
    the order of the file, as in PYSKL. Samples without a single joint are set aside, or end the run if `strict`.

    Raises UserError naming file, sample and field for everything else that is wrong.
    """
    index = open_annotations(Path(path))
    first = _keypoints(index.samples[0], index.wheres[0])
    skeleton = _layout(layout, index.about, index.beside, first.shape[2])
    names = index.classes(classes, skeleton)
    kinds = _channels(channels or index.about.get("channels"), index.samples[0], first.shape[3], index.wheres[0])
    splits = index.splits()
    excluded: list[tuple[str, str]] = []

    def clips() -> Iterator[Clip]:
        for id, label, sample, where in zip(index.ids, index.labels, index.samples, index.wheres, strict=True):
            joints = _joints(sample, where, skeleton, kinds)
            coordinates = joints[..., :2] if kinds[-1] == "score" else joints
            if coordinates.any():
                yield Clip(id, label, joints, _factors(sample, id, where), image_size(sample, where))
            elif strict:
                raise UserError(f"{where}: all joints are zero; leave the sample out")
            else:
                set_aside(id, "all joints are zero", splits, excluded)

    return Source(clips(), skeleton, names, splits, kinds, excluded)


def _one_pickle(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted([*path.glob("*.pkl"), *path.glob("*.pickle")])
    if len(found) != 1:
        raise UserError(f"{path}: holds {len(found)} pickle files, not one; name the file itself")
    return found[0]


def _ids(samples: Sequence[Sample], path: Path) -> list[str]:
    ids = [sample.get("frame_dir", sample.get("filename")) for sample in samples]
    for i, id in enumerate(ids):
        if not isinstance(id, str) or not id:
            raise UserError(f"{path}: annotation {i} has no 'frame_dir'; give every sample its id there")
    doubled = [id for id, count in Counter(ids).items() if count > 1]
    if doubled:
        raise UserError(f"{path}: sample {doubled[0]} occurs twice ({len(doubled)} such ids); ids must be unique")
    return [str(id) for id in ids]


def whole(sample: Sample, key: str, where: str) -> int:
    if key not in sample:
        raise UserError(f"{where}: has no '{key}'; add it")
    value = sample[key]
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise UserError(f"{where}: '{key}' is {value!r:.40}, not a whole number")
    return int(value)


def _keypoints(sample: Sample, where: str) -> np.ndarray:
    if "keypoint" not in sample:
        table = "frame_inds" in sample
        raise UserError(
            f"{where}: has no 'keypoint'"
            + (
                "; this is a table of contents whose key points lie in other files: take the reader 'kinetics'"
                if table
                else ""
            )
        )
    joints = sample["keypoint"]
    if not isinstance(joints, np.ndarray) or joints.ndim != 4 or joints.dtype.kind not in "fiu":
        shape = getattr(joints, "shape", type(joints).__name__)
        raise UserError(f"{where}: 'keypoint' must be an array (persons, frames, joints, 2 or 3), not {shape}")
    if joints.size == 0:
        raise UserError(f"{where}: 'keypoint' is empty, shape {joints.shape}; leave the sample out")
    return joints if joints.dtype.kind == "f" else joints.astype(np.float32)


def _joints(sample: Sample, where: str, layout: Layout, channels: Sequence[str]) -> np.ndarray:
    joints = _keypoints(sample, where)
    if joints.shape[2] != layout.num_joints:
        raise UserError(
            f"{where}: 'keypoint' has {joints.shape[2]} joints, layout '{layout.name}' has {layout.num_joints}; "
            "choose the right layout"
        )
    if whole(sample, "total_frames", where) != joints.shape[1]:
        raise UserError(
            f"{where}: 'total_frames' is {sample['total_frames']}, but 'keypoint' has {joints.shape[1]} frames; "
            "correct either"
        )
    if joints.shape[3] < len(channels) and "score" in channels:
        score = sample.get("keypoint_score")
        if not isinstance(score, np.ndarray) or score.shape != joints.shape[:3] or score.dtype.kind not in "fiub":
            raise UserError(f"{where}: 'keypoint_score' must be an array of the shape {joints.shape[:3]}")
        joints = np.concatenate([joints, score[..., None].astype(joints.dtype)], axis=-1)
    if joints.shape[3] != len(channels):
        raise UserError(f"{where}: 'keypoint' has {joints.shape[3]} values a joint, not {', '.join(channels)}")
    if not np.isfinite(joints).all():
        m, t, v, c = np.argwhere(~np.isfinite(joints))[0]
        raise UserError(
            f"{where}: {channels[c]} of joint {v} ({layout.joints[v]}), person {m}, frame {t} is {joints[m, t, v, c]}; "
            "mend the sample or leave it out"
        )
    return joints


def _channels(given: Any, sample: Sample, width: int, where: str) -> list[str]:
    if given is not None:
        if tuple(given) not in CHANNELS:
            raise UserError(f"channels {given} are none of {', '.join(map(str, CHANNELS))}")
        return list(given)
    if width == 3:
        return ["x", "y", "z"]
    if width == 2:
        return ["x", "y", "score"] if "keypoint_score" in sample else ["x", "y"]
    raise UserError(f"{where}: 'keypoint' has {width} values a joint, not 2 or 3")


def _layout(given: str | None, about: Sample, beside: Path, num_joints: int) -> Layout:
    if given is not None:
        return load_layout(given)
    if "joints" in about:
        known = {"parents", "layout", *(entry.name for entry in fields(Layout))}
        own = {key: value for key, value in about.items() if key in known}
        if "bones" in own:
            own["name"] = own.pop("layout", own.get("name"))
        return layout_from_dict(own, str(beside))
    if isinstance(about.get("layout"), str):
        return load_layout(about["layout"])
    if num_joints not in LAYOUT_OF_JOINTS:
        raise UserError(
            f"{beside}: no such file, and no layout is known for {num_joints} joints; give the data set's layout, or "
            "'joints' and 'parents' in this file"
        )
    return load_layout(LAYOUT_OF_JOINTS[num_joints])


def _classes(given: Any, layout: Layout, ids: Sequence[str], highest: int, beside: Path) -> list[str]:
    if given is not None:
        if isinstance(given, str) or not all(isinstance(name, str) for name in given) or len(set(given)) < len(given):
            raise UserError(f"{beside}: 'classes' must be a list of different names, one per label")
        return list(given)
    if layout.num_joints == 25 and all(map(_is_ntu_name, ids)):
        return list(ntu.action_names()[: 60 if highest < 60 else 120])
    return [f"class {label}" for label in range(highest + 1)]


def _splits(
    splits: dict[Any, Any], expected: Any, ids: Sequence[str], path: Path, beside: Path
) -> dict[str, list[str]]:
    if not isinstance(expected, dict):
        raise UserError(f"{beside}: 'splits' must map names to lists of ids or numbers of clips")
    lists = {name: members for name, members in expected.items() if not isinstance(members, int)}
    known = set(ids)
    found = {}
    for name, members in {**splits, **lists}.items():
        file = beside if name in lists else path
        if not isinstance(name, str) or not isinstance(members, list | tuple | set | np.ndarray):
            raise UserError(f"{file}: split {name!r}: must be a list of ids")
        wanted = {str(id) for id in members}
        unknown = sorted(wanted - known)
        if unknown:
            raise UserError(
                f"{file}: split '{name}' names {len(unknown)} ids that no annotation has, first {unknown[0]}; "
                "correct the split or add the samples"
            )
        found[name] = [id for id in ids if id in wanted]
    for name, count in expected.items():
        if name not in lists and len(found.get(name, [])) != count:
            raise UserError(
                f"{beside}: split '{name}' should have {count} clips, {path.name} has {len(found.get(name, []))}; "
                "the two files do not belong together"
            )
    return found


def _factors(sample: Sample, id: str, where: str) -> dict[str, int]:
    factors = {}
    if _is_ntu_name(id):
        parts = ntu.parse_name(id)
        factors = {factor: parts[factor] for factor in FACTOR_KEYS}
    for factor, keys in FACTOR_KEYS.items():
        for key in reversed(keys):
            if sample.get(key) is not None:
                factors[factor] = whole(sample, key, where)
    return factors


def image_size(sample: Sample, where: str) -> tuple[float, float] | None:
    size = sample.get("img_shape")
    if size is None:
        return None
    if not isinstance(size, tuple | list | np.ndarray) or len(size) != 2 or not all(side > 0 for side in size):
        raise UserError(f"{where}: 'img_shape' is {size!r:.40}, not (height, width) in pixels")
    return float(size[0]), float(size[1])


def _is_ntu_name(id: str) -> bool:
    try:
        ntu.parse_name(id)
    except UserError:
        return False
    return True
