"""The search for parameters: real Optuna, real trainings, real tracking; and what it must not look at."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from small_run import annotations, small_params, write_raw

from components.params import Params, parse_params
from components.preprocess import preprocess
from components.tune import tune
from model.errors import UserError

RANGES = {"recipe.lr": {"low": 0.001, "high": 0.1, "log": True}, "network.contrastive_weight": {"choices": [0.0, 0.3]}}


def params_of(ranges: Any = None, protocol: str = "development") -> Params:
    content = small_params(protocol=protocol, tune={"trials": 3, "warm_up": 1, "ranges": ranges or RANGES})
    return parse_params(content, "params")


def packed(place: Path, spoil_test: bool = False) -> Path:
    """The small data; with `spoil_test` every test clip is another, with another label."""
    content = annotations()
    if spoil_test:
        rng = np.random.default_rng(5)
        for sample in content["annotations"]:
            if sample["frame_dir"] in content["split"]["a_test"]:
                sample["keypoint"] = rng.normal(0, 5, sample["keypoint"].shape).astype(np.float32)
                sample["label"] = (sample["label"] + 1) % 3
    raw = write_raw(place / "raw", content)
    preprocess(params_of(), raw, place / "packed")
    return place / "packed"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def trials(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "trials.csv").open()))


def test_a_search_goes_on_and_its_trials_are_child_runs(tmp_path: Path) -> None:
    data, out = packed(tmp_path), tmp_path / "out"
    tune(params_of(), data=data, trials=2, out=out)
    first = trials(out)
    found = tune(params_of(), data=data, out=out)
    rows = trials(out)
    assert len(rows) == 3 and rows[:2] == first and found["trials"] == 3
    complete = [row for row in rows if row["state"] == "complete"]
    assert found["dev/top1"] == max(float(row["dev/top1"]) for row in complete)
    assert all(0.001 <= float(row["recipe.lr"]) <= 0.1 for row in rows)
    assert len({row["recipe.lr"] for row in rows}) == 3
    assert json.loads((out / "best.json").read_text())["values"] == found["values"]
    assert not list((tmp_path / ".work" / "tuning").iterdir())

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small/development/tune")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"tune/joint", "trial 000", "trial 001", "trial 002"}
    for number, row in enumerate(rows):
        run = runs[f"trial {number:03d}"]
        assert run.data.tags["mlflow.parentRunId"] == runs["tune/joint"].info.run_id
        assert run.data.tags["state"] == row["state"] and run.info.status == "FINISHED"
        assert float(run.data.params["recipe.lr"]) == float(row["recipe.lr"])
        assert not any(name.startswith("test") for name in run.data.metrics)
        if row["state"] == "complete":
            assert run.data.metrics["dev/top1/best"] == float(row["dev/top1"])


def test_the_test_split_is_never_looked_at(tmp_path: Path) -> None:
    """Other test clips with other labels change nothing, also where the protocol would choose epochs on them."""
    outs = []
    for name, spoil in (("clean", False), ("spoilt", True)):
        data, out = packed(tmp_path / name, spoil), tmp_path / name / "out"
        tune(params_of(protocol="published"), data=data, trials=2, out=out)
        outs.append(trials(out))
    assert outs[0] == outs[1]


def test_a_trial_behind_the_median_is_pruned(tmp_path: Path) -> None:
    """Of two rates one learns nothing; once the other has shown what can be had, it is stopped after two epochs."""
    content = annotations()
    for sample in content["annotations"]:
        if sample["label"]:  # a raised hand or foot: learned within two epochs
            sample["keypoint"][:, :, 3 if sample["label"] == 1 else 5, 1] += 2
    raw = write_raw(tmp_path / "raw", content)
    preprocess(params_of(), raw, tmp_path / "packed")
    fixed = {"recipe.epochs": {"choices": [4]}, "recipe.repeats": {"choices": [8]}}
    spec = {"trials": 3, "warm_up": 2, "ranges": {**fixed, "recipe.lr": {"choices": [0.05, 1e-9]}}}
    found = tune(parse_params(small_params(tune=spec), "params"), data=tmp_path / "packed", out=tmp_path / "out")
    rows = trials(tmp_path / "out")
    pruned = [row for row in rows if row["state"] == "pruned"]
    assert pruned and all(row["recipe.lr"] == "1e-09" and row["epochs"] == "2" for row in pruned)
    assert found["values"]["recipe.lr"] == 0.05


@pytest.mark.parametrize(
    ("ranges", "said"),
    [
        ({"recipe.lr": {"low": 1}}, "give low and a greater high"),
        ({"recipe.lr": {"low": 0, "high": 1, "log": True}}, "low above 0"),
        ({"recipe.lr": {"low": 0, "high": 1, "choices": [1]}}, "choices stand alone"),
        ({"data.reader": {"choices": ["a"]}}, "data.reader: name a recipe.KEY"),
    ],
)
def test_bad_ranges_are_refused(ranges: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        params_of(ranges)


def test_a_search_that_cannot_work_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="declares nothing to search"):
        tune(parse_params(small_params(), "params"))
    data = packed(tmp_path)
    with pytest.raises(UserError, match="none of 1 trials came to an end; .*no option 'witdh'"):
        tune(params_of({"network.witdh": {"choices": [1]}}), data=data, trials=1, out=tmp_path / "out")
