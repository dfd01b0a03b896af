"""What the stages of UmURL share: the encoders that are compared, their tracked run, and features on disk.

Every stage but the first reads features of fixed encoders, computed once by `umurl-features`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from components.files import write_bytes
from components.params import Params
from components.splits import DEVELOPMENT, parts_of, scored_splits
from components.tracked import data_of
from components.tracked_run import TrackedRun
from components.tracking import connect
from components.versions import code_version, content_key
from model.arrays import npz_bytes
from model.errors import UserError
from model.store import Store

# Encoder → head on which it is pre-trained. All have the same backbone and start from the same seed.
ENCODERS = {"umurl": "projectors", "early_fusion": "fused_projector", "untrained": "projectors"}
TRAIN = "train"
FEATURES = "features.npz"


@dataclass(frozen=True)
class Features:
    """Features (N, F) float32 of the clips at `positions` (N,) of a store, ascending."""

    positions: np.ndarray
    values: np.ndarray

    def at(self, positions: np.ndarray) -> np.ndarray:
        """The features of these clips. Raises UserError when one of them has none."""
        if not np.isin(positions, self.positions).all():
            raise UserError("features: some clips of these splits have none; run `sixstream umurl-features` again")
        return self.values[np.searchsorted(self.positions, positions)]


def head_of(encoder: str) -> str:
    """The head of an encoder. Raises UserError naming the known ones."""
    if encoder not in ENCODERS:
        raise UserError(f"no encoder {encoder!r}; there are {', '.join(ENCODERS)}")
    return ENCODERS[encoder]


def splits_of(params: Params, store: Store) -> dict[str, np.ndarray]:
    """The positions of the training clips (`TRAIN`) and of every split that is scored, by name."""
    parts = parts_of(store, params)
    return {TRAIN: parts.train, **scored_splits(parts)}


def main_test(params: Params) -> str:
    """The split by which results are compared."""
    return params.entry.split.test[0]


def save_features(folder: Path, features: Features, store: Store) -> Path:
    """Write an encoder's features of clips of `store` into its folder; equal features are equal bytes."""
    arrays = {"positions": features.positions, "values": features.values, "data_hash": np.array(store.data_hash)}
    return write_bytes(folder / FEATURES, npz_bytes(arrays))


def load_features(folder: Path, encoder: str, store: Store) -> Features:
    """Read an encoder's features. Raises UserError when they are missing, damaged or of other data than `store`."""
    path = folder / encoder / FEATURES
    again = f"run `sixstream umurl-features --encoder {encoder}`"
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = Features(stored["positions"], stored["values"])
            data_hash = str(stored["data_hash"])
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {again}") from None
    except Exception as error:  # numpy and zipfile raise many types on damaged bytes
        raise UserError(f"{path}: not a readable file of features ({error}); {again}") from None
    if data_hash != store.data_hash:
        raise UserError(f"{path}: features of other data than {store.folder} holds; {again}")
    return found


def pretraining_key(params: Params, encoder: str, data_hash: str) -> str:
    """Content key of an encoder: equal for equal code, parameters and data."""
    chosen = params.umurl.model_dump(include={"seed", "network", "views", "pretrain"})
    split = params.entry.split.model_dump()
    return content_key(code_version(), encoder, chosen, split, params.protocol, data_hash)


@contextmanager
def encoder_run(params: Params, encoder: str, store: Store) -> Iterator[TrackedRun]:
    """The tracked run of an encoder, which its stages share, under one run of `sixstream umurl`."""
    tracker = connect(Path.cwd())
    split = params.entry.split.name
    parent = tracker.parent_run(
        params.experiment,
        content_key("umurl", params.umurl.model_dump(), split, store.data_hash),
        f"umurl/{split}",
        {"dataset": params.dataset, "protocol": params.protocol, "encoders": ", ".join(ENCODERS)},
        data_of(params, store),
    )
    tags = {"model": "umurl", "encoder": encoder, "seed": str(params.umurl.seed), "dataset": params.dataset}
    tags |= {"split": split, "protocol": params.protocol, "data_hash": store.data_hash}
    key = pretraining_key(params, encoder, store.data_hash)
    name = f"umurl/{encoder}/s{params.umurl.seed}"
    status = "FAILED"
    try:
        with tracker.member_run(params.experiment, name, key, parent, tags, data=data_of(params, store)) as run:
            yield run
        status = "FINISHED"
    finally:
        tracker.end_parent(params.experiment, parent, status)


def metric_name(params: Params, split: str, figure: str) -> str:
    """`dev/…`, `test/…` for the main test split, `test/<split>/…` for others, as members' metrics are named."""
    names = {DEVELOPMENT: "dev", main_test(params): "test"}
    return f"{names.get(split, f'test/{split}')}/{figure}"
