"""What is registered, once, and when the champion changes."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import CLASSES, PREPARATION, tiny_checkpoint, tiny_store

from components.bundle import load_bundle
from components.files import write_json
from components.params import parse_params
from components.predict import predict
from components.register import gate_of
from components.register import register as register_component
from components.registration import Candidate, Gate, MemberEntry, register
from components.servable import aliased, fetch_bundle, versions
from components.splits import parts_of
from components.tracking import Tracker, connect
from model.errors import UserError
from model.store import Store, open_store

EXPERIMENT = "tiny/split-development"
NAME = "tiny-split-ensemble"
# 12 to train on, 12 to gate on, of which 11 are of class 0, and 12 to test on
LABELS = [0, 1, 2] * 4 + [0] * 11 + [1] + [0, 1, 2] * 4


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return tiny_store(tmp_path_factory.mktemp("data") / "store", clips=36, labels=LABELS)


@pytest.fixture
def tracker(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(database, tmp_path)
    monkeypatch.chdir(tmp_path)
    return connect(tmp_path)


def candidate(store: Store, folder: Path, says: int, **changes: Any) -> Candidate:
    """An ensemble of two networks that always say one class: right on 11, 1 or 0 of the 12 gate clips."""
    members = [
        MemberEntry(
            name=stream,
            registered=f"tiny-split-protogcn-{stream}",
            checkpoint=tiny_checkpoint(folder / f"{stream}-{says}.pt", store, stream, seed=says, bias=says),
            weight=weight,
            run_key=f"run-{stream}-{says}",
            logged="best",
            metrics={"test/top1": 0.25},
        )
        for stream, weight in (("joint", 2.0), ("bone", 1.0))
    ]
    made = Candidate(
        "two", NAME, members, {"test/top1": 0.5}, store.split("train"), store.split("test"), PREPARATION,
        {"dataset": "tiny", "split": "split", "protocol": "development", "code_commit": "abc"},
    )  # fmt: skip
    return replace(made, **changes)


def gate(store: Store) -> Gate:
    return Gate("development", store.split("development"))


def test_first_version_is_the_champion_and_is_made_once(tracker: Tracker, store: Store, tmp_path: Path) -> None:
    first = candidate(store, tmp_path, says=1)
    outcome = register(tracker, EXPERIMENT, None, store, first, gate(store))
    assert outcome["version"] == outcome["champion"] == "1" and outcome["new"]
    assert outcome["message"] == "version 1 is the champion: there was none to beat"
    assert outcome["members"] == {name: f"models:/tiny-split-protogcn-{name}/1" for name in ("joint", "bone")}

    again = register(tracker, EXPERIMENT, None, store, first, gate(store))
    assert again["version"] == "1" and not again["new"] and "already" in again["message"]
    assert len(versions(tracker.client, NAME)) == len(versions(tracker.client, "tiny-split-protogcn-bone")) == 1

    (version,) = versions(tracker.client, NAME)
    assert json.loads(version.tags["members"]) == outcome["members"]
    assert json.loads(version.tags["weights"]) == {"joint": 2.0, "bone": 1.0}
    facts = {"data_md5": store.data_hash, "code_commit": "abc", "protocol": "development"}
    assert (facts | {"metric.test/top1": "0.500000"}).items() <= version.tags.items()
    model = tracker.client.get_logged_model(version.source.removeprefix("models:/"))
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": NAME, "version": "1"}]
    assert {metric.key: metric.value for metric in model.metrics} == {"test/top1": 0.5}
    spec = json.loads((fetch_bundle(outcome["uri"], tmp_path / "fetched") / "bundle.json").read_text())
    assert [member["version"] for member in spec["members"]] == list(outcome["members"].values())
    assert not re.search(r"20\d\d-\d\d|\d{13}", json.dumps(outcome))  # no times


def test_champion_changes_only_for_a_certain_gain(tracker: Tracker, store: Store, tmp_path: Path) -> None:
    def enter(says: int) -> dict[str, Any]:
        return register(tracker, EXPERIMENT, None, store, candidate(store, tmp_path, says), gate(store))

    assert enter(1)["champion"] == "1"  # right on 1 of 12

    worse = enter(2)  # right on none
    assert (worse["version"], worse["champion"]) == ("2", "1")
    assert worse["gate"]["gain"] == pytest.approx(-1 / 12) and "not above zero for certain" in worse["message"]
    assert aliased(tracker.client, NAME, "previous") is None

    better = enter(0)  # right on 11
    assert (better["version"], better["champion"], better["previous"]) == ("3", "3", "1")
    assert better["gate"]["gain"] == pytest.approx(10 / 12) and better["gate"]["low"] > 0
    assert aliased(tracker.client, NAME, "champion") == "3" and aliased(tracker.client, NAME, "previous") == "1"

    back = enter(1)  # registered before, and beaten
    assert (back["version"], back["champion"]) == ("1", "3") and not back["new"]


def test_alias_stays_where_the_two_cannot_be_compared(tracker: Tracker, store: Store, tmp_path: Path) -> None:
    # The champion was trained on the development clips too, as under the protocol `last`.
    everything = np.concatenate([store.split("train"), store.split("development")])
    champion = candidate(store, tmp_path, says=1, trained_on=everything)
    register(tracker, EXPERIMENT, None, store, champion, Gate("development", None, "none"))
    better = candidate(store, tmp_path, says=0)

    outcome = register(tracker, EXPERIMENT, None, store, better, gate(store))
    assert outcome["champion"] == "1" and "trained on 12 of the gate's clips" in outcome["message"]
    outcome = register(tracker, EXPERIMENT, None, store, better, Gate("development", None, "nothing is held out"))
    assert outcome["champion"] == "1" and outcome["message"].endswith("nothing is held out")
    prepared = replace(better, preparation={"prepare": [{"name": "normalise_3d"}]})
    outcome = register(tracker, EXPERIMENT, None, store, prepared, gate(store))
    assert outcome["champion"] == "1" and "prepared otherwise" in outcome["message"]

    shutil.rmtree(next((tmp_path / "mlartifacts").rglob("bundle.json")).parent.parent.parent.parent.parent)
    outcome = register(tracker, EXPERIMENT, None, store, better, gate(store))
    assert outcome["champion"] == "1" and "cannot be re-scored" in outcome["message"]


def test_gate_must_be_apart_from_test_and_training(tracker: Tracker, store: Store, tmp_path: Path) -> None:
    made = candidate(store, tmp_path, says=0)
    for split, what in (("test", "test"), ("train", "training")):
        with pytest.raises(UserError, match=f"are {what} clips, for instance 'clip"):
            register(tracker, EXPERIMENT, None, store, made, Gate(split, store.split(split)))
    assert versions(tracker.client, NAME) == []


def test_registry_that_is_away_is_named(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="127.0.0.1:9: not registered"):
        register(connect(tmp_path), EXPERIMENT, None, store, candidate(store, tmp_path, says=0), gate(store))


PARAMS = {
    "dataset": "tiny",
    "protocol": "last",
    "members": {s: {"model": "protogcn", "stream": s} for s in ("joint", "bone")},
    "ensembles": {"one": {"members": {"joint": 1}}, "two": {"members": {"joint": 2, "bone": 1}}},
    "register": {"ensemble": "two", "gate": "development"},
    "datasets": {
        "tiny": {
            "data": {"reader": "annotations"},
            "split": {"name": "split", "train": "train", "test": ["test"]},
            "recipe": {"test_clips": 2},
        }
    },
}  # fmt: skip
FIGURES = {"test": {"top1": 0.5, "count": 12}}


def test_component_registers_what_the_stages_left(tracker: Tracker, store: Store, tmp_path: Path) -> None:
    params = parse_params(PARAMS, "params.yaml")
    for stream in ("joint", "bone"):
        tiny_checkpoint(tmp_path / "runs" / stream / "train" / "last.pt", store, stream)
        metrics = {"chosen": "last", "last": {"epoch": 3, **FIGURES}, "best": {"epoch": 2, **FIGURES}}
        write_json(tmp_path / "runs" / stream / "scores" / "metrics.json", metrics)
    fused = {name: {"members": spec["members"], **FIGURES} for name, spec in PARAMS["ensembles"].items()}  # type: ignore[attr-defined]
    write_json(tmp_path / "ensembles" / "metrics.json", {"ensembles": fused})
    places = (store.folder, tmp_path / "runs", tmp_path / "ensembles", tmp_path / "registered.json")

    outcome = register_component(params, *places)
    assert json.loads(places[3].read_text()) == outcome
    assert outcome["members"]["bone"] == "models:/tiny-split-protogcn-bone/1"
    runs = tracker.client.search_runs([tracker.experiment_id(params.experiment)])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert parent.info.status == "FINISHED"
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    names = {run.info.run_name for run in children}
    assert {"protogcn/joint/s0", "protogcn/bone/s0", "ensemble/one", "ensemble/two"} <= names
    figures = {run.info.run_name: run.data.metrics.get("test/top1") for run in children}
    assert {figures[name] for name in names - {"joint", "bone"}} == {0.5}

    np.save(tmp_path / "clip.npy", store.clip(0))
    (answer,) = predict(f"models:/{NAME}@champion", [tmp_path / "clip.npy"])
    bundle = fetch_bundle(outcome["uri"], tmp_path / "fetched")
    expected = load_bundle(bundle, "cpu").score(store, np.array([0]), "all").scores
    assert answer["class"] in CLASSES and np.abs(np.array(answer["scores"]) - expected[0]).max() < 1e-6

    first = register_component(params, *places)
    assert not first["new"] and len(tracker.client.search_runs([tracker.experiment_id(params.experiment)])) == len(runs)


def test_gate_is_named_by_the_parameters(store: Store) -> None:
    def named(gate: str, protocol: str = "last") -> Gate:
        params = parse_params({**PARAMS, "protocol": protocol, "register": {"ensemble": "two", "gate": gate}}, "p")
        opened = open_store(store.folder)
        return gate_of(params, opened, parts_of(opened, params))

    assert named("development").positions is None and "holds no development split" in named("development").reason
    assert named("development", "development").positions is not None
    # The split `development` of the tiny store has a name of its own here.
    store.splits["apart"] = store.splits["development"]
    with pytest.raises(UserError, match="'test' is a test split"):
        named("test")
    with pytest.raises(UserError, match="'nowhere' is neither development nor one of"):
        named("nowhere")
