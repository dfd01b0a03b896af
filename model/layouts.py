"""Layouts: what a skeleton's joints are, how they connect and which of them mirror each other.

A layout is data, one JSON file. The shipped ones lie in `model/layouts/`; a user's own is a file in the same
form, or in the short form `{"joints": [names], "parents": [index, -1 for the root]}`, from which the rest is
derived: mirror and limbs from the prefixes `left_` and `right_`, centre and origin from the root. `openpose` is
the table of PYSKL and MMAction2 (bones rooted at the nose), `openpose_protogcn` that of ProtoGCN (at the neck).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from model.errors import UserError

FOLDER = Path(__file__).parent / "layouts"
LAYOUTS = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))
PARTS = ("left_arm", "left_leg", "right_arm", "right_leg")
SCORE_RULES = ("bone", "kbone", "motion")
LIMBS = {
    "arm": ("collar", "clavicle", "shoulder", "elbow", "wrist", "hand", "thumb", "finger"),
    "leg": ("hip", "thigh", "knee", "shin", "ankle", "foot", "heel", "toe"),
}


@dataclass(frozen=True)
class Layout:
    """The skeleton of a data set.

    `edges` is the graph as (child, parent) pairs, "inward"; `bones[v]` is the joint subtracted from `v` in the
    stream `bone` (the root: itself), in released layouts not always the graph's parent. `centre` is the graph's
    centre. `mirror` is the permutation that exchanges left and right. `parts` are the limbs that part drop may
    blank. `origin` is the joint that centring puts at zero. `score_mean` says, for `bone`, `kbone` and `motion`,
    whether a third channel that holds a detection score is averaged over the two joints (frames) or differenced
    as if it were a coordinate. `limbs` are the (start, end) pairs of PoseC3D's limb heat maps; the edges unless given.
    """

    name: str
    joints: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    bones: tuple[int, ...]
    centre: int
    mirror: tuple[int, ...]
    origin: int
    parts: dict[str, tuple[int, ...]] = field(default_factory=dict, hash=False)
    score_mean: dict[str, bool] = field(default_factory=lambda: dict.fromkeys(SCORE_RULES, True), hash=False)
    limbs: tuple[tuple[int, int], ...] = ()

    @property
    def num_joints(self) -> int:
        return len(self.joints)

    @property
    def mirror_limbs(self) -> tuple[int, ...]:
        """The permutation of the limbs that exchanges left and right."""
        number = {frozenset(limb): i for i, limb in enumerate(self.limbs)}
        return tuple(number[frozenset((self.mirror[start], self.mirror[end]))] for start, end in self.limbs)

    @property
    def root(self) -> int:
        """The joint whose bone is itself."""
        return next(v for v, parent in enumerate(self.bones) if parent == v)

    @property
    def kbones(self) -> tuple[int, ...]:
        """The grandparent of each joint (stream `kbone`, InfoGCN); itself where the parent is the root."""
        root, bones = self.root, self.bones
        return tuple(v if bones[v] == root else bones[bones[v]] for v in range(self.num_joints))


def load_layout(layout: "str | Path | Layout") -> Layout:
    """A shipped layout by name (`LAYOUTS`), or one from a JSON file.

    Raises UserError when there is no such name or file, or when the file does not describe a skeleton.
    """
    if isinstance(layout, Layout):
        return layout
    if str(layout) in LAYOUTS:
        return _shipped(str(layout))
    path = Path(layout)
    if not path.is_file():
        raise UserError(f"layout '{layout}' is no file and not shipped; shipped: {', '.join(LAYOUTS)}")
    return _read(path)


@cache
def _shipped(name: str) -> Layout:
    return _read(FOLDER / f"{name}.json")


def _read(path: Path) -> Layout:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not a JSON file ({error}); a layout is a JSON object") from error
    if isinstance(content, dict) and "bones" not in content:
        content = {"layout": path.stem, **content}
    return layout_from_dict(content, str(path))


def layout_to_dict(layout: Layout) -> dict[str, Any]:
    """The layout as plain JSON values; `layout_from_dict` reads it back."""
    return {
        "name": layout.name,
        "joints": list(layout.joints),
        "edges": [list(edge) for edge in layout.edges],
        "bones": list(layout.bones),
        "centre": layout.centre,
        "mirror": list(layout.mirror),
        "origin": layout.origin,
        "parts": {part: list(joints) for part, joints in layout.parts.items()},
        "score_mean": dict(layout.score_mean),
        "limbs": [list(limb) for limb in layout.limbs],
    }


def layout_from_dict(content: dict[str, Any], where: str) -> Layout:
    """A checked layout from its full form (with `bones`) or its short form (with `parents`).

    `where` names the source in messages. Raises UserError naming the field that is missing, out of range,
    unconnected, cyclic or not symmetric.
    """
    if not isinstance(content, dict):
        raise UserError(f"{where}: a layout is a JSON object with 'joints' and 'bones' (or 'parents')")
    joints = _names(content, where)
    full = "bones" in content
    if full:
        known = [entry.name for entry in fields(Layout)]
        for key in content:
            if key not in known:
                raise UserError(f"{where}: unknown field '{key}' in a layout; known: {', '.join(known)}")
        bones = _indices(content, "bones", where, joints, len(joints))
    else:
        parents = _indices(content, "parents", where, joints, len(joints), lowest=-1)
        bones = tuple(v if parent == -1 else parent for v, parent in enumerate(parents))
    root = _root_of_tree(bones, joints, "bones" if full else "parents", where)

    def given(key: str, otherwise: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
        return _indices(content, key, where, joints, len(joints)) if key in content else otherwise()

    edges = _pairs(content, "edges", where, joints, [(v, p) for v, p in enumerate(bones) if v != p])
    _check_connected(edges, where, joints)
    layout = Layout(
        # In the JSON files of data sets `name` is the data set and `layout` the skeleton.
        name=str(content["name"] if full and "name" in content else content.get("layout", Path(where).stem)),
        joints=joints,
        edges=edges,
        bones=bones,
        centre=_index(content, "centre", where, joints, root),
        mirror=given("mirror", lambda: _mirror_of_names(joints)),
        origin=_index(content, "origin", where, joints, root),
        parts=_parts(content, where, joints),
        score_mean=_score_mean(content, where),
        limbs=_pairs(content, "limbs", where, joints, edges),
    )
    _check_mirror(layout, where)
    return layout


def _names(content: dict[str, Any], where: str) -> tuple[str, ...]:
    joints = content.get("joints")
    if not isinstance(joints, list) or not joints or not all(isinstance(name, str) for name in joints):
        raise UserError(f"{where}: field 'joints' must be a list of joint names")
    doubled = sorted({name for name in joints if joints.count(name) > 1})
    if doubled:
        raise UserError(f"{where}: field 'joints' names {', '.join(doubled)} twice; names must be unique")
    return tuple(joints)


def _indices(
    content: dict[str, Any], key: str, where: str, joints: tuple[str, ...], length: int, lowest: int = 0
) -> tuple[int, ...]:
    values = content.get(key)
    if not isinstance(values, list) or len(values) != length:
        raise UserError(f"{where}: field '{key}' must be a list of {length} joint indices, one per joint")
    for value in values:
        _check_index(value, key, where, joints, lowest)
    return tuple(values)


def _index(content: dict[str, Any], key: str, where: str, joints: tuple[str, ...], default: int) -> int:
    value: int = content.get(key, default)
    _check_index(value, key, where, joints)
    return value


def _check_index(value: Any, key: str, where: str, joints: tuple[str, ...], lowest: int = 0) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value < len(joints):
        raise UserError(f"{where}: field '{key}' holds {value!r}; joints are numbered 0 to {len(joints) - 1}")


def _root_of_tree(bones: tuple[int, ...], joints: tuple[str, ...], key: str, where: str) -> int:
    roots = [v for v, parent in enumerate(bones) if parent == v]
    if len(roots) != 1:
        named = ", ".join(f"{v} ({joints[v]})" for v in roots) or "none"
        raise UserError(f"{where}: field '{key}' must have exactly one root; roots found: {named}")
    for v in range(len(bones)):
        joint, steps = v, 0
        while joint != roots[0]:
            joint, steps = bones[joint], steps + 1
            if steps > len(bones):
                raise UserError(f"{where}: field '{key}' has a cycle: joint {v} ({joints[v]}) misses the root")
    return roots[0]


def _pairs(
    content: dict[str, Any], key: str, where: str, joints: tuple[str, ...], otherwise: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int], ...]:
    if key not in content:
        return tuple(otherwise)
    pairs = content[key]
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise UserError(f"{where}: field '{key}' must be a list of [child, parent] pairs")
    for child, parent in pairs:
        _check_index(child, key, where, joints)
        _check_index(parent, key, where, joints)
        if child == parent:
            raise UserError(f"{where}: field '{key}' connects joint {child} ({joints[child]}) with itself")
    if len({frozenset(pair) for pair in pairs}) != len(pairs):
        raise UserError(f"{where}: field '{key}' lists the same pair of joints twice")
    return tuple((child, parent) for child, parent in pairs)


def _check_connected(edges: Sequence[tuple[int, int]], where: str, joints: tuple[str, ...]) -> None:
    reached, fresh = {0}, {0}
    while fresh:
        fresh = {b for edge in edges for a, b in (edge, edge[::-1]) if a in fresh} - reached
        reached |= fresh
    apart = [f"{v} ({name})" for v, name in enumerate(joints) if v not in reached]
    if apart:
        raise UserError(f"{where}: field 'edges' is not connected: no way from joint 0 to {', '.join(apart)}")


def _mirror_of_names(joints: tuple[str, ...]) -> tuple[int, ...]:
    swapped = {"left_": "right_", "right_": "left_"}
    position = {name: v for v, name in enumerate(joints)}

    def partner(name: str) -> int:
        for side, other in swapped.items():
            if name.startswith(side):
                return position.get(other + name.removeprefix(side), position[name])
        return position[name]

    return tuple(partner(name) for name in joints)


def _check_mirror(layout: Layout, where: str) -> None:
    mirror, joints = layout.mirror, layout.joints
    for v, name in enumerate(joints):
        if mirror[mirror[v]] != v:
            raise UserError(
                f"{where}: field 'mirror' is not an exchange: joint {v} ({name}) goes to {mirror[v]}, "
                f"which goes to {mirror[mirror[v]]}"
            )
        if mirror[layout.bones[v]] != layout.bones[mirror[v]]:
            raise UserError(
                f"{where}: field 'mirror' pairs joint {v} ({name}) with {mirror[v]} ({joints[mirror[v]]}), "
                f"but their bones start at joints that are no such pair; correct 'mirror' or the parents"
            )
    for what, lines in (("edge", layout.edges), ("limb", layout.limbs)):
        pairs = {frozenset(line) for line in lines}
        for child, parent in lines:
            if frozenset((mirror[child], mirror[parent])) not in pairs:
                raise UserError(f"{where}: field 'mirror' takes the {what} {child}-{parent} to unconnected joints")


def _parts(content: dict[str, Any], where: str, joints: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    if "parts" not in content:
        found = {part: _limb(part, joints) for part in PARTS}
        return found if all(found.values()) else {}
    parts = content["parts"]
    if not isinstance(parts, dict) or not all(isinstance(group, list) and group for group in parts.values()):
        raise UserError(f"{where}: field 'parts' must map limb names to lists of joint indices")
    for part, group in parts.items():
        for value in group:
            _check_index(value, f"parts.{part}", where, joints)
    return {part: tuple(group) for part, group in parts.items()}


def _limb(part: str, joints: tuple[str, ...]) -> tuple[int, ...]:
    side, limb = part.split("_")
    return tuple(
        v for v, name in enumerate(joints) if name.startswith(f"{side}_") and any(word in name for word in LIMBS[limb])
    )


def _score_mean(content: dict[str, Any], where: str) -> dict[str, bool]:
    rules = content.get("score_mean", {})
    if not isinstance(rules, dict) or not all(
        key in SCORE_RULES and isinstance(rule, bool) for key, rule in rules.items()
    ):
        raise UserError(f"{where}: field 'score_mean' maps {', '.join(SCORE_RULES)} to true or false")
    return {key: rules.get(key, True) for key in SCORE_RULES}
