"""Shared fixtures. Real data and the full golden files come through two environment variables."""

import os
from pathlib import Path

import pytest
from golden_report import LINES
from hypothesis import settings

SMALL_GOLDEN = Path(__file__).parent / "golden"

# The same examples in every run: what passes stays passed until the code changes. `make fuzz` draws new ones.
settings.register_profile("steady", derandomize=True)
settings.register_profile("random", derandomize=False, print_blob=True)
settings.load_profile("steady")


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value or not Path(value).is_dir():
        pytest.skip(f"{variable} names no folder: set it to run this test")
    return Path(value)


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The full set of golden files (SIXSTREAM_GOLDEN)."""
    return _folder("SIXSTREAM_GOLDEN")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The real skeleton sets (SIXSTREAM_DATA)."""
    return _folder("SIXSTREAM_DATA")


@pytest.fixture(scope="session")
def small_golden() -> Path:
    """The golden arrays that are committed."""
    return SMALL_GOLDEN


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty tracking database; copying it is quicker than making one for every test."""
    from components.tracking import connect

    folder = tmp_path_factory.mktemp("database")
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        connect(folder)
    return folder / "mlflow.db"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`-m golden` chooses the tests against the full golden files."""
    for item in items:
        if "golden_dir" in getattr(item, "fixturenames", ()):
            item.add_marker("golden")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """With `-m golden`, a line per comparison."""
    if config.option.markexpr == "golden" and LINES:
        terminalreporter.section("golden cases")
        for line in LINES:
            terminalreporter.write_line(line)
