"""Pickles from strangers: data comes back equal, anything that runs is refused by name."""

import builtins
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.pickles import load_pickle
from model.errors import UserError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def read(tmp_path: Path, content: bytes) -> Any:
    path = tmp_path / "data.pkl"
    path.write_bytes(content)
    return load_pickle(path)


def annotations() -> dict[str, Any]:
    random = np.random.RandomState(0)
    return {
        "split": OrderedDict(train=["a", "b"], test=["c"]),
        "annotations": [
            {
                "frame_dir": name,
                "label": label,
                "total_frames": np.int64(5),
                "img_shape": (480, 640),
                "keypoint": random.randn(2, 5, 17, 2).astype(np.float16),
                "keypoint_score": np.asfortranarray(random.rand(2, 5, 17).astype(np.float32)),
                "valid": {0.5: 3, 0.9: 1},
                "box": None,
            }
            for label, name in enumerate("abc")
        ],
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_annotations_come_back_equal(tmp_path, protocol):
    content = annotations()
    assert same(read(tmp_path, pickle.dumps(content, protocol)), content)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_and_arrays_of_every_admitted_kind(tmp_path, protocol):
    array = np.arange(6.0).reshape(2, 3)
    content = [
        [True, False, None, 0, -1, 255, 65536, -(10**30), 1.5, float("inf"), "é\n'", b"", b"\xff\0", ()],
        [(1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {1, 2}, set(), {}, [], [[[]]], {"k": {1: "v", None: b"w"}}],
        [np.zeros(3, dtype) for dtype in "?bBhHiIlLefdFD"],
        [np.array(["ab", "ç"]), np.array([b"xy", b"z"]), np.zeros((0, 3)), np.array(1.5), np.float32(2), np.bool_(1)],
        [array, array, array.T],
    ]
    found = read(tmp_path, pickle.dumps(content, protocol))
    assert same(found, content)
    assert found[4][0] is found[4][1]


@pytest.mark.parametrize("package", [b"numpy.core", b"numpy._core"])
@pytest.mark.parametrize("protocol", (2, 4, 5))
def test_names_of_numpy_1_and_2_are_known(tmp_path, package, protocol):
    array = np.arange(4, dtype=np.float32)
    content = pickle.dumps(array, protocol)
    if protocol < 4:
        content = content.replace(b"numpy._core", package)
    elif package == b"numpy.core":
        for module in (b"multiarray", b"numeric"):
            old, new = b"numpy._core." + module, b"numpy.core." + module
            content = content.replace(bytes([len(old)]) + old, bytes([len(new)]) + new)
        content = content[:3] + struct.pack("<Q", len(content) - 11) + content[11:]
    assert same(read(tmp_path, content), array)


def test_arrays_cannot_be_written_to(tmp_path):
    for protocol in (2, 5):
        assert not read(tmp_path, pickle.dumps(np.ones(3), protocol)).flags.writeable


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


HOSTILE = {
    "posix.system": Calls(os.system, "touch owned"),
    "builtins.eval|__builtin__.eval": Calls(builtins.eval, "1 + 1"),
    "builtins.exec|__builtin__.exec": Calls(builtins.exec, "1"),
    "builtins.getattr|__builtin__.getattr": Calls(getattr, "a", "upper"),
    "builtins.__import__|__builtin__.__import__": Calls(builtins.__import__, "os"),
    "numpy.load|numpy.lib": Calls(np.load, "x.npy"),
    "numpy.*memmap": Calls(np.memmap, "x", "u1", "w+", 0, 4),
    "numpy.*fromfile": Calls(np.fromfile, "x"),
    "collections.defaultdict|functools|builtins|__builtin__": Calls(__import__("functools").partial, print),
    "pathlib": Path("x"),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", HOSTILE)
def test_code_is_refused_by_its_name_and_does_not_run(tmp_path, monkeypatch, name, protocol):
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps({"split": {}, "annotations": [HOSTILE[name]]}, protocol)
    with pytest.raises(UserError, match=rf"data\.pkl: the pickle names ({name}).*write the file again"):
        read(tmp_path, content)
    assert not (tmp_path / "owned").exists()


def test_torch_files_are_refused(tmp_path):
    path = tmp_path / "old.pkl"
    torch.save({"x": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="old.pkl.*more follows"):
        load_pickle(path)
    torch.save({"x": torch.ones(2)}, path)
    with pytest.raises(UserError, match="old.pkl"):
        load_pickle(path)
    with zipfile.ZipFile(path) as archive:
        inner = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        with pytest.raises(UserError, match="the pickle names torch"):
            read(tmp_path, archive.read(inner))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "array",
    [
        np.array([1, "a", None], object),
        np.zeros(2, [("x", "f4"), ("y", object)]),
        np.zeros(2, [("x", "f4")]),
        np.array(["2020-01-01"], "M8[D]"),
        np.zeros(2, ">f4"),
        np.ma.masked_array([1, 2], [0, 1]),
    ],
)
def test_arrays_of_anything_but_plain_numbers_are_refused(tmp_path, array, protocol):
    with pytest.raises(UserError, match="the pickle (holds|names)"):
        read(tmp_path, pickle.dumps(array, protocol))


class WithPersistentId(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return "a storage" if isinstance(obj, set) else None


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_persistent_ids_are_refused(tmp_path, protocol):
    stream = io.BytesIO()
    WithPersistentId(stream, protocol).dump([{1}])
    with pytest.raises(UserError, match="uses the instruction (BIN)?PERSID"):
        read(tmp_path, stream.getvalue())


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


ARRAY = name("numpy._core.multiarray", "_reconstruct") + name("numpy", "ndarray") + b"K\0\x85C\1b\x87R"
FLOATS = name("numpy", "dtype") + text("f4") + b"\x89\x88\x87R"
OBJECTS = name("numpy", "dtype") + text("O") + b"\x89\x88\x87R"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        # names that lead on from an admitted one
        (name("numpy", "ndarray.__setstate__") + b".", "names numpy.ndarray.__setstate__"),
        (name("numpy._core", "multiarray._reconstruct") + b".", "names numpy._core.multiarray"),
        (name("collections", "OrderedDict.fromkeys") + b".", "names collections.OrderedDict.fromkeys"),
        (name("builtins", "bytes.fromhex") + b".", "names builtins.bytes.fromhex"),
        (text("os") + b"K\1\x93.", "names something that is not text"),
        (b"(ios\nsystem\n.", "uses the instruction INST"),
        (b"(cos\nsystem\n" + text("ls") + b"o.", "names os.system"),
        (name("collections", "OrderedDict") + b")\x81.", "uses the instruction NEWOBJ"),
        (b"\x82\1.", "uses the instruction EXT1"),
        (b"\x97.", "uses the instruction NEXT_BUFFER"),
        # calling what is no function
        (text("f") + b")R.", "calls a value"),
        (name("numpy", "ndarray") + b"K\4\x85\x85R.", "calls numpy.ndarray"),
        (name("builtins", "bytes") + b"J\xff\xff\xff\x7f\x85R.", "not a whole pickle"),
        # state where none belongs
        (b"}" + b"}b.", "sets the state of a dict"),
        (b"]" + b"}b.", "sets the state of a list"),
        (ARRAY + b"(K\1K\1\x85" + OBJECTS + b"\x89]tb.", "array of the type 'O'"),
        (ARRAY + b"(K\1K\1\x85" + FLOATS + b"\x89]tb.", "array of objects"),
        (ARRAY + b"(K\1K\2\x85" + FLOATS + b"\x89C\4....tb.", "does not fit its 4 bytes"),
        (ARRAY + b"(K\1J\xff\xff\xff\xff\x85" + FLOATS + b"\x89C\4....tb.", "of the shape"),
        (ARRAY + b"(K\1J\xff\xff\xff\x7f\x85" + FLOATS + b"\x89C\0tb.", "does not fit its 0 bytes"),
        (FLOATS + b"(K\3" + text("<") + b"N" + text("x") + b"\x85}tb.", "records"),
        (FLOATS + b"(K\3" + text(">") + b"NNNtb.", "foreign byte order"),
        # a built array is not built again
        (ARRAY + 2 * (b"(K\1K\1\x85" + FLOATS + b"\x89C\4....tb") + b".", "sets the state of a ndarray"),
        # sizes that the file cannot back
        (b"\x8e" + struct.pack("<Q", 2**62) + b"x.", "not a whole pickle"),
        (b"\x96" + struct.pack("<Q", 2**40) + b"x.", "not a whole pickle"),
        (b"\x8d" + struct.pack("<Q", 2**40) + b"x.", "not a whole pickle"),
        (b"\x8b\xff\xff\xff\x7fx.", "not a whole pickle"),
        (ARRAY + b"(K\1)" + name("numpy", "dtype") + text("S99999999") + b"\x89\x88\x87R\x89C\0tb.", "does not fit"),
        (name("numpy", "dtype") + text("S0") + b"\x89\x88\x87R.", "type 'S0'"),
        # keys whose hash takes for ever
        (b"}" + b")" + b"2\x86" * 60 + b"K\1s.", "uses a tuple as a key"),
        # nesting
        (b"(" * 100_000 + b".", "nests deeper"),
        # a part of a program, and a whole one with something left
        (b"", "empty|whole"),
        (b".", "middle of a value"),
        (b"K\1K\2.", "middle of a value"),
        (b"K\1.K\1.", "more follows its end"),
        (b"h\5.", "not a whole pickle"),
        (b"0.", "not a whole pickle"),
        (b"\x86.", "lacks items"),
        (b"\x00\xff garbage", "not a whole pickle"),
    ],
)
def test_crafted_programs_end_in_one_message(tmp_path, program, message):
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, program)
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


def test_a_copy_bomb_is_stopped(tmp_path):
    long = b"X" + struct.pack("<I", 100_000) + b"x" * 100_000 + b"\x940"
    once = name("_codecs", "encode") + b"h\0" + text("latin1") + b"\x86R"
    with pytest.raises(UserError, match="copies more than it holds"):
        read(tmp_path, b"\x80\4" + long + b"](" + once * 1000 + b"e.")


def test_a_huge_memo_index_costs_nothing(tmp_path):
    assert read(tmp_path, b"K\7r\xff\xff\xff\x7f.") == 7


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_cut_anywhere_is_refused_by_file(tmp_path, protocol):
    content = pickle.dumps(annotations(), protocol)
    for end in range(0, len(content), 23):
        with pytest.raises(UserError, match=r"data\.pkl"):
            read(tmp_path, content[:end])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_flipped_bits_give_a_message_or_data(tmp_path, protocol):
    random = np.random.RandomState(protocol)
    content = pickle.dumps(annotations(), protocol)
    admitted = (
        dict,
        list,
        tuple,
        set,
        frozenset,
        str,
        bytes,
        bytearray,
        int,
        float,
        type(None),
        np.ndarray,
        np.generic,
    )
    for _ in range(400):
        flipped = bytearray(content)
        for position in random.randint(len(content), size=random.randint(1, 4)):
            flipped[position] ^= 1 << random.randint(8)
        try:
            found = read(tmp_path, bytes(flipped))
        except UserError as error:
            assert "data.pkl" in str(error)
        else:
            assert isinstance(found, admitted)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from(
            [b"(", b")", b"]", b"}", b"\x8f", b"0", b"1", b"2", b"N", b"K\1", b"h\0", b"\x94", b"q\0", b"a", b"e", b"s"]
            + [b"u", b"t", b"l", b"d", b"\x85", b"\x86", b"\x87", b"\x90", b"\x91", b"\x93", b"R", b"b", b"C\4...."]
            + [text("f4"), text("<"), ARRAY, FLOATS, name("builtins", "set"), name("numpy._core.multiarray", "scalar")]
        ),
        max_size=40,
    )
)
def test_any_program_of_known_instructions_gives_a_message_or_data(tmp_path, parts):
    try:
        read(tmp_path, b"".join(parts) + b".")
    except UserError as error:
        assert "data.pkl" in str(error)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.pkl: cannot be read"):
        load_pickle(tmp_path / "nowhere.pkl")


def test_real_sets_equal_what_python_reads(data_dir):
    for path in sorted(data_dir.glob("*.pkl")):
        assert same(load_pickle(path), pickle.loads(path.read_bytes())), path
