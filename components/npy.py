"""Arrays from .npy and .npz bytes of strangers: plain types only, and never more memory than there are bytes."""

import io
import math
import zipfile
from tokenize import TokenError

import numpy as np

from components.entries import COMPRESSIONS, DAMAGE
from model.errors import UserError

MAX_ARRAYS = 512 << 20  # bytes of a file, and of all the arrays in it
# What numpy raises on headers, which it parses as Python literals.
HEADER_DAMAGE = (
    ValueError, KeyError, TypeError, SyntaxError, TokenError, OverflowError, RecursionError, MemoryError,
)  # fmt: skip
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def parse_npy(content: bytes, where: str) -> np.ndarray:
    """The array of an .npy file. Raises UserError for one of objects, damaged or of another size than it declares."""
    stream = io.BytesIO(content)
    try:
        shape, fortran, dtype = _HEADERS[np.lib.format.read_magic(stream)](stream)
        count = math.prod(shape)
        fits = all(side >= 0 for side in shape) and count * dtype.itemsize == len(content) - stream.tell()
        if dtype.kind not in "biufU" or not fits:
            raise ValueError(f"{dtype} {shape} is not what the file holds, or no array of numbers")
        flat = np.frombuffer(content, dtype, count, stream.tell())
    except HEADER_DAMAGE as error:
        raise UserError(f"{where}: not a readable array ({error}); save numbers with numpy.save") from None
    return flat.reshape(shape, order="F" if fortran else "C")


def parse_npz(content: bytes, where: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name. Raises UserError as `parse_npy`, and for a bomb."""
    arrays = {}
    left = MAX_ARRAYS
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for info in archive.infolist():
                if info.compress_type not in COMPRESSIONS:
                    raise ValueError(f"{info.filename} is of a rare compression")
                with archive.open(info) as stream:
                    member = stream.read(left + 1)
                left -= len(member)
                if left < 0:
                    raise ValueError(f"{info.filename} and those before it have more than {MAX_ARRAYS} bytes")
                arrays[info.filename.removesuffix(".npy")] = parse_npy(member, f"{where}, {info.filename}")
    except DAMAGE as error:
        raise UserError(f"{where}: not a readable .npz file ({error}); save numbers with numpy.savez") from None
    return arrays
