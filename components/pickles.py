"""Reading pickles from strangers: numbers, text, containers and numpy arrays, and nothing that runs.

A pickle is a program. Here its instructions (as `pickletools` reads them) are carried out by a small machine
that knows data only: it imports nothing and calls nothing that the file chooses. The few names that numpy
arrays need stand for functions of this module, which check every size before they use it; any other name is
refused as it appears.
"""

import mmap
import pickletools
import sys
from collections import OrderedDict
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from model.errors import UserError

# Booleans, signed and unsigned integers, floats, complex numbers, bytes and text: never objects or records.
DTYPE_KINDS = "biufcSU"
MAX_NESTING = 1000  # marks open at once; annotation files use about five
KEYS = (str, bytes, int, float, bool, type(None))


class Refused(Exception):
    """The pickle asks for something that is not data."""


class Name:
    """A name that the pickle imports; `call` is what calling it does here."""

    def __init__(self, name: str, call: Callable[..., Any] | None = None) -> None:
        self.name, self.call = name, call


def load_pickle(path: str | Path, names: dict[tuple[str, str], Name] | None = None) -> Any:
    """Return the content of a pickle of protocol 0 to 5 that holds plain Python values and numpy arrays.

    `names` admits further names, (module, name) → what they stand for. Arrays come back read-only. Memory is
    bound by the size of the file, whatever sizes it declares. Raises UserError naming the file and what it
    asked for when that is more than data, and when the file is missing, truncated or no pickle.
    """
    path = Path(path)
    try:
        with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            machine = Machine(content, len(content))
            machine.names = {**NAMES, **(names or {})}
            result = machine.run()
            if content.tell() != len(content):
                raise ValueError("more follows its end")
            return result
    except Refused as refusal:
        raise UserError(
            f"{path}: the pickle {refusal}. Only plain Python values and numpy arrays are admitted; "
            "write the file again with those alone"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:
        # A damaged program can fail in any way; whatever it was, the file is at fault.
        raise UserError(
            f"{path}: not a whole pickle file ({error or type(error).__name__}); copy or write it again"
        ) from None


class Machine:
    """The stack machine. `stack` holds the items since the last mark, `marks` the stacks below it."""

    def __init__(self, content: mmap.mmap | IO[bytes], size: int) -> None:
        self.content = content
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        # Arrays that wait for their state, by identity.
        self.announced: dict[int, np.ndarray] = {}
        # What calls may copy in all: an honest file decodes and stores each of its bytes once.
        self.budget = 2 * size
        self.names, self.actions = NAMES, ACTIONS

    def run(self) -> Any:
        for opcode, argument, _ in pickletools.genops(cast(IO[bytes], self.content)):
            name = opcode.name
            if name in _PUSHES:
                self.stack.append(argument)
            elif name in self.actions:
                self.actions[name](self, argument)
            elif name not in _IGNORED:
                raise Refused(f"uses the instruction {name}" + (f" ({argument!r:.80})" if argument else ""))
        if len(self.stack) != 1 or self.marks:
            raise ValueError("it ends in the middle of a value")
        return self.stack[0]

    def pop_mark(self, _: Any = None) -> list[Any]:
        below = self.marks.pop()
        items, self.stack = self.stack, below
        return items

    def spend(self, size: int) -> None:
        self.budget -= size
        if self.budget < 0:
            raise Refused("copies more than it holds")

    def mark(self, _: Any) -> None:
        if len(self.marks) == MAX_NESTING:
            raise Refused(f"nests deeper than {MAX_NESTING}")
        self.marks.append(self.stack)
        self.stack = []

    def pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def take(self, count: int) -> None:
        if len(self.stack) < count:
            raise ValueError("a tuple lacks items")
        items = tuple(self.stack[len(self.stack) - count :])
        self.stack[len(self.stack) - count :] = [items]

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise Refused(f"appends to a {type(target).__name__}")
        target.extend(items)

    def update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, OrderedDict):
            raise Refused(f"sets items of a {type(target).__name__}")
        target.update(_pairs(items))

    def add(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not set:
            raise Refused(f"adds to a {type(target).__name__}")
        target.update(map(_key, items))

    def set_one(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.update([key, value])

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def import_name(self, name: str) -> None:
        module, _, attribute = name.partition(" ")
        function = self.names.get((module, attribute))
        if function is None:
            raise Refused(f"names {f'{module}.{attribute}':.80}")
        self.stack.append(function)

    def import_from_stack(self, _: Any) -> None:
        attribute, module = self.stack.pop(), self.stack.pop()
        if type(attribute) is not str or type(module) is not str:
            raise Refused("names something that is not text")
        self.import_name(f"{module} {attribute}")

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Name) or function.call is None or type(arguments) is not tuple:
            raise Refused(f"calls {function.name if isinstance(function, Name) else 'a value'}")
        self.stack.append(function.call(self, *arguments))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, np.dtype):
            _check_dtype_state(state)
        elif isinstance(target, np.ndarray) and self.announced.pop(id(target), None) is target:
            _fill(self, target, state)
        else:
            raise Refused(f"sets the state of a {type(target).__name__}")


_PUSHES = frozenset(
    "INT LONG LONG1 LONG4 BININT BININT1 BININT2 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES "
    "SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8".split()
)
_IGNORED = frozenset("PROTO FRAME STOP".split())
ACTIONS: dict[str, Callable[[Machine, Any], Any]] = {
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_SET": lambda machine, _: machine.stack.append(set()),
    "MARK": Machine.mark,
    "POP": Machine.pop,
    "POP_MARK": Machine.pop_mark,
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "LIST": lambda machine, _: _push_made(machine, list),
    "TUPLE": lambda machine, _: _push_made(machine, tuple),
    "DICT": lambda machine, _: _push_made(machine, lambda items: dict(_pairs(items))),
    "FROZENSET": lambda machine, _: _push_made(machine, lambda items: frozenset(map(_key, items))),
    "TUPLE1": lambda machine, _: machine.take(1),
    "TUPLE2": lambda machine, _: machine.take(2),
    "TUPLE3": lambda machine, _: machine.take(3),
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_mark()),
    "SETITEM": Machine.set_one,
    "SETITEMS": lambda machine, _: machine.update(machine.pop_mark()),
    "ADDITEMS": lambda machine, _: machine.add(machine.pop_mark()),
    "PUT": Machine.put,
    "BINPUT": Machine.put,
    "LONG_BINPUT": Machine.put,
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    "GET": lambda machine, index: machine.stack.append(machine.memo[index]),
    "BINGET": lambda machine, index: machine.stack.append(machine.memo[index]),
    "LONG_BINGET": lambda machine, index: machine.stack.append(machine.memo[index]),
    "GLOBAL": lambda machine, name: machine.import_name(name),
    "STACK_GLOBAL": Machine.import_from_stack,
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
}


def _push_made(machine: Machine, make: Callable[[list[Any]], Any]) -> None:
    items = machine.pop_mark()
    machine.stack.append(make(items))


def _key(key: Any) -> Any:
    # Only plain keys: hashing a tuple of tuples of tuples can take for ever.
    if type(key) not in KEYS:
        raise Refused(f"uses a {type(key).__name__} as a key")
    return key


def _pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    return [(_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True)]


def _dtype(machine: Machine, code: Any, *flags: Any) -> np.dtype:
    """`numpy.dtype('f4', False, True)`: align and copy do not matter for plain numbers."""
    if type(code) is not str or code[:1] not in DTYPE_KINDS or not code[1:].strip("0").isdecimal():
        raise Refused(f"holds an array of the type {code!r:.80}")
    return np.dtype(code)


def _check_dtype_state(state: Any) -> None:
    """A plain dtype's state: version, byte order, no subtype, no names, no fields, size, alignment, flags."""
    if type(state) is not tuple or len(state) < 5 or state[2:5] != (None, None, None):
        raise Refused("holds an array of records")
    if state[1] not in ("|", "=", "<" if sys.byteorder == "little" else ">"):
        raise Refused(f"holds numbers of the foreign byte order {state[1]!r}")


def _announce(machine: Machine, kind: Any, shape: Any, code: Any) -> np.ndarray:
    """`_reconstruct(ndarray, (0,), b'b')`: an empty array whose state follows."""
    if kind is not _NDARRAY:
        raise Refused("holds an array that is not a plain numpy array")
    array = np.empty(0, np.int8)
    machine.announced[id(array)] = array
    return array


def _fill(machine: Machine, array: np.ndarray, state: Any) -> None:
    """Give an announced array its (version, shape, dtype, Fortran order, content)."""
    if type(state) is not tuple or len(state) != 5 or type(state[3]) not in (bool, int):
        raise Refused("holds an array of an unknown form")
    _, shape, dtype, fortran, content = state
    content = _checked_content(machine, dtype, content, shape)
    array.__setstate__((1, shape, dtype, bool(fortran), bytes(content)))  # type: ignore[arg-type]
    array.flags.writeable = False


def _from_buffer(machine: Machine, content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """`numpy._core.numeric._frombuffer`: arrays in protocol 5."""
    content = _checked_content(machine, dtype, content, shape)
    flat = np.frombuffer(content, dtype) if content else np.empty(0, dtype)
    array = flat.reshape(shape, order="F" if order == "F" else "C")
    array.flags.writeable = False
    return array


def _scalar(machine: Machine, dtype: Any, content: Any = b"") -> Any:
    content = _checked_content(machine, dtype, content, ())
    return np.frombuffer(content, dtype)[0]


def _checked_content(machine: Machine, dtype: Any, content: Any, shape: Any) -> bytes | bytearray:
    """The bytes of an array, when they are exactly as many as its type and shape say."""
    if not isinstance(dtype, np.dtype):
        raise Refused("holds an array of no known type")
    if type(content) is str:  # written by Python 2
        content = content.encode("latin-1")
    if type(content) not in (bytes, bytearray):
        raise Refused("holds an array of objects")
    if type(shape) is not tuple or not all(type(n) is int and n >= 0 for n in shape):
        raise Refused(f"declares an array of the shape {shape!r:.80}")
    if prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"an array {shape!r:.80} of {dtype.name} does not fit its {len(content)} bytes")
    machine.spend(len(content))
    if dtype.kind == "U" and content and np.frombuffer(content, np.uint32).max() > sys.maxunicode:
        raise ValueError("an array of text holds numbers that are no characters")
    return content


def _encode(machine: Machine, text: Any, encoding: Any) -> bytes:
    """`_codecs.encode`: how protocols 0 to 2 write bytes."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise Refused("encodes something other than bytes")
    machine.spend(len(text))
    return text.encode("latin-1")


def _empty_bytes(machine: Machine) -> bytes:
    """`bytes()`: how protocols 0 to 2 write b''."""
    return b""


def _ordered(machine: Machine) -> OrderedDict[Any, Any]:
    return OrderedDict()


def _set(machine: Machine, items: Any) -> set[Any]:
    if type(items) is not list:
        raise Refused("makes a set of something that is not a list")
    machine.spend(len(items))
    return set(map(_key, items))


_NDARRAY = Name("numpy.ndarray")
NAMES = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): Name("numpy.dtype", _dtype),
    ("_codecs", "encode"): Name("_codecs.encode", _encode),
    ("collections", "OrderedDict"): Name("collections.OrderedDict", _ordered),
    **{(module, "set"): Name("set", _set) for module in ("builtins", "__builtin__")},
    **{(module, "bytes"): Name("bytes", _empty_bytes) for module in ("builtins", "__builtin__")},
    **{
        (f"{package}.{module}", name): Name(f"{package}.{module}.{name}", function)
        for package in ("numpy.core", "numpy._core")  # NumPy 1 and 2
        for module, name, function in (
            ("multiarray", "_reconstruct", _announce),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}
