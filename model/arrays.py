"""Arrays as the bytes of an .npz that are the same on every machine."""

import io
import zipfile
from collections.abc import Mapping

import numpy as np


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """An uncompressed .npz: equal arrays are equal bytes, without pickles.

    np.savez writes zip headers that differ between patch versions of Python, and takes the names `file` and
    `allow_pickle` for its own arguments.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in arrays.items():
            # ZipInfo's own date is 1980.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as stream:
                np.lib.format.write_array(stream, np.asarray(array), allow_pickle=False)
    return content.getvalue()
