"""Raw files → one packed store, of which every stream is an exact view."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from components.files import staged_dir, write_json
from components.params import Params
from components.readers import READERS
from components.storage import dvc_md5
from model.errors import UserError
from model.prepare import PREPARATIONS
from model.store import Clip, open_store, write_store
from model.streams import STREAMS, stream_numpy


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
    if data.reader not in READERS:
        raise UserError(f"datasets.{params.dataset}.data.reader: {data.reader!r} is none of {', '.join(READERS)}")
    if not raw.exists():
        raise UserError(f"{raw}: no such file or folder; put the raw data of {params.dataset!r} there")
    source = READERS[data.reader](raw, strict=data.strict, **data.options)
    with staged_dir(out) as aside:
        store_folder = aside / "store"
        write_store(
            store_folder,
            _prepared(params, source.clips, source.layout),
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
