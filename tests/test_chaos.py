"""The short form of `make chaos`: one training, three kills."""

from pathlib import Path

from chaos import chaos


def test_three_kills_cost_no_bit(tmp_path: Path, database: Path) -> None:
    lines = chaos(tmp_path, runs=1, kills=3, seed=1, epochs=3, database=database)
    assert lines[1].startswith("run1: identical after 3 kills")
