"""Parameters: the committed file is valid, mistakes are named with their remedy, options are layered."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.compute import Compute, Resources, Toleration
from components.params import Dataset, Ensemble, Member, Params, Recipe, load_params, parse_params
from model.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture()
def content() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "params.yaml").read_text())


def test_the_committed_file_holds_six_streams_and_three_ensembles() -> None:
    params = load_params(ROOT / "params.yaml")
    assert len({member.stream for member in params.members.values()}) == 6
    assert [len(e.members) for e in params.ensembles.values()] == [2, 4, 6]
    assert params.experiment == "sample/development"


def test_every_field_is_described() -> None:
    for model in (Params, Dataset, Recipe, Member, Ensemble, Compute, Resources, Toleration):
        assert all(field.description for field in model.model_fields.values())


def _set(content: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(content)
    node = changed
    *parents, last = path.split("/")
    for part in parents:
        node = node[part]
    node[last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("datasets/sample/recipe/epoch", 3, ["datasets.sample.recipe.epoch", "unknown key", "did you mean 'epochs'"]),
        ("datasets/sample/recipe/batch_size", 0, ["datasets.sample.recipe.batch_size", "greater than 0"]),
        ("members/protogcn-joint-s0/stream", "joints", ["members.protogcn-joint-s0.stream", "'joint'"]),
        ("dataset", "kinetics", ["dataset", "'kinetics' is not defined", "sample"]),
        ("ensembles/two/members", {"nobody": 1}, ["ensembles.two.members", "'nobody' is not defined"]),
        ("register/ensemble", "seven", ["register.ensemble", "'seven' is not defined", "two, four, six"]),
        ("protocol", "test", ["protocol", "'development', 'last' or 'published'"]),
        ("colour", "red", ["colour", "unknown key"]),
        ("members/a b", {"model": "protogcn", "stream": "joint"}, ["members.a b"]),
    ],
)
def test_a_mistake_names_field_and_remedy(content: dict[str, Any], path: str, value: Any, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        parse_params(_set(content, path, value), "params.yaml")
    for word in ["params.yaml: ", *words]:
        assert word in str(error.value)


def test_missing_key_is_named(content: dict[str, Any]) -> None:
    del content["members"]
    with pytest.raises(UserError, match="params.yaml: members: missing"):
        parse_params(content, "params.yaml")


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("dataset: [")
    with pytest.raises(UserError, match="not YAML"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_bytes(b"dataset: \xff\xfe")
    with pytest.raises(UserError, match="not YAML"):
        load_params(tmp_path / "params.yaml")


def test_member_overrides_stream_overrides_recipe(content: dict[str, Any]) -> None:
    content = _set(content, "datasets/sample/recipe/network", {"protogcn": {"a": 1, "b": 1, "c": 1}})
    content = _set(content, "datasets/sample/recipe/streams", {"joint": {"network": {"b": 2, "c": 2}, "augment": []}})
    content = _set(content, "members/protogcn-joint-s0/network", {"c": 3})
    params = parse_params(content, "here")
    assert params.network_options("protogcn-joint-s0") == {"a": 1, "b": 2, "c": 3}
    assert params.network_options("protogcn-bone-s0") == {"a": 1, "b": 1, "c": 1}
    assert params.augmentation("protogcn-joint-s0") == []
    assert params.augmentation("protogcn-bone-s0") == params.entry.recipe.augment
