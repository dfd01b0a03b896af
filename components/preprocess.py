"""Raw files → one packed store, of which every stream is an exact view."""

import sys
from pathlib import Path

import numpy as np

from components.files import staged_dir, write_json
from components.params import Params
from components.preparation import prepare_clips
from components.readers import open_source
from components.storage import dvc_md5
from model.errors import UserError
from model.progress import counted
from model.store import Store, open_store, write_store
from model.streams import STREAMS, apply_stream


def preprocess(params: Params, raw: Path, out: Path, materialise: str = "") -> None:
    """Read, check and prepare the raw files of the dataset and write the packed store.

    Args:
        params: the parameters; `datasets.<dataset>.data` is used.
        raw: raw folder or file, as the reader expects it.
        out: folder of the packed store.
        materialise: also write this stream (or several, comma separated) as `<stream>.npy` beside the joints.

    Raises:
        UserError: a file, sample or option that cannot be used, by name.
    """
    data = params.entry.data
    wanted = [name for name in materialise.split(",") if name]
    for name in wanted:
        if name not in STREAMS:
            raise UserError(f"--materialise {name}: no such stream; there are {', '.join(STREAMS)}")
    source = open_source(data, raw)
    total = len(set().union(*source.splits.values()))
    with staged_dir(out) as aside:
        store_folder = aside / "store"
        write_store(
            store_folder,
            prepare_clips(counted(source.clips, total, "clips"), data.prepare, source.layout),
            layout=source.layout,
            classes=source.classes,
            splits=source.splits,
            channels=source.channels,
            data_hash=dvc_md5(raw),
            source=data.reader,
            dtype=data.dtype,
        )
        store = open_store(store_folder)
        for name in wanted:
            np.save(store_folder / f"{name}.npy", _materialised(store, name))
        write_json(store_folder / "excluded.json", [list(item) for item in source.excluded])
        for path in store_folder.iterdir():
            path.rename(aside / path.name)
        store_folder.rmdir()
    store = open_store(out)
    print(
        f"{out}: {len(store)} clips of {len(store.classes)} classes, {int(store.frames.sum())} frames, "
        f"{len(source.excluded)} set aside",
        file=sys.stderr,
    )


def _materialised(store: Store, stream: str) -> np.ndarray:
    """A stream of every clip, in the rows of the store; (rows, V, C) float32."""
    rows = np.empty(store.joints.shape, np.float32)
    for i in range(len(store)):
        first = int(store.offset[i])
        clip = apply_stream(store.clip(i), store.layout, stream, store.channels)
        rows[first : first + clip.shape[0] * clip.shape[1]] = clip.reshape(-1, *clip.shape[2:])
    return rows
