"""What differs between two versions of a dataset, clip by clip."""

from typing import Any

import numpy as np

from model.store import Store


def diff_stores(old: Store, new: Store) -> dict[str, Any]:
    """Clips added, removed, relabelled (by the class's name), changed (their joints), and moved between splits.

    The joints of both stores must have been prepared alike, or all of them have changed.
    """
    place, former = {id: i for i, id in enumerate(new.ids)}, set(old.ids)
    both = [(i, place[id]) for i, id in enumerate(old.ids) if id in place]
    return {
        "added": [id for id in new.ids if id not in former],
        "removed": [id for id in old.ids if id not in place],
        "relabelled": {
            old.ids[i]: [old.classes[old.labels[i]], new.classes[new.labels[j]]]
            for i, j in both
            if old.classes[old.labels[i]] != new.classes[new.labels[j]]
        },
        "changed": [old.ids[i] for i, j in both if not np.array_equal(old.clip(i), new.clip(j))],
        "splits": _splits(old, new),
        "about": {
            key: [getattr(old, key), getattr(new, key)]
            for key in ("classes", "channels", "data_hash")
            if getattr(old, key) != getattr(new, key)
        }
        | ({"layout": [old.layout.name, new.layout.name]} if old.layout != new.layout else {}),
    }


def _splits(old: Store, new: Store) -> dict[str, Any]:
    """Split → clips that came and went."""
    found = {}
    for name in sorted({*old.splits, *new.splits}):
        before, after = (
            {store.ids[i] for i in store.splits[name]} if name in store.splits else set() for store in (old, new)
        )
        if before != after:
            found[name] = {"added": sorted(after - before), "removed": sorted(before - after)}
    return found


def as_text(found: dict[str, Any]) -> str:
    """The difference in a few lines."""
    lines = []
    for what in ("added", "removed", "relabelled", "changed"):
        clips = list(found[what])
        lines.append(f"{what}: {len(clips)}" + (f" ({', '.join(clips[:5])}{', …' if len(clips) > 5 else ''})"
                     if clips else ""))  # fmt: skip
    for name, members in found["splits"].items():
        lines.append(f"split {name}: {len(members['added'])} came, {len(members['removed'])} went")
    for key, (before, after) in found["about"].items():
        lines.append(f"{key}: {before} → {after}")
    return "\n".join(lines)
