"""Layouts: the shipped tables, the short form, and every mistake a user's file can hold."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.errors import UserError
from model.layouts import LAYOUTS, Layout, layout_from_dict, layout_to_dict, load_layout

JOINTS = {
    "nturgb+d": 25,
    "coco": 17,
    "coco_new": 20,
    "openpose": 18,
    "openpose_protogcn": 18,
    "openpose_new": 20,
    "handmp": 21,
    "kinect20": 20,
    "kinect15": 15,
    "penn13": 13,
    "mediapipe": 33,
    "body25": 25,
}

SHORT: dict[str, Any] = {
    "joints": ["hip", "left_hand", "right_hand", "head"],
    "parents": [-1, 0, 0, 0],
}


def test_shipped_layouts_are_known() -> None:
    assert {name: load_layout(name).num_joints for name in LAYOUTS} == JOINTS


@pytest.mark.parametrize("name", LAYOUTS)
def test_shipped_layout_is_sound(name: str) -> None:
    layout = load_layout(name)
    assert layout.name == name
    assert len(layout.edges) == layout.num_joints - 1
    mirror = np.array(layout.mirror)
    assert (mirror[mirror] == np.arange(layout.num_joints)).all()
    for v, partner in enumerate(layout.mirror):
        swapped = layout.joints[v].replace("left_", "L").replace("right_", "left_").replace("L", "right_")
        assert layout.joints[partner] == swapped
    if layout.parts:
        left = {layout.mirror[v] for v in layout.parts["left_arm"]}
        assert left == set(layout.parts["right_arm"])
        assert {layout.mirror[v] for v in layout.parts["left_leg"]} == set(layout.parts["right_leg"])
    assert layout_from_dict(layout_to_dict(layout), name) == layout
    assert load_layout(layout) is layout
    hash(layout)


# Tables of the released systems, -1 where the K-bone is the zero vector.
KBONES = {
    "nturgb+d": [20, -1, -1, 20, -1, 20, 4, 5, -1, 20, 8, 9, 1, 0, 12, 13, 1, 0, 16, 17, -1, 7, 6, 11, 10],
    "coco": [-1, -1, -1, 0, 0, -1, -1, 0, 0, 5, 6, -1, -1, 0, 0, 11, 12],
    "coco_new": [-1, 19, 19, 0, 0, -1, -1, 19, 19, 5, 6, 18, 18, 17, 17, 11, 12, 19, -1, -1],
}


@pytest.mark.parametrize("name", KBONES)
def test_grandparents_follow_from_the_bones(name: str) -> None:
    found = [-1 if v == u else u for v, u in enumerate(load_layout(name).kbones)]
    assert found == KBONES[name]


@pytest.mark.parametrize(
    ("name", "centre", "root", "origin"), [("nturgb+d", 20, 20, 1), ("openpose", 1, 0, 17), ("kinect20", 0, 0, 0)]
)
def test_centre_root_and_origin(name: str, centre: int, root: int, origin: int) -> None:
    layout = load_layout(name)
    assert (layout.centre, layout.root, layout.origin) == (centre, root, origin)


@pytest.mark.parametrize(
    ("name", "data"), [("kinect20", "nw_ucla"), ("kinect15", "florence3d"), ("penn13", "penn_action")]
)
def test_shipped_layout_equals_the_one_in_the_data(data_dir: Path, name: str, data: str) -> None:
    stored = load_layout(data_dir / f"{data}.json")
    shipped = load_layout(name)
    assert {**layout_to_dict(stored), "name": name} == layout_to_dict(shipped)


def test_short_form_is_completed(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(SHORT))
    layout = load_layout(path)
    assert layout == Layout(
        name="mine",
        joints=("hip", "left_hand", "right_hand", "head"),
        edges=((1, 0), (2, 0), (3, 0)),
        bones=(0, 0, 0, 0),
        centre=0,
        mirror=(0, 2, 1, 3),
        origin=0,
        limbs=((1, 0), (2, 0), (3, 0)),
    )


def test_short_form_ignores_what_else_a_data_set_says() -> None:
    content = {**SHORT, "name": "set", "layout": "skeleton", "classes": ["a"], "edges": [[1, 0], [2, 0], [3, 0]]}
    assert layout_from_dict(content, "file").name == "skeleton"


def test_unknown_layout_lists_the_shipped_ones() -> None:
    with pytest.raises(UserError, match="nturgb"):
        load_layout("ntu")


def test_not_json(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text("joints:")
    with pytest.raises(UserError, match=r"mine\.json: not a JSON file"):
        load_layout(path)


FULL = layout_to_dict(layout_from_dict(SHORT, "mine"))
MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({**SHORT, "joints": []}, "'joints'"),
    ({**SHORT, "joints": ["hip", "hip", "b", "c"]}, "'joints' names hip twice"),
    ({**SHORT, "parents": [-1, 0, 0]}, "'parents' must be a list of 4"),
    ({**SHORT, "parents": [-1, 0, 0, 4]}, "'parents' holds 4"),
    ({**SHORT, "parents": [-1, 0, 0, "hip"]}, "'parents' holds 'hip'"),
    ({**SHORT, "parents": [-1, -1, 0, 0]}, r"one root; roots found: 0 \(hip\), 1 \(left_hand\)"),
    ({**SHORT, "parents": [1, 2, 3, 0]}, "one root; roots found: none"),
    ({**SHORT, "parents": [-1, 2, 1, 0]}, r"'parents' has a cycle: joint 1 \(left_hand\)"),
    ({**SHORT, "parents": [-1, 3, 0, 0]}, r"'mirror' pairs joint 1 \(left_hand\) with 2"),
    ({**SHORT, "edges": [[1, 0], [2, 0]]}, r"'edges' is not connected: .*3 \(head\)"),
    ({**SHORT, "edges": [[1, 0], [2, 0], [3, 0], [0, 3]]}, "'edges' lists the same pair"),
    ({**SHORT, "edges": [[1, 0], [2, 0], [3, 3]]}, "'edges' connects joint 3"),
    ({**SHORT, "edges": [[1, 0], [2, 0], [3, 9]]}, "'edges' holds 9"),
    ({**SHORT, "edges": [[1, 0], [2]]}, "'edges' must be a list of"),
    ({**SHORT, "edges": [[1, 0], [2, 3], [3, 0]]}, "'mirror' takes the edge 1-0"),
    ({**SHORT, "mirror": [0, 2, 3, 1]}, "'mirror' is not an exchange: joint 1"),
    ({**SHORT, "centre": -1}, "'centre' holds -1"),
    ({**SHORT, "origin": True}, "'origin' holds True"),
    ({**SHORT, "parts": {"tail": []}}, "'parts' must map"),
    ({**SHORT, "parts": {"tail": [7]}}, "'parts.tail' holds 7"),
    ({**SHORT, "score_mean": {"bones": True}}, "'score_mean' maps bone, kbone, motion"),
    ({**FULL, "center": 0}, "unknown field 'center'"),
    ({"joints": ["hip"]}, "'parents' must be a list of 1"),
    ([], "a layout is a JSON object"),  # type: ignore[list-item]
]


@pytest.mark.parametrize(("content", "message"), MISTAKES)
def test_mistakes_are_named(content: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"mine.json: .*{message}"):
        layout_from_dict(content, "mine.json")


def test_limbs_of_coco_change_sides_as_posec3ds_configurations_say() -> None:
    mirror = load_layout("coco").mirror_limbs
    left, right = [0, 2, 3, 6, 7, 8, 12, 14], [1, 4, 5, 9, 10, 11, 13, 15]
    assert [mirror[limb] for limb in left] == right
    assert [mirror[limb] for limb in right] == left
    assert mirror[16] == 16


@pytest.mark.parametrize("name", LAYOUTS)
def test_mirrored_limbs_join_mirrored_joints(name: str) -> None:
    layout = load_layout(name)
    for (start, end), other in zip(layout.limbs, layout.mirror_limbs, strict=True):
        assert {layout.mirror[start], layout.mirror[end]} == set(layout.limbs[other])


def test_limb_without_a_mirrored_one_is_refused() -> None:
    with pytest.raises(UserError, match="takes the limb 1-3"):
        layout_from_dict({**SHORT, "limbs": [[1, 3]]}, "file")


def test_a_layout_file_is_called_by_its_name_wherever_it_lies(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"joints": ["hip", "neck"], "parents": [-1, 0]}))
    assert load_layout(str(file)).name == "mine"  # checkpoints hold it, and their bytes should not tell the folder
