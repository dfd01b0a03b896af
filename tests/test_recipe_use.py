"""Using a released recipe: naming it in params.yaml, changing it, listing it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_run import annotations, small_params, write_raw

from components.params import parse_params
from model.errors import UserError
from pipeline.catalogue import expand, load_expanded, merge, params_of, recipe_names, released
from pipeline.cli import main
from pipeline.workspace import ROOT, fill_workspace


def short(recipe: Any, **entry: Any) -> dict[str, Any]:
    data = {"reader": "annotations"}
    return {"datasets": {"mine": {"data": data, "recipe": recipe, **entry}}}


def test_a_name_is_written_out_with_what_the_entry_leaves_open() -> None:
    entry = expand(short("protogcn/ntu60-xsub"))["datasets"]["mine"]
    assert entry["split"] == {"name": "xsub", "train": "xsub_train", "test": ["xsub_val"]}
    assert entry["data"] == {"reader": "annotations", "prepare": [{"name": "normalise_3d"}], "dtype": "float16"}
    assert entry["recipe"]["epochs"] == 150 and entry["recipe"]["released"] == "protogcn/ntu60-xsub"


def test_changes_and_the_entrys_own_values_go_before_the_recipe() -> None:
    changes = {"name": "protogcn/ntu60-xsub", "epochs": 3, "network": {"protogcn": {"base_channels": 24}}}
    changes["streams"] = {"bone": {"augment": []}}
    own = {"split": {"name": "a", "train": "a_train", "test": ["a_test"]}}
    content = short(changes, **own)
    content["datasets"]["mine"]["data"]["prepare"] = []
    entry = expand(content)["datasets"]["mine"]
    assert entry["split"] == own["split"] and entry["data"]["prepare"] == [] and entry["data"]["dtype"] == "float16"
    recipe = entry["recipe"]
    assert recipe["epochs"] == 3 and recipe["lr"] == 0.025
    assert recipe["network"]["protogcn"] == {"base_channels": 24, "num_subsets": 8, "subset_ratio": 0.125}
    assert recipe["streams"]["bone"]["augment"] == [] and len(recipe["streams"]["kbone"]["augment"]) == 2
    assert released("protogcn/ntu60-xsub").recipe["epochs"] == 150  # the recipe itself is as it was


def test_the_reader_of_a_recipe_comes_with_its_options_or_not_at_all() -> None:
    own = expand(short("protogcn/kinetics400"))["datasets"]["mine"]["data"]
    assert own["reader"] == "annotations" and "options" not in own
    content = {"datasets": {"mine": {"recipe": "protogcn/kinetics400"}}}
    released_reader = expand(content)["datasets"]["mine"]["data"]
    assert released_reader["reader"] == "kinetics" and released_reader["options"]["valid_ratio"] == 0


def test_entries_without_a_name_stay_as_they_are() -> None:
    for content in ({"datasets": {"mine": {"recipe": {"epochs": 3}}}}, {"datasets": None}, None, []):
        assert expand(content) == content


def test_an_unknown_name_is_refused_with_close_ones(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(short("protogcn/ntu60xsub")))
    with pytest.raises(UserError, match=r"params.yaml: datasets.mine.recipe: no .* 'protogcn/ntu60xsub'; did you mean"):
        load_expanded(path)


def test_a_name_that_was_not_written_out_is_not_taken_for_defaults() -> None:
    content = params_of("protogcn/finegym")
    content["datasets"]["finegym"]["recipe"] = {"name": "protogcn/finegym"}
    with pytest.raises(UserError, match="datasets.finegym.recipe.name: unknown key"):
        parse_params(content, "params.yaml")


def test_pre_training_is_pasted_and_not_named() -> None:
    with pytest.raises(UserError, match="datasets.mine.recipe: umurl/ntu60-xsub is of pre-training"):
        expand(short("umurl/ntu60-xsub"))


def test_later_bases_and_own_keys_win() -> None:
    assert merge({"a": {"b": 1, "c": [1, 2]}, "d": 1}, {"a": {"c": [3]}, "d": {}}) == {"a": {"b": 1, "c": [3]}, "d": {}}


def test_the_verb_prints_a_file_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "protogcn/ntu60-xview"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# protogcn/ntu60-xview: joint 96.33") and "&id" not in printed
    (tmp_path / "params.yaml").write_text(printed)
    assert load_expanded(tmp_path / "params.yaml") == parse_params(params_of("protogcn/ntu60-xview"), "")
    assert main(["recipes", "protogcn/ntu61"]) == 2


def test_the_list_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(recipe_names())]] == recipe_names()
    line = next(line for line in lines if line.startswith("protogcn/ntu60-xsub "))
    assert line.split()[1:3] == ["7.48", "135.0"] and line.endswith("v1 93.81")


def _stages_run(place: Path, goal: str) -> set[str]:
    """`dvc repro` of a goal; the stages that it ran."""
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": tools, "DVC_NO_ANALYTICS": "1"}
    command = [sys.executable, "-m", "dvc", "repro", goal]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")}


def test_dvc_follows_what_a_named_recipe_says(tmp_path: Path) -> None:
    content = small_params()
    content["datasets"]["small"]["recipe"] = {"name": "protogcn/ntu60-xsub", "clip_length": 12}
    fill_workspace(tmp_path, content)
    write_raw(tmp_path / "data" / "raw" / "small", annotations())
    assert _stages_run(tmp_path, "preprocess") == {"entry", "preprocess"}
    lock = yaml.safe_load((tmp_path / "dvc.lock").read_text())["stages"]
    tracked = lock["preprocess"]["params"]["runs/small/entry.json"]["data"]
    assert tracked["dtype"] == "float16" and tracked["prepare"] == [{"name": "normalise_3d"}]
    # A file of recipes that changes without changing this entry runs nothing further; a changed entry does.
    with open(tmp_path / "pipeline" / "recipes" / "protogcn.yaml", "a") as stream:
        stream.write("# a remark\n")
    assert _stages_run(tmp_path, "preprocess") == {"entry"}
    content["datasets"]["small"]["data"]["dtype"] = "float32"
    fill_workspace(tmp_path, content)
    assert _stages_run(tmp_path, "preprocess") == {"entry", "preprocess"}
