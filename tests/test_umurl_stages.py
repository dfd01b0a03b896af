"""UmURL's components one after another on a small dataset, what they write and track, and their graph."""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from small_run import annotations, small_params, write_raw

from components import umurl_params
from components.params import Params, parse_params
from components.preprocess import preprocess
from components.umurl import ENCODERS, Features, load_features
from components.umurl_features import umurl_features
from components.umurl_linear import umurl_linear
from components.umurl_plot import umurl_plot
from components.umurl_pretrain import umurl_pretrain
from components.umurl_retrieve import umurl_retrieve
from model.checkpoint import load_checkpoint, publish
from model.ensemble import fuse
from model.errors import UserError
from model.scoretable import load_table
from model.store import open_store
from pipeline.catalogue import params_of, recipe_names
from pipeline.cli import VERBS, add_options, load_function
from pipeline.umurl import table

ROOT = Path(__file__).resolve().parent.parent
UMURL: dict[str, Any] = {
    "network": {"hidden": 8, "frames": 8, "projector_width": 16, "persons": None},
    "pretrain": {"epochs": 3, "batch_size": 8, "lr": 0.01, "milestones": [2]},
    "linear": {"epochs": 6, "batch_size": 8, "milestones": [4], "look_every": 2},
    "plot": {"classes": 2, "perplexity": 4},
}


def changed(**linear: Any) -> Params:
    content = {**UMURL, "linear": {**UMURL["linear"], **linear}}
    return parse_params(small_params(umurl=content), "params.yaml")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Path:
    """A folder in which every stage has run."""
    root = tmp_path_factory.mktemp("umurl")
    shutil.copy(database, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        params, data = changed(), root / "packed"
        preprocess(params, write_raw(root / "raw" / "small", annotations()), data)
        for encoder in ENCODERS:
            umurl_pretrain(params, encoder, data, root / "pretrain" / encoder)
            umurl_features(params, encoder, data, root / "pretrain" / encoder, root / "features" / encoder)
        umurl_linear(params, data, root / "features", root / "linear")
        umurl_retrieve(params, data, root / "features", root / "retrieval")
        umurl_plot(params, data, root / "features", root / "plot")
    return root


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_encoders_differ_and_start_alike(place: Path) -> None:
    store = open_store(place / "packed")
    found = {encoder: load_features(place / "features", encoder, store) for encoder in ENCODERS}
    assert all(features.values.shape == (36, 16) for features in found.values())
    assert not np.allclose(found["umurl"].values, found["untrained"].values)
    assert not np.allclose(found["umurl"].values, found["early_fusion"].values)
    assert [len(read(place / "pretrain" / encoder / "history.json")) for encoder in ENCODERS] == [3, 3, 0]
    assert read(place / "pretrain" / "umurl" / "history.json")[-1]["lr"] == pytest.approx(0.001)


def test_scores_can_be_fused_and_compared(place: Path) -> None:
    metrics = read(place / "linear" / "metrics.json")
    for split in ("development", "a_test"):
        tables = [load_table(place / "linear" / encoder / "scores" / f"last-{split}.npz") for encoder in ENCODERS]
        np.testing.assert_allclose(tables[0].scores.sum(1), 1, atol=1e-6)
        fused = fuse(tables, [1.0, 1.0, 1.0], "three")
        assert len(fused) == metrics["umurl"]["last"][split]["count"]
        right = (tables[0].scores.argmax(1) == tables[0].labels).mean()
        assert metrics["umurl"]["last"][split]["top1"] == pytest.approx(right)
    history = read(place / "linear" / "umurl" / "history.json")
    assert [look["epoch"] for look in history] == [2, 4, 6]
    assert {look["split"] for look in history} == {"development"}  # the test split is not looked at


def test_best_on_test_is_marked(place: Path, tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(database, tmp_path)
    out = tmp_path / "linear"
    umurl_linear(changed(report="best_on_test"), place / "packed", place / "features", out)
    metrics = read(out / "metrics.json")["umurl"]
    looks = read(out / "umurl" / "history.json")
    assert metrics["chosen"] == "best_on_test" and {look["split"] for look in looks} == {"a_test"}
    assert metrics["best_on_test"]["a_test"]["top1"] == max(look["top1"] for look in looks)
    assert not list(out.rglob("last-*.npz"))
    lines = table(read(out / "metrics.json"), read(place / "retrieval" / "metrics.json"))
    assert "no estimate" in lines[-1]


def test_table_holds_every_encoder_and_split(place: Path) -> None:
    linear, retrieval = read(place / "linear" / "metrics.json"), read(place / "retrieval" / "metrics.json")
    lines = table(linear, retrieval)
    for encoder in ENCODERS:
        rows = [line.split() for line in lines if line.startswith(f"{encoder} ")]
        expected = (linear[encoder]["last"]["a_test"]["top1"], retrieval[encoder]["a_test"]["top1"])
        row = rows[list(retrieval[encoder]).index("a_test")]
        assert len(rows) == 2 and row[1:] == [f"{100 * value:.2f}" for value in expected]


def test_picture_shows_the_chosen_classes(place: Path) -> None:
    points = read(place / "plot" / "points.json")
    assert len(points["classes"]) == 2 and set(points["points"]) == {"early fusion", "UmURL"}
    assert len(points["ids"]) == 8 and all(len(found) == 8 for found in points["points"].values())
    assert (place / "plot" / "features.png").read_bytes().startswith(b"\x89PNG")


def test_one_tracked_run_an_encoder(place: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small/development")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"umurl/a", *(f"umurl/{encoder}/s0" for encoder in ENCODERS)}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    metrics = runs["umurl/umurl/s0"].data.metrics
    assert {"train/loss", "train/intra", "dev/linear/top1", "test/linear/top1", "test/retrieval/top1"} <= set(metrics)
    assert metrics["test/linear/top1"] == read(place / "linear" / "metrics.json")["umurl"]["last"]["a_test"]["top1"]


def test_features_of_an_imported_encoder(place: Path, tmp_path: Path) -> None:
    content = load_checkpoint(place / "pretrain" / "umurl" / "encoder.pt")
    card = {key: value for key, value in content.items() if key not in ("format", "state", "epoch")}
    file = publish(tmp_path / "imported.pt", {**card, "data_hash": "", "recipe": {}}, content["state"], 3)
    umurl_features(changed(), "umurl", place / "packed", file, tmp_path / "umurl")
    ours, theirs = ((folder / "umurl" / "features.npz").read_bytes() for folder in (place / "features", tmp_path))
    assert ours == theirs
    foreign = publish(tmp_path / "foreign.pt", {**card, "data_hash": "0" * 32}, content["state"], 3)
    with pytest.raises(UserError, match="foreign.pt: trained on other data"):
        umurl_features(changed(), "umurl", place / "packed", foreign, tmp_path / "umurl")
    other = publish(tmp_path / "other.pt", {**card, "model": "protogcn"}, content["state"], 3)
    with pytest.raises(UserError, match="other.pt: holds 'protogcn'"):
        umurl_features(changed(), "umurl", place / "packed", other, tmp_path / "umurl")


def test_mistakes_are_named(place: Path, tmp_path: Path) -> None:
    store = open_store(place / "packed")
    with pytest.raises(UserError, match="no encoder 'late_fusion'.*umurl, early_fusion, untrained"):
        umurl_pretrain(changed(), "late_fusion", place / "packed", tmp_path / "out")
    with pytest.raises(UserError, match="no such file; run `sixstream umurl-features --encoder umurl`"):
        load_features(tmp_path, "umurl", store)
    with pytest.raises(UserError, match="some clips of these splits have none"):
        Features(np.array([1, 3]), np.zeros((2, 4))).at(np.array([3, 2]))
    (tmp_path / "umurl").mkdir()
    whole = (place / "features" / "umurl" / "features.npz").read_bytes()
    (tmp_path / "umurl" / "features.npz").write_bytes(whole[:-200])
    with pytest.raises(UserError, match="not a readable file of features"):
        load_features(tmp_path, "umurl", store)
    np.savez(tmp_path / "umurl" / "features.npz", positions=[0], values=[[0.0]], data_hash="0" * 32)
    with pytest.raises(UserError, match="of other data"):
        load_features(tmp_path, "umurl", store)
    with pytest.raises(UserError, match="umurl.network.widht.*unknown key"):
        parse_params(small_params(umurl={"network": {"widht": 3}}), "params.yaml")


def test_every_field_is_described_and_defaults_are_the_released_values() -> None:
    models = [
        value
        for value in vars(umurl_params).values()
        if isinstance(value, type) and value.__module__.endswith("umurl_params")
    ]
    assert len(models) == 7
    for model in models:
        assert all(field.description for field in model.model_fields.values()), model
    released = umurl_params.Umurl()
    training = released.pretrain
    assert (training.epochs, training.batch_size, training.lr, training.weight_decay) == (451, 512, 5e-4, 1e-5)
    assert (training.milestones, released.linear.milestones, released.linear.lr) == ([351], [120, 140], 0.03)
    assert (released.network.hidden, released.network.frames, released.network.projector_width) == (1024, 64, 4096)
    assert (released.linear.epochs, released.linear.batch_size, released.linear.report) == (150, 512, "last")


def test_graph_calls_verbs_with_options_that_exist() -> None:
    graph = yaml.safe_load((ROOT / "pipeline" / "unsupervised" / "dvc.yaml").read_text())
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert [item for stage in graph["stages"].values() for item in stage.get("foreach", [])] == 2 * list(ENCODERS)
    for stage in graph["stages"].values():
        stage = stage.get("do", stage)
        program, verb, *arguments = stage["cmd"].split()
        parser = argparse.ArgumentParser(exit_on_error=False)
        add_options(parser, load_function(VERBS[verb]))
        assert program == "sixstream" and parser.parse_args(arguments)
        for dependency in stage["deps"]:
            assert "${" in dependency or (ROOT / dependency).exists(), dependency
        assert stage["params"].pop() == {"runs/${dataset}/entry.json": ["split"]}
        for parameter in stage["params"]:
            node = content
            for part in parameter.split("."):
                node = node[part]


def test_released_recipes_are_whole_parts_of_the_parameters() -> None:
    names = [name for name in recipe_names() if name.startswith("umurl/")]
    assert len(names) == 4
    for name in names:
        part = params_of(name)["umurl"]
        released = umurl_params.Umurl.model_validate(part)
        assert set(part) == set(umurl_params.Umurl.model_fields)  # DVC looks every group up in the file
        assert released.network == umurl_params.UmurlNetwork() and released.linear.report == "best_on_test"
