"""Members and parameters named on the command line of a workspace."""

import pytest

from model.errors import UserError
from pipeline.workspace import assign, keep_members

CONTENT = {
    "members": {
        "protogcn-joint-s0": {"model": "protogcn", "stream": "joint", "seed": 0},
        "protogcn-bone-s0": {"model": "protogcn", "stream": "bone", "seed": 0},
    },
    "ensembles": {"two": {"members": {"protogcn-joint-s0": 2, "protogcn-bone-s0": 1}}},
    "register": {"ensemble": "two", "gate": "development"},
}


def test_listed_members_keep_their_ensemble() -> None:
    kept = keep_members(CONTENT, ["protogcn-bone-s0", "protogcn-joint-s0"])
    assert kept["ensembles"] == CONTENT["ensembles"]
    assert kept["register"] == {"ensemble": "two", "gate": "development"}


def test_a_name_that_is_not_listed_describes_its_member() -> None:
    kept = keep_members(CONTENT, ["protogcn-joint-s0", "stgcnpp-bone_motion-s3"])
    assert kept["members"]["stgcnpp-bone_motion-s3"] == {"model": "stgcnpp", "stream": "bone_motion", "seed": 3}
    assert kept["ensembles"] == {"all": {"members": {"protogcn-joint-s0": 1, "stgcnpp-bone_motion-s3": 1}}}
    assert kept["register"]["ensemble"] == "all"


def test_a_name_that_describes_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="--only nonsense: no such member; there are protogcn-joint-s0"):
        keep_members(CONTENT, ["nonsense"])


def test_parameters_are_set_by_path_with_yaml_values() -> None:
    entry = {"recipe": {"epochs": 50, "network": {"protogcn": {"base_channels": 48}}}}
    assign(entry, "recipe.epochs=7")
    assign(entry, "recipe.network.agcn.base_channels=16")
    assert entry == {
        "recipe": {"epochs": 7, "network": {"protogcn": {"base_channels": 48}, "agcn": {"base_channels": 16}}}
    }


def test_parameters_of_a_named_recipe_are_set_beside_its_name() -> None:
    entry = {"recipe": "protogcn/ntu60-xsub"}
    assign(entry, "recipe.epochs=7")
    assert entry == {"recipe": {"name": "protogcn/ntu60-xsub", "epochs": 7}}


@pytest.mark.parametrize("bad", ["recipe.epochs", "recipe.epochs.more=1", "recipe.epochs={"])
def test_a_bad_assignment_is_refused_with_its_text(bad: str) -> None:
    with pytest.raises(UserError, match="--set recipe.epochs"):
        assign({"recipe": {"epochs": 50}}, bad)


def test_the_report_compares_only_what_a_workspace_keeps() -> None:
    named = {**CONTENT, "report": {"baseline": "protogcn-bone-s0", "ranked_by": "protogcn-joint-s0"}}
    assert keep_members(named, ["protogcn-bone-s0"])["report"] == {"baseline": "protogcn-bone-s0", "ranked_by": ""}
    assert keep_members(CONTENT, ["protogcn-bone-s0"])["report"] == {"baseline": "", "ranked_by": ""}
