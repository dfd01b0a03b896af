"""The table of registered models."""

import copy
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import tiny_checkpoint, tiny_store

from components.files import write_json
from components.params import parse_params
from components.register import register
from components.tracked import member_run
from components.tracking import connect
from model.complexity import complexity, usual_input
from pipeline.cli import main

FIGURES = {"joint": 0.5, "bone": 0.25, "joint_motion": 0.125}
PARAMS: dict[str, Any] = {
    "dataset": "tiny",
    "protocol": "last",
    "members": {stream: {"model": "protogcn", "stream": stream} for stream in FIGURES},
    "ensembles": {"all": {"members": dict.fromkeys(FIGURES, 1)}, "two": {"members": {"joint": 2, "bone": 1}}},
    "register": {"ensemble": "two"},
    "datasets": {
        "tiny": {
            "data": {"reader": "annotations"},
            "split": {"name": "split", "train": "train", "test": ["test"]},
            "recipe": {"test_clips": 2, "released": "protogcn/ntu60-xsub"},
        }
    },
}


def registered(folder: Path, params: dict[str, Any]) -> None:
    """What training, evaluation, fusion and registration leave of three untrained members."""
    store = tiny_store(folder / "store")
    checked = parse_params(params, "here")
    for number, stream in enumerate(FIGURES):
        tiny_checkpoint(folder / "runs" / stream / "train" / "last.pt", store, stream, seed=number)
        scored = {"epoch": 3, "test": {"top1": FIGURES[stream], "mean_class": 0.1, "count": 4}}
        write_json(folder / "runs" / stream / "scores" / "metrics.json", {"chosen": "last", "last": scored})
        with member_run(checked, stream, store) as run:
            run.log_params(checked.for_training(stream))
            run.log_final({"test/top1": FIGURES[stream], "test/mean_class": 0.1})
    fused = {
        name: {"members": spec["members"], "test": {"top1": 0.75, "mean_class": 0.6, "count": 4}}
        for name, spec in params["ensembles"].items()
    }
    write_json(folder / "ensembles" / "metrics.json", {"ensembles": fused})
    register(checked, store.folder, folder / "runs", folder / "ensembles", folder / "registered.json")


def test_zoo_lists_members_fusions_and_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    assert main(["zoo"]) == 2  # nothing is registered yet
    registered(tmp_path, copy.deepcopy(PARAMS))
    assert main(["zoo", "--out", "zoo.md"]) == 0
    lines = Path("zoo.md").read_text().splitlines()
    assert "## tiny/last, split" in lines
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]
    rows = {cell[0]: cell[1:] for cell in cells if cell[0] != "---"}
    assert list(rows) == [
        "protogcn, joint",
        "protogcn, bone",
        "protogcn, joint_motion, s0",
        "**all** (bone 1, joint 1, joint_motion 1)",
        "**two** (bone 1, joint 2)",
    ]
    from model.checkpoint import build_network, load_checkpoint

    net = build_network(load_checkpoint(tmp_path / "runs/bone/train/last.pt"), "")
    size = complexity(net, usual_input(net, 2, 16))
    bone = rows["protogcn, bone"]
    assert bone[:3] == ["protogcn/ntu60-xsub", "25.00", "10.00"]
    assert bone[3:6] == [
        f"{size.parameters:,}",
        f"{size.published / 1e9:.3f} G",
        "`models:/tiny-split-protogcn-bone/1`",
    ]
    # A member outside the registered ensemble has figures and a run, but no version.
    assert rows["protogcn, joint_motion, s0"][1:6] == ["12.50", "10.00", "-", "-", "-"]
    assert rows["**two** (bone 1, joint 2)"][1:6] == ["75.00", "60.00", "-", "-", "`models:/tiny-split-ensemble/1`"]
    assert rows["**all** (bone 1, joint 1, joint_motion 1)"][5] == "-"
    client = connect(tmp_path).client
    assert {client.get_run(row[6].removeprefix("run `")[:-1]).info.status for row in rows.values()} == {"FINISHED"}
