"""Configuration files read without running them: values, bases, and refusals by file and line."""

from pathlib import Path

import pytest

from components.pyconfig import read_config
from model.errors import UserError
from model.reference import model_options

# As a user of PYSKL has it.
PYSKL = """
graph = 'coco'
modality = "b"
'''a comment'''
model = dict(
    type='RecognizerGCN',
    backbone=dict(
        type='STGCN',
        gcn_adaptive='init',
        gcn_with_res=True,
        tcn_type='mstcn',
        tcn_ms_cfg=[(3, 1), (3, 2), (3, 3), (3, 4), ('max', 3), '1x1'],
        graph_cfg=dict(layout=graph, mode='spatial')),
    cls_head=dict(type='GCNHead', num_classes=400, in_channels=256))
ann_file = 'data/k400/k400_hrnet.pkl'
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_configuration_of_pyskl(tmp_path: Path) -> None:
    path = write(tmp_path, "j.py", PYSKL)
    found = read_config(path)
    assert found["modality"] == "b" and found["model"]["backbone"]["graph_cfg"]["layout"] == "coco"
    options = model_options(found["model"])
    assert (options["name"], options["num_classes"], options["layout"].name) == ("stgcnpp", 400, "coco")


def test_values_of_every_admitted_kind(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "kinds.py",
        "x = y = 3\nbatch = 16 * 8 // x - 1\nlr = -0.1 * batch / 4 % 7\nb = None\nn = True\n"
        "pipeline = [dict(type='A'), *[dict(type='B')]]\ntest = pipeline + [dict(type='C', **dict(p=.5))] * 2\n"
        "name = 'work_dirs/' + 'j'\nkeys = {'a': list((1, 2)), **{'b': tuple([1])}, 3: dict(), None: 1}\nraw = b'x'\n"
        "empty = list()\n",
    )
    assert read_config(path) == {
        "x": 3,
        "y": 3,
        "batch": 41,
        "lr": pytest.approx(-4.1 / 4 % 7),
        "b": None,
        "n": True,
        "pipeline": [{"type": "A"}, {"type": "B"}],
        "test": [{"type": "A"}, {"type": "B"}, {"type": "C", "p": 0.5}, {"type": "C", "p": 0.5}],
        "name": "work_dirs/j",
        "keys": {"a": [1, 2], "b": (1,), 3: {}, None: 1},
        "raw": b"x",
        "empty": [],
    }


def test_bases_join_as_in_mmengine(tmp_path: Path) -> None:
    write(tmp_path, "base/runtime.py", "default_scope = 'mmaction'\nhooks = dict(logger=dict(interval=100), timer=1)\n")
    write(
        tmp_path,
        "stgcn/keypoint-2d.py",
        "model = dict(type='RecognizerGCN', backbone=dict(type='STGCN', graph_cfg=dict(layout='coco',"
        " mode='stgcn_spatial')), cls_head=dict(type='GCNHead', num_classes=60, in_channels=256))\npipeline = [1, 2]\n",
    )
    write(
        tmp_path,
        "stgcn/keypoint-3d.py",
        "_base_ = ['../base/runtime.py', 'keypoint-2d.py']\n"
        "model = dict(backbone=dict(graph_cfg=dict(layout='nturgb+d')))\npipeline = [3]\n"
        "hooks = dict(logger=dict(_delete_=True, every=5))\n",
    )
    path = write(tmp_path, "mine.py", "_base_ = 'stgcn/keypoint-3d.py'\nmodel = dict(cls_head=dict(num_classes=7))\n")
    found = read_config(path)
    assert found["hooks"] == {"logger": {"every": 5}, "timer": 1} and found["pipeline"] == [3]
    assert found["default_scope"] == "mmaction" and "_base_" not in found
    options = model_options(found["model"])
    assert (options["name"], options["layout"].name, options["num_classes"]) == ("stgcn", "nturgb+d", 7)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("import os", "`import os` is not an assignment"),
        ("x = __import__('os').system('touch ran')", "is more than data"),
        ("x = open('ran', 'w')", "is more than data"),
        ("x = [i for i in (1, 2)]", "is more than data"),
        ("x = f'{graph}'", "is more than data"),
        ("x = graph.upper()", "is more than data"),
        ("x = graph[0]", "is more than data"),
        ("x = {{_base_.graph}}", "is more than data"),
        ("x = 1 if graph else 2", "is more than data"),
        ("x = lambda: 0", "is more than data"),
        ("x = ...", "is more than data"),
        ("x = unknown", "`unknown` is no name assigned above"),
        ("x = dict([('a', 1)])", "is more than data"),
        ("x = dict(**graph)", "no dictionary"),
        ("x = [*graph]", "no list"),
        ("x = list(graph)", "no list"),
        ("x = tuple([1], [2])", "no list"),
        ("x = {(1, 2): 3}", "as a key"),
        ("x = -graph", "no number"),
        ("x = 2 ** 9", "more than numbers and lists"),
        ("x = graph * 3", "more than numbers and lists"),
        ("x = 'a%s' % graph", "more than numbers and lists"),
        ("x = 1 / 0", "division by zero"),
        ("x = [0] * 1000000000", "more than 100000 items"),
        ("x = 9999999999 * 9999999999", "64 bits"),
        ("x.y = 1", "no plain name"),
        ("a, b = 1, 2", "no plain name"),
        ("x: int = 1", "not an assignment"),
        ("for i in (1,): pass", "not an assignment"),
        ("del graph", "not an assignment"),
        ("x = = 3", "no valid Python"),
    ],
)
def test_all_else_is_refused_with_file_and_line(tmp_path, monkeypatch, line: str, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "bad.py", f"graph = 'coco'\n\n{line}\n")
    with pytest.raises(UserError) as error:
        read_config("bad.py")
    assert str(error.value).startswith("bad.py, line 3: ") and words in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_doubling_lines_do_not_fill_the_memory(tmp_path: Path) -> None:
    path = write(tmp_path, "bomb.py", "x = [0]\n" + "x = x + x\n" * 60 + "y = 3\n")
    with pytest.raises(UserError, match="line 18: .*more than 100000 items"):
        read_config(path)
    with pytest.raises(UserError, match="deep.py"):
        read_config(write(tmp_path, "deep.py", "x = " + "-" * 20000 + "1"))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.py": "_base_ = 'b.py'", "b.py": "_base_ = 'a.py'"}, "a base of itself"),
        ({"a.py": "_base_ = 'gone.py'"}, "gone.py: cannot be read"),
        ({"a.py": "_base_ = '/etc/passwd'"}, "relative to this one"),
        ({"a.py": "_base_ = 'mmaction::x.py'"}, "relative to this one"),
        ({"a.py": "_base_ = [3]"}, "relative to this one"),
        ({"a.py": "_base_ = ['b.py', 'c.py']", "b.py": "x = 1", "c.py": "x = 2"}, "both assign x"),
        ({"a.py": "_base_ = 'b.py'\nx = dict(p=dict(a=1))", "b.py": "x = dict(p=3)"}, "a.py: x: p is a dictionary"),
        ({"a.py": "_base_ = 'b.py'", "b.py": "y = 1\nx = z"}, "b.py, line 2"),
    ],
)
def test_bases_that_cannot_be_read_are_named(tmp_path: Path, files: dict[str, str], words: str) -> None:
    for name, text in files.items():
        write(tmp_path, name, text)
    with pytest.raises(UserError, match=words):
        read_config(tmp_path / "a.py")


def test_files_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "b.py").write_bytes(b"x = '\x00'")
    for name in ("a.py", "b.py"):
        with pytest.raises(UserError, match=name):
            read_config(tmp_path / name)
