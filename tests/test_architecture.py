"""House rules that a machine can check: the direction of imports, the size of files, no paths of a machine."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCIENCE = {"torch", "numpy", "model"}


def _sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def _imports(path: Path) -> list[tuple[str, bool]]:
    """(top-level name, whether it stands inside a function) of every import in a file."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name.split(".")[0], id(node) not in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.append((node.module.split(".")[0], id(node) not in top))
    return found


@pytest.mark.parametrize("path", _sources("model"), ids=lambda p: str(p.relative_to(ROOT)))
def test_model_imports_science_only(path: Path) -> None:
    for name, lazy in _imports(path):
        allowed = name in SCIENCE or name in sys.stdlib_module_names or (name == "triton" and lazy)
        assert allowed, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", _sources("components"), ids=lambda p: str(p.relative_to(ROOT)))
def test_components_do_not_import_the_pipeline(path: Path) -> None:
    assert "pipeline" not in {name for name, _ in _imports(path)}


def test_triton_is_imported_in_one_file_at_most() -> None:
    users = [path for path in _sources("model") if "triton" in {name for name, _ in _imports(path)}]
    assert len(users) <= 1


@pytest.mark.parametrize("package", ["model", "components", "pipeline", "tests", "benchmarks"])
def test_files_are_of_readable_size(package: str) -> None:
    long = {str(p.relative_to(ROOT)): n for p in _sources(package) if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def test_no_path_of_a_machine_in_tracked_files() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    pattern = re.compile(r"(?:^|[\s\"'=(])/(?:home|root|work|opt/wheels|Users)/|\.\./" + "shared")
    hits = []
    for name in listed.stdout.split():
        path = ROOT / name
        if name != ".ci/run" and path.is_file() and path.suffix in {".py", ".md", ".yaml", ".toml", ".txt", ""}:
            hits += [f"{name}: {m.group()}" for m in pattern.finditer(path.read_text(errors="replace"))]
    assert not hits


def test_numpy_side_of_the_model_does_not_import_torch() -> None:
    """Preprocessing, fusing and reporting must not pay for importing torch."""
    modules = "layouts, store, ntu, synthetic, prepare, protocol, scoretable, metrics, ensemble"
    code = f"import sys; from model import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
