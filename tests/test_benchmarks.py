"""What the benchmarks count, and that they run where there is nothing but `model`."""

import ast
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.end_to_end import random_store
from benchmarks.measuring import alternating, clips, counted
from model import create_model
from model.nets.norm import by_module

FOLDER = Path(__file__).parent.parent / "benchmarks"


def test_operations_and_bytes_of_a_product():
    a, b = torch.zeros(30, 50), torch.zeros(50, 20)
    operations, traffic = counted(lambda: (a @ b).view(20, 30).add_(1))
    assert operations == 2 * 30 * 50 * 20
    # Product: three matrices; view: nothing; sum in place: its operand and its result.
    assert traffic == 4 * (30 * 50 + 50 * 20 + 30 * 20 + 2 * 30 * 20)


def test_operations_of_onednn_count():
    """As many as of the modules."""
    net = create_model("dgstgcn", layout="coco", num_classes=3, base_channels=16).eval()
    x, _ = clips(net, 2, 6)

    def forward():
        with torch.no_grad():
            net(x)

    operations, _ = counted(forward)
    with by_module():
        expected, _ = counted(forward)
    assert operations == pytest.approx(expected, rel=0.02)


def test_the_best_round_counts_and_the_first_warms_up():
    calls = []
    best = alternating({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, "cpu")
    assert calls == ["a", "b"] * 3 and set(best) == {"a", "b"} and max(best.values()) < 1


def test_clips_with_missing_second_persons():
    net = create_model("stgcn", layout="nturgb+d", num_classes=3, base_channels=4)
    x, _ = clips(net, 4, 6, alone=0.75)
    assert x.shape == (4, 2, 6, 25, 3)
    assert [bool(clip[1].any()) for clip in x] == [False, False, False, True] and x[:, 0].any()


def test_the_store_of_the_training_loop(tmp_path):
    store = random_store(tmp_path / "store", 8, alone=0.5)
    assert len(store.ids) == 8 and store.persons.tolist() == [1] * 4 + [2] * 4


# That of the data reads files by the components' readers, and has no use for a GPU.
@pytest.mark.parametrize(
    "path", sorted(path for path in FOLDER.rglob("*.py") if path.stem != "data"), ids=lambda path: path.stem
)
def test_imports_need_no_other_package(path):
    tree = ast.parse(path.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    packages = {name.split(".")[0] for name in names}
    assert packages <= {"torch", "numpy", "model", "benchmarks"} | sys.stdlib_module_names
