"""A bundle: a folder that predicts. One or several checkpoints with weights, and how raw joints are prepared.

    bundle.json     members (name, stream, weight, checkpoint, md5, test clips, registered version), layout,
                    classes, channels, persons, preparation, data hash, lineage
    <member>.pt     published checkpoints
    trained.npy     sorted hashes of the ids trained on, by which a later gate knows clips that were seen

A bundle of one member is what a run logs; the registered ensemble is a bundle of all its members. Clips go
through the packed store, the batches, the scoring and the fusion of the pipeline itself, so the scores are the
pipeline's.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from components.files import read_json, staged_dir, write_json
from components.storage import file_md5
from model.errors import UserError
from model.layouts import Layout
from model.scoretable import ScoreTable
from model.store import Clip, Store, open_store, write_store

FORMAT = "sixstream-bundle/1"
BATCH = 64  # network inputs at a time
FIELDS = ("members", "layout", "classes", "channels", "persons", "preparation", "data_hash", "lineage", "name")


@dataclass(frozen=True)
class BundleMember:
    """A member of a bundle: its published checkpoint and its weight in the fusion.

    `test_clips` None: as many as its recipe says. `version` names its registered version, if it has one.
    """

    name: str
    checkpoint: Path
    weight: float = 1.0
    test_clips: int | None = None
    version: str | None = None


@dataclass(frozen=True)
class Described:
    """What a bundle needs to know of the data, where there is no store of them; fields as those of `Store`."""

    layout: Layout
    classes: list[str]
    channels: list[str]
    persons: np.ndarray
    data_hash: str
    folder: Path


def write_bundle(
    folder: str | Path,
    name: str,
    members: Sequence[BundleMember],
    store: Store | Described,
    preparation: Mapping[str, Any],
    lineage: Mapping[str, Any] | None = None,
    trained_on: Sequence[str] | None = None,
) -> Path:
    """Write a bundle of `members` trained on `store`.

    `preparation` is how raw clips became the store: {"prepare": the steps, "dtype": the stored type} and whatever
    else describes the source. `lineage` is plain values (commit, split, protocol) that predicting does not need;
    `trained_on` the ids of the training clips.
    Raises UserError naming the checkpoint that is of other data, classes or joints.
    """
    from model.checkpoint import load_checkpoint
    from model.layouts import layout_to_dict

    if not members:
        raise UserError(f"bundle {name!r}: names no member")
    with staged_dir(folder) as aside:
        listed = []
        for member in members:
            checkpoint = load_checkpoint(member.checkpoint)
            _check_origin(checkpoint, member.checkpoint, store)
            file = f"{member.name}.pt"
            shutil.copyfile(member.checkpoint, aside / file)
            listed.append({
                "name": member.name,
                "model": checkpoint["model"],
                "stream": checkpoint["recipe"]["stream"],
                "weight": float(member.weight),
                "checkpoint": file,
                "md5": file_md5(aside / file),
                "epoch": checkpoint["epoch"],
                "test_clips": member.test_clips or checkpoint["recipe"]["test_clips"],
                "version": member.version,
            })  # fmt: skip
        if trained_on is not None:
            np.save(aside / "trained.npy", np.unique(_hashes(trained_on)))
        write_json(
            aside / "bundle.json",
            {
                "format": FORMAT,
                "name": name,
                "members": listed,
                "layout": layout_to_dict(store.layout),
                "classes": list(store.classes),
                "channels": list(store.channels),
                # Clips of one person alone would be averaged over fewer persons than in training.
                "persons": int(store.persons.max()),
                "preparation": dict(preparation),
                "data_hash": store.data_hash,
                "lineage": dict(lineage or {}),
            },
        )
    return Path(folder)


def read_bundle(folder: str | Path) -> dict[str, Any]:
    """The description of a bundle. Raises UserError when there is none, or a checkpoint is not its own."""
    folder = Path(folder)
    spec = read_json(folder / "bundle.json")
    whole = isinstance(spec, dict) and all(field in spec for field in FIELDS)
    if not whole or spec.get("format") != FORMAT:
        raise UserError(f"{folder / 'bundle.json'}: not the description of a {FORMAT} bundle; write it again")
    for member in spec["members"]:
        path = folder / member["checkpoint"]
        if not path.is_file() or path.parent != folder or file_md5(path) != member["md5"]:
            raise UserError(f"{path}: missing or not the checkpoint of this bundle; write the bundle again")
    return spec


def bundle_key(folder: str | Path) -> str:
    """What the bundle computes, as a hash: equal for equal weights, members and preparation, whatever the origin."""
    spec = read_bundle(folder)
    members = [{name: m[name] for name in ("name", "weight", "md5", "test_clips")} for m in spec["members"]]
    parts = [members, *(spec[name] for name in ("layout", "classes", "channels", "persons", "preparation"))]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def load_bundle(folder: str | Path, device: str | None = None) -> "Predictor":
    """Open a bundle for predicting, on the GPU where there is one. Raises UserError when it is damaged."""
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Predictor(Path(folder), read_bundle(folder), device)


@dataclass(frozen=True)
class Predictor:
    """An opened bundle. `spec` is its bundle.json."""

    folder: Path
    spec: dict[str, Any]
    device: str

    @property
    def classes(self) -> list[str]:
        return list(self.spec["classes"])

    @cached_property
    def _members(self) -> list[tuple[dict[str, Any], Any, dict[str, Any]]]:
        """Each member's entry, network and recipe."""
        from model.checkpoint import build_network, load_checkpoint

        opened = []
        for member in self.spec["members"]:
            checkpoint = load_checkpoint(self.folder / member["checkpoint"])
            recipe = {**checkpoint["recipe"], "test_clips": member["test_clips"]}
            recipe["persons"] = recipe["persons"] or self.spec["persons"]
            opened.append((member, build_network(checkpoint).to(self.device), recipe))
        return opened

    def seen(self, ids: Sequence[str]) -> int | None:
        """How many of these clips the members were trained on; None when the bundle does not say."""
        path = self.folder / "trained.npy"
        return int(np.isin(_hashes(ids), np.load(path, allow_pickle=False)).sum()) if path.is_file() else None

    def score(self, store: Store, positions: np.ndarray, split: str, name: str | None = None) -> ScoreTable:
        """Fused scores of clips of a packed store that was prepared as the bundle's own data were.

        Raises UserError when the store has other classes, joints or channels.
        """
        from model.ensemble import fuse
        from model.feeding import test_clips
        from model.score import score_clips

        for what, theirs, own in (
            ("classes", list(store.classes), self.classes),
            ("joints", list(store.layout.joints), list(self.spec["layout"]["joints"])),
            ("channels", list(store.channels), list(self.spec["channels"])),
        ):
            if theirs != own:
                raise UserError(f"{self.folder}: has other {what} than {store.folder}; score data of its own kind")
        tables = [
            ScoreTable(
                ids=[store.ids[position] for position in positions],
                labels=store.labels[positions],
                scores=score_clips(net, test_clips(store, positions, recipe, self.device), BATCH, self.device),
                split=split,
                member=member["name"],
                data_hash=store.data_hash,
                classes=self.classes,
            )
            for member, net, recipe in self._members
        ]
        return fuse(tables, [member["weight"] for member, _, _ in self._members], name or self.spec["name"])

    def predict(self, clips: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Scores (N, K) float32 and labels (N,) int64 of raw clips.

        A clip is an array (M, T, V, C) or (T, V, C) in the units of the training data, or a dictionary with
        `joints`, and optionally `id` and `image_size` (height, width; for coordinates in pixels). Raises UserError
        naming the clip that cannot be used.
        """
        from components.preparation import prepare_clips
        from model.layouts import layout_from_dict

        if len(clips) == 0:
            raise UserError("no clip to predict: give at least one")
        layout = layout_from_dict(self.spec["layout"], f"{self.folder / 'bundle.json'}, field 'layout'")
        names = clip_ids(clips)
        raw = [self._clip(name, clip) for name, clip in zip(names, clips, strict=True)]
        with tempfile.TemporaryDirectory(prefix="sixstream-") as scratch:
            folder = Path(scratch) / "store"
            write_store(
                folder,
                prepare_clips(raw, self.spec["preparation"].get("prepare", []), layout),
                layout=layout,
                classes=self.classes,
                splits={"predict": names},
                channels=self.spec["channels"],
                data_hash="",
                source="predict",
                dtype=self.spec["preparation"].get("dtype", "float32"),
            )
            store = open_store(folder)
            scores = self.score(store, np.arange(len(names)), "predict").scores
        return scores, scores.argmax(axis=1).astype(np.int64)

    def answer(self, clips: Sequence[Any]) -> list[dict[str, Any]]:
        """Predictions as plain values: {"id", "class", "label", "scores"} a clip."""
        scores, labels = self.predict(clips)
        return [
            {"id": name, "class": self.classes[label], "label": int(label), "scores": row.tolist()}
            for name, label, row in zip(clip_ids(clips), labels, scores, strict=True)
        ]

    def _clip(self, name: str, clip: Any) -> Clip:
        size = None
        if isinstance(clip, Mapping):
            if "joints" not in clip:
                raise UserError(f"clip {name}: has no 'joints'; give an array (persons, frames, joints, channels)")
            size = clip.get("image_size")
            clip = clip["joints"]
        try:
            joints = np.asarray(clip)
            if joints.dtype != np.float16:
                joints = joints.astype(np.float32)
        except (TypeError, ValueError):
            raise UserError(f"clip {name}: not a full array of numbers; every frame needs all joints") from None
        if joints.ndim == 3:
            joints = joints[None]
        wanted = (len(self.spec["layout"]["joints"]), len(self.spec["channels"]))
        if joints.ndim != 4 or joints.shape[2:] != wanted:
            raise UserError(
                f"clip {name}: joints have the shape {joints.shape}, not (persons, frames, {wanted[0]}, "
                f"{wanted[1]}): the model takes the layout {self.spec['layout']['name']!r} and the channels "
                f"{', '.join(self.spec['channels'])}"
            )
        return Clip(name, 0, joints, {}, (float(size[0]), float(size[1])) if size is not None else None)


def clip_ids(clips: Sequence[Any]) -> list[str]:
    """The clips' own ids, or their numbers; a doubled id gets its number added, as a store wants them unique."""
    names: list[str] = []
    taken: set[str] = set()
    for number, clip in enumerate(clips):
        name = str(clip["id"]) if isinstance(clip, Mapping) and clip.get("id") is not None else str(number)
        name = f"{name}#{number}" if name in taken else name
        taken.add(name)
        names.append(name)
    return names


def _hashes(ids: Sequence[str]) -> np.ndarray:
    """(N,) uint64: eight bytes an id, so that a bundle stays small."""
    digests = [hashlib.sha256(id.encode()).digest()[:8] for id in ids]
    return np.frombuffer(b"".join(digests), np.uint64)


def _check_origin(checkpoint: dict[str, Any], path: Path, store: Store | Described) -> None:
    for field, what, wanted in (
        ("classes", "classes", list(store.classes)),
        ("data_hash", "data", store.data_hash),
    ):
        if checkpoint[field] != wanted:
            raise UserError(f"{path}: trained on other {what} than {store.folder} holds; train the member again")
