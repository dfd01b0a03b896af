"""Files that torch wrote elsewhere: tensors and plain values are read, everything else is an inert placeholder.

A checkpoint of MMEngine or another framework names classes of that framework (a history buffer, a configuration).
None of them is imported and nothing that the file chooses is called: the machine of `components.pickles` reads the
file, tensors are made here from the bytes of their storages, and what is unknown becomes a `Placeholder`.
"""

import io
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from components.pickles import ACTIONS, NAMES, Machine, Name, Refused, load_pickle
from model.errors import UserError

MAGIC = 0x1950A86A20F9469CFC6C  # begins torch's files from before version 1.6
DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
Storages = Callable[[str, torch.dtype, int], Tensor]


class Placeholder:
    """Stands for an object, class or function that was not imported; `name` is what the file calls it."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}, not imported>"


@dataclass(frozen=True)
class TorchFile:
    """What a file holds, and the names in it that were not imported, in order of appearance."""

    content: Any
    placeholders: list[str]


def read_torch_file(path: str | Path) -> TorchFile:
    """Read what `torch.save` wrote, in its present (zip) or its old form, onto the CPU.

    Raises UserError naming the file when it is missing, damaged or not such a file.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            zipped = stream.read(4) == b"PK\x03\x04"
            stream.seek(0)
            return _zip_form(stream) if zipped else _old_form(stream, path.stat().st_size)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Refused as refusal:
        raise UserError(f"{path}: {refusal}, which no checkpoint of weights does; save its state dict alone") from None
    except Exception as error:  # on damaged bytes zipfile, the machine and torch raise almost any type
        raise UserError(
            f"{path}: not a whole file of torch.save ({error or type(error).__name__}); fetch or save it again"
        ) from None


def load_scores_pickle(path: str | Path) -> Any:
    """A plain pickle (not torch.save's) of values, numpy arrays and tensors, as MMAction2 dumps its results.

    Raises UserError as `load_pickle`.
    """
    return load_pickle(path, {("torch.storage", "_load_from_bytes"): _FROM_BYTES, **TENSORS})


def _zip_form(stream: IO[bytes]) -> TorchFile:
    with zipfile.ZipFile(stream) as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        if "data.pkl" not in names or "constants.pkl" in names:
            raise ValueError("an archive, but no checkpoint: TorchScript and other archives are not read")
        if "byteorder" in names and archive.read(names["byteorder"]) != sys.byteorder.encode():
            raise ValueError("its numbers have the byte order of another kind of machine")
        read: dict[str, Tensor] = {}

        def storage(key: str, dtype: torch.dtype, numel: int) -> Tensor:
            if key not in read:
                entry = archive.getinfo(names[f"data/{key}"])
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"its storage {key} is compressed")
                read[key] = _flat(bytearray(archive.read(entry)), dtype)
            return _of_size(read[key], dtype, numel)

        data = archive.read(names["data.pkl"])
        machine = TorchMachine(io.BytesIO(data), len(data), storage)
        return TorchFile(machine.run(), list(machine.placeholders))


def _old_form(stream: IO[bytes], size: int) -> TorchFile:
    """Pickles of a magic number, a version, facts of the machine, the content and the storages' keys; then those."""

    def meta(key: str, dtype: torch.dtype, numel: int) -> Tensor:
        kinds[key] = dtype
        return torch.empty(numel, dtype=dtype, device="meta")

    def storage(key: str, dtype: torch.dtype, numel: int) -> Tensor:
        return _of_size(read[key], dtype, numel)

    if Machine(stream, size).run() != MAGIC:
        raise ValueError("it does not begin as one")
    Machine(stream, size).run()
    about = Machine(stream, size).run()
    if about.get("little_endian") is not (sys.byteorder == "little"):
        raise ValueError("its numbers have the byte order of another kind of machine")
    begin = stream.tell()
    # The content comes before its storages: it is read once to learn their types, and again when they are there.
    kinds: dict[str, torch.dtype] = {}
    TorchMachine(stream, size, meta).run()
    read: dict[str, Tensor] = {}
    for key in Machine(stream, size).run():
        (numel,) = struct.unpack("<q", stream.read(8))
        wanted = numel * kinds[key].itemsize
        if not 0 <= wanted <= size:
            raise ValueError(f"its storage {key} is cut off")
        read[key] = _flat(bytearray(stream.read(wanted)), kinds[key])
        if len(read[key]) != numel:
            raise ValueError(f"its storage {key} is cut off")
    stream.seek(begin)
    machine = TorchMachine(stream, size, storage)
    return TorchFile(machine.run(), list(machine.placeholders))


def _flat(content: bytearray, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)


def _of_size(storage: Tensor, dtype: torch.dtype, numel: Any) -> Tensor:
    if storage.dtype != dtype or len(storage) != numel:
        raise ValueError(f"a storage of {len(storage)} {storage.dtype} is declared as {numel} {dtype}")
    return storage


class TorchMachine(Machine):
    """The stack machine for torch's pickles; `storage(key, dtype, numel)` gives the numbers of a storage, flat."""

    def __init__(self, content: IO[bytes], size: int, storage: Storages) -> None:
        super().__init__(content, size)
        self.storage = storage
        self.placeholders: dict[str, None] = {}
        self.names = {**NAMES, **TENSORS}
        self.actions = {**ACTIONS, "BINPERSID": _persistent, "NEWOBJ": _new_object, "NEWOBJ_EX": _new_object_ex}

    def import_name(self, name: str) -> None:
        module, _, attribute = name.partition(" ")
        if (module, attribute) in self.names:
            super().import_name(name)
        else:
            self.placeholders[f"{module}.{attribute}"] = None
            self.stack.append(Placeholder(f"{module}.{attribute}"))

    def call(self) -> None:
        if isinstance(self.stack[-2], Placeholder):
            self.stack.pop()  # the arguments; what stands for the function now stands for its result
        else:
            super().call()

    def build(self) -> None:
        # A state dict is an OrderedDict with `_metadata`, versions of modules that nothing here asks for.
        if isinstance(self.stack[-2], Placeholder | OrderedDict):
            self.stack.pop()
        else:
            super().build()

    def extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], Placeholder):
            super().extend(items)

    def update(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], Placeholder):
            super().update(items)

    def add(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], Placeholder):
            super().add(items)


def _persistent(machine: Any, _: Any) -> None:
    """("storage", type, key, place, number of elements, …) → the storage as a flat tensor."""
    told = machine.stack.pop()
    if type(told) is not tuple or len(told) < 5 or told[0] != "storage":
        raise Refused(f"holds a reference of the unknown kind {told!r:.60}")
    kind, key, numel = told[1], told[2], told[4]
    if not isinstance(kind, Name) or kind.name not in DTYPES or type(key) is not str or type(numel) is not int:
        raise Refused(f"holds numbers of the unknown kind {kind!r:.60}")
    machine.stack.append(machine.storage(key, DTYPES[kind.name], numel))


def _new_object(machine: Any, _: Any) -> None:
    machine.call()


def _new_object_ex(machine: Any, _: Any) -> None:
    machine.stack.pop()
    machine.call()


def _tensor(machine: Machine, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """`torch._utils._rebuild_tensor_v2`: a view of a storage; torch refuses one that reaches beyond it."""
    if type(storage) is not Tensor or storage.dim() != 1:
        raise Refused("makes a tensor of something that is no storage")
    return storage.as_strided(size, stride, offset)


def _parameter(machine: Machine, tensor: Any, *_: Any) -> Tensor:
    if type(tensor) is not Tensor:
        raise Refused("makes a parameter of something that is no tensor")
    return tensor


def _from_bytes(machine: Machine, content: Any) -> Tensor:
    """`torch.storage._load_from_bytes`, which would run any code; here only the numbers are read."""
    if type(content) is not bytes:
        raise Refused("loads a storage from something that is no bytes")
    machine.spend(len(content))
    storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if not isinstance(storage, torch.storage.TypedStorage):
        raise Refused("loads something that is no storage")
    return torch.empty(0, dtype=storage.dtype).set_(storage)


_FROM_BYTES = Name("torch.storage._load_from_bytes", _from_bytes)
TENSORS = {
    **{("torch._utils", name): Name(name, _tensor) for name in ("_rebuild_tensor", "_rebuild_tensor_v2")},
    ("torch._utils", "_rebuild_parameter"): Name("torch._utils._rebuild_parameter", _parameter),
    **{(module, name): Name(name) for module in ("torch", "torch.cuda") for name in DTYPES},
}
