"""What a careful person looks at before training: counts, gaps, jumps, copies, and whether training makes sense."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from components.files import write_json
from components.params import Data
from components.readers import open_source
from components.storage import dvc_md5
from model.inspection import exact_copies, look_at, near_copies, short_form
from model.progress import counted
from model.store import Store, open_store, write_store

SHOWN = 20  # clips named for a finding
JUMP = 1.0  # sizes of the body from one frame to the next
DRIFT = 0.25  # share of a bone's length
IMBALANCE = 10.0  # largest class to smallest
UNITS = ((0.02, 5.0, "metres"), (5.0, 50.0, "decimetres"), (50.0, 500.0, "centimetres"), (500.0, 5000.0, "millimetres"))

LEVELS = ("error", "warning", "note")

Finding = dict[str, Any]


def check_store(
    store: Store, excluded: list[Any], split: tuple[str, list[str]] | None, folder: Path, name: str
) -> dict[str, Any]:
    """Look at a store and write check.html and check.json to `folder`. `split` names training and test splits.

    Training on the data would be meaningless where a finding's level is "error".
    """
    from components.data_page import write_data_page  # matplotlib takes a second to load

    numbers = {"name": name, **inspect(store, excluded, split or guess_split(store.splits))}
    named = {id for finding in numbers["findings"] for id in finding["clips"]}
    write_json(folder / "check.json", numbers)
    write_data_page(folder / "check.html", numbers, store, [i for i, id in enumerate(store.ids) if id in named])
    return numbers


def pack_raw(data: Data, raw: Path, folder: Path) -> tuple[Store, list[Any]]:
    """The raw data as a store, unprepared, and what was set aside."""
    source = open_source(data, raw)
    clips = counted(source.clips, len(set().union(*source.splits.values())), "clips")
    write_store(
        folder, clips, layout=source.layout, classes=source.classes, splits=source.splits,
        channels=source.channels, data_hash=dvc_md5(raw), source=data.reader,
    )  # fmt: skip
    return open_store(folder), [list(item) for item in source.excluded]


def guess_split(names: Iterable[str]) -> tuple[str, list[str]] | None:
    """(train, tests) of the first protocol that these names of splits tell, None if they do not."""
    known = list(names)
    for train in known:
        if "train" in train:
            prefix, _, rest = train.partition("train")
            tests = [f"{prefix}{word}{rest}" for word in ("test", "val") if f"{prefix}{word}{rest}" in known]
            more = [name for name in known if tests and name.startswith(f"{tests[0]}_")]
            if tests:
                return train, [*tests, *more]
    return None


def inspect(store: Store, excluded: list[Any], split: tuple[str, list[str]] | None) -> dict[str, Any]:
    """Every number and finding about a store as plain values."""
    looks = [look_at(store.clip(i), store.layout, store.channels) for i in range(len(store))]
    dims = 3 if store.channels[-1] == "z" else 2
    rows = max(sum(look.rows for look in looks), 1)
    per_clip = {
        key: np.array([getattr(look, key) for look in looks])
        for key in ("persons", "empty_frames", "size", "jump", "jump_frame", "swaps", "drift", "moves")
    }
    exact = exact_copies(store.clip(i) for i in range(len(store)))
    copies_of_first = {i for group in exact for i in group[1:]}
    left = [i for i in range(len(store)) if i not in copies_of_first]
    shorts = np.stack([short_form(store.clip(i), dims) for i in left])
    standing = ~per_clip["moves"][left]
    near = [(left[a], left[b]) for a, b in near_copies(shorts) if not (standing[a] and standing[b])]
    unseen = np.sum([look.unseen for look in looks], axis=0) / rows
    low = np.min([look.low for look in looks], axis=0)
    high = np.max([look.high for look in looks], axis=0)
    members = {name: set(positions.tolist()) for name, positions in store.splits.items()}
    numbers: dict[str, Any] = {
        "data_hash": store.data_hash,
        "clips": len(store),
        "classes": list(store.classes),
        "layout": store.layout.name,
        "channels": list(store.channels),
        "splits": {n: np.bincount(store.labels[p], minlength=len(store.classes)) for n, p in store.splits.items()},
        "protocol": {"train": split[0], "test": list(split[1])} if split else None,
        "label_counts": np.bincount(store.labels, minlength=len(store.classes)),
        "frames": _spread(store.frames),
        "persons": {str(k): v for k, v in sorted(Counter(per_clip["persons"].tolist()).items())},
        "unseen_joints": dict(zip(store.layout.joints, unseen.round(5).tolist(), strict=True)),
        "empty_frames": {"clips": (per_clip["empty_frames"] > 0).sum(), "frames": per_clip["empty_frames"].sum()},
        "range": {channel: [low[c], high[c]] for c, channel in enumerate(store.channels[:dims])},
        "body_size": _spread(per_clip["size"]),
        "units": units(per_clip["size"], low, high, dims),
        "jump": _spread(per_clip["jump"]),
        "bone_drift": _spread(per_clip["drift"]) if dims == 3 else None,
        "exact_copies": [[store.ids[i] for i in group] for group in exact],
        "near_copies": [[store.ids[a], store.ids[b]] for a, b in near],
        "copies_across": copies_across(members, exact, near),
        "shared_factors": shared_factors(store),
        "excluded": excluded,
    }
    numbers["findings"] = findings(store, per_clip, numbers, split)
    plain: dict[str, Any] = _plain(numbers)
    return plain


def copies_across(members: dict[str, set[int]], exact: list[list[int]], near: list[tuple[int, int]]) -> dict[str, Any]:
    """{"A in B": {"exact", "near"}}: how many clips of split A have a copy in the training split B."""
    found = {}
    for train in [name for name in members if "train" in name]:
        for test in [name for name in members if name != train and not members[name] & members[train]]:
            twins: dict[str, set[int]] = {"exact": set(), "near": set()}
            for kind, groups in (("exact", exact), ("near", near)):
                for group in groups:
                    if members[train].intersection(group):
                        twins[kind].update(members[test].intersection(group))
            if any(twins.values()):
                found[f"{test} in {train}"] = {kind: len(clips) for kind, clips in twins.items()}
    return found


def shared_factors(store: Store) -> dict[str, Any]:
    """{"train / test": {factor: values in both}} for each pair of splits that has some."""
    found: dict[str, Any] = {}
    for train in [name for name in store.splits if "train" in name]:
        for test in [name for name in store.splits if name != train and "train" not in name]:
            if not np.intersect1d(store.splits[train], store.splits[test]).size:
                both = {
                    factor: np.intersect1d(values[store.splits[train]], values[store.splits[test]]).tolist()
                    for factor, values in store.factors.items()
                }
                found[f"{train} / {test}"] = {factor: values for factor, values in both.items() if values}
    return {pair: values for pair, values in found.items() if values}


def units(sizes: np.ndarray, low: np.ndarray, high: np.ndarray, dims: int) -> str:
    """What the coordinates seem to be measured in, by the size of the bodies."""
    size = float(np.median(sizes))
    if dims == 2 or size < 0.02:
        inside = low.min() >= -0.5 and high.max() <= 1.5
        return "shares of the image" if inside else "pixels" if size > 8 else "normalised"
    return next((unit for least, most, unit in UNITS if least <= size < most), "unknown")


def findings(
    store: Store, looks: dict[str, np.ndarray], numbers: dict[str, Any], split: tuple[str, list[str]] | None
) -> list[Finding]:
    """What to mend: errors make training meaningless, warnings make its figures doubtful."""
    found: list[Finding] = []

    def say(level: str, text: str, mask: Any = ()) -> None:
        clips = [store.ids[i] for i in np.flatnonzero(mask)[:SHOWN]] if len(mask) else []
        found.append({"level": level, "text": text, "clips": clips})

    if split is None:
        say("error", "no training and test split: name them in splits, for instance train and test")
    elif missing := [name for name in (split[0], *split[1]) if name not in store.splits]:
        say("error", f"the data have no split {', '.join(missing)}; they have {', '.join(store.splits) or 'none'}")
    else:
        train, test = store.splits[split[0]], store.splits[split[1][0]]
        known, asked = np.unique(store.labels[train]), np.unique(store.labels[test])
        shared = np.intersect1d(train, test)
        if not len(train) or not len(test):
            say("error", f"{split[0]} has {len(train)} clips and {split[1][0]} has {len(test)}")
        elif len(known) < 2:
            say("error", f"all {len(train)} clips of {split[0]} have one label: there is nothing to tell apart")
        elif not np.intersect1d(known, asked).size:
            say("error", f"{split[1][0]} has none of the classes of {split[0]}")
        if len(shared):
            say("error", f"{len(shared)} clips are in both {split[0]} and {split[1][0]}", _mask(store, shared))
        if strange := sorted(set(asked.tolist()) - set(known.tolist())):
            names = ", ".join(store.classes[k] for k in strange[:SHOWN])
            say("warning", f"classes in {split[1][0]} that {split[0]} does not have: {names}")
        counts = np.bincount(store.labels[train])
        if len(known) > 1 and counts[known].max() > IMBALANCE * counts[known].min():
            say("warning", f"the largest class of {split[0]} has {counts[known].max()} clips, "
                f"the smallest {counts[known].min()}")  # fmt: skip
        copies = numbers["copies_across"].get(f"{split[1][0]} in {split[0]}", {"exact": 0, "near": 0})
        if copies["exact"] + copies["near"]:
            level = "error" if copies["exact"] + copies["near"] >= len(test) else "warning"
            say(level, f"{copies['exact']} clips of {split[1][0]} are copies of clips of {split[0]}, "
                f"{copies['near']} more nearly so; accuracy on them says nothing")  # fmt: skip
    if not looks["moves"].any():
        say("error", "no clip moves: every frame is the same")
    elif (~looks["moves"]).any():
        say("warning", f"{(~looks['moves']).sum()} clips do not move at all", ~looks["moves"])
    if len(numbers["excluded"]) > len(store):
        say("error", f"{len(numbers['excluded'])} clips were set aside, more than the {len(store)} that are left")
    elif numbers["excluded"]:
        say("warning", f"{len(numbers['excluded'])} clips were set aside, first: {numbers['excluded'][0][1]}")
    within = sum(len(group) - 1 for group in numbers["exact_copies"])
    if within or numbers["near_copies"]:
        say("note", f"{within} clips repeat another one exactly, {len(numbers['near_copies'])} pairs nearly")
    for key, limit, text in (
        ("jump", JUMP, "clips have a joint that jumps by more than the size of the body between two frames"),
        ("drift", DRIFT, "clips have bones whose length changes by more than a quarter"),
        ("swaps", 0, "clips have frames in which left and right seem exchanged"),
    ):
        mask = np.nan_to_num(looks[key]) > limit
        if mask.any():
            say("warning", f"{mask.sum()} {text}", mask)
    if numbers["units"] == "pixels" and store.image_size is None:
        say("warning", "pixels without the size of their images: they cannot be normalised; give image_size")
    never = [name for name, share in numbers["unseen_joints"].items() if share == 1]
    if never:
        say("warning", f"never seen in any clip: {', '.join(never)}")
    shared_subjects = {
        pair: values["subject"] for pair, values in numbers["shared_factors"].items() if "subject" in values
    }
    for pair, values in shared_subjects.items():
        if split and pair == f"{split[0]} / {split[1][0]}":
            say("note", f"{len(values)} subjects are in both {pair}: the split does not test unseen people")
    return sorted(found, key=lambda finding: LEVELS.index(finding["level"]))


def as_text(numbers: dict[str, Any]) -> str:
    """The summary that is printed."""
    frames, size = numbers["frames"], numbers["body_size"]
    ranges = "  ".join(f"{channel} {low:.4g} to {high:.4g}" for channel, (low, high) in numbers["range"].items())
    unseen = sorted(numbers["unseen_joints"].items(), key=lambda item: -item[1])[:3]
    lines = [
        f"{numbers['name']}: {numbers['clips']} clips of {len(numbers['classes'])} classes, layout "
        f"{numbers['layout']} ({', '.join(numbers['channels'])})",
        *(f"  {name}: {sum(counts)} clips, {sum(map(bool, counts))} classes, {min(counts)} to {max(counts)} a class"
          for name, counts in numbers["splits"].items()),
        f"  frames a clip: {frames['min']:g} to {frames['max']:g}, median {frames['median']:g}; persons: "
        + ", ".join(f"{count} clips with {persons}" for persons, count in numbers["persons"].items()),
        f"  coordinates: {ranges}; bodies of {size['median']:.3g}, which looks like {numbers['units']}",
        "  joints not seen: " + (", ".join(f"{n} {s:.1%}" for n, s in unseen if s) or "none")
        + f"; frames without a body: {numbers['empty_frames']['frames']}",
    ]  # fmt: skip
    for finding in numbers["findings"]:
        more = f" ({', '.join(finding['clips'][:3])}{', …' if len(finding['clips']) > 3 else ''})"
        lines.append(f"  {finding['level']}: {finding['text']}" + (more if finding["clips"] else ""))
    return "\n".join(lines)


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"min": values.min(), "median": np.median(values), "mean": values.mean(), "max": values.max()}


def _mask(store: Store, positions: np.ndarray) -> np.ndarray:
    return np.isin(np.arange(len(store)), positions)


def _plain(value: Any) -> Any:
    """numpy's numbers and arrays as JSON's; a number that is none (NaN) as null."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    return None if isinstance(value, float) and value != value else value
