"""A trained member → pictures of what it has learned: topologies, prototypes, evidence of its answers, features."""

import difflib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.embedding import embedded
from components.evaluate import own_checkpoint
from components.files import staged_dir, write_bytes
from components.params import Params
from components.splits import parts_of
from components.tracked import member_run
from model.errors import UserError
from model.layouts import Layout
from model.store import Store, open_store

SHOWN = 4  # classes whose topologies and evidence are drawn, unless they are named
MAPPED = 10  # classes of the feature map and the prototypes
OCCLUDED = 4  # clips of a class whose parts are hidden one by one


@dataclass(frozen=True)
class Evidence:
    """What the answer to one clip rests on. joints (M, T, V, C) as sampled, parts (P,), frames (T,)."""

    id: str
    label: int
    predicted: int
    sure: float
    joints: NDArray
    parts: NDArray
    frames: NDArray


@dataclass(frozen=True)
class Learned:
    """One member seen through clips with labels (N,).

    `base` (B, V, V) and `shown` kind -> (K, B, V, V) hold the topologies of B blocks, the latter averaged over the
    clips of each of the K classes mapped ("added": enhanced less base); without such units B is 0. `rebuilt`
    (K, V, V), `use` (K, P) and `entropy` (K,) are ProtoGCN's. `parts` are the joints that each hidden part consists of.
    """

    name: str
    network: str
    stream: str
    layout: Layout
    labels: NDArray
    predicted: NDArray
    features: NDArray
    base: NDArray
    shown: dict[str, NDArray]
    rebuilt: NDArray | None
    use: NDArray | None
    entropy: NDArray | None
    parts: list[tuple[int, ...]]
    channels: tuple[str, ...]
    feeds_back: bool  # the last block aggregates with what prototypes rebuilt (variant paper)
    evidence: list[Evidence]


def explain(
    member: str,
    /,
    *,
    params: Params,
    classes: list[str] | None = None,
    baseline: str = "",
    clips: int = 12,
    data: Path | None = None,
    runs: Path | None = None,
    out: Path | None = None,
) -> None:
    """Show what a trained member has learned: topologies, prototypes, what answers rest on, its feature space.

    Writes `explain.html`, `figures/*.png` and `explain.npz` with the arrays drawn, and logs them with the member's run.
    All clips are of the first test split.

    Args:
        member: name of the member in params.yaml.
        params: the parameters.
        classes: names or numbers of the actions shown (default: four, spread over the list of classes).
        baseline: a second member, drawn beside the first (default: the member's own A_0 is what to compare with).
        clips: clips looked at per class.
        data: folder of the packed store (default: data/packed/DATASET).
        runs: folder with MEMBER/train of every member (default: runs/DATASET/PROTOCOL).
        out: folder that is written (default: explained/DATASET/PROTOCOL/MEMBER).

    Raises:
        UserError: an unknown class or member, or one that was not trained on these data.
    """
    where = Path(params.dataset) / params.protocol
    runs, out = runs or "runs" / where, out or "explained" / where / member
    store = open_store(data or Path("data/packed") / params.dataset)
    if baseline == member:
        raise UserError(f"explain: --baseline {baseline!r} is the member itself; name another or none")
    shown, mapped = chosen_classes(store, params, classes or [])
    positions = chosen_clips(store, params, mapped, clips)
    found = look(params, member, store, runs, positions, mapped, shown)
    other = look(params, baseline, store, runs, positions, mapped, []) if baseline else None
    if other is not None and other.layout.num_joints != found.layout.num_joints:
        raise UserError(f"explain: {baseline!r} has other joints than {member!r}; compare members of one layout")
    maps = {each.name: embedded(each.features) for each in (found, other) if each is not None}
    arrays = arrays_of(found, other, maps, store, shown, mapped)
    from components.explain_page import draw, write_explanation

    with staged_dir(out) as aside:
        drawn = draw(found, other, maps, store.classes, shown, mapped)
        for name, (_, png) in drawn.items():
            write_bytes(aside / "figures" / f"{name}.png", png)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        write_bytes(aside / "explain.npz", buffer.getvalue())
        write_explanation(aside / "explain.html", found, other, store.classes, shown, mapped, drawn)
    with member_run(params, member, store) as run:
        run.log_file(out, "explain")
    print(out / "explain.html")


def chosen_classes(store: Store, params: Params, named: list[str]) -> tuple[list[int], list[int]]:
    """Classes shown and classes mapped, the shown ones among them. Raises UserError for a class that has no clips."""
    tested = np.unique(store.labels[_test(store, params)]).tolist()
    shown = []
    for name in named:
        number = store.classes.index(name) if name in store.classes else int(name) if name.isdigit() else -1
        if number not in tested:
            close = difflib.get_close_matches(name, [store.classes[k] for k in tested], n=3, cutoff=0.4)
            hint = f"did you mean {', '.join(map(repr, close))}?" if close else "name a class that has test clips"
            raise UserError(f"explain: --classes: no test clip of {name!r}; {hint}")
        shown.append(number)

    def spread(many: int, among: list[int]) -> list[int]:
        return [among[i] for i in np.unique(np.linspace(0, len(among) - 1, min(many, len(among))).astype(int))]

    shown = list(dict.fromkeys(shown)) or spread(SHOWN, tested)
    others = [k for k in tested if k not in shown]
    return shown, sorted(shown + spread(max(0, MAPPED - len(shown)), others)) if others else sorted(shown)


def chosen_clips(store: Store, params: Params, classes: list[int], clips: int) -> NDArray:
    """Positions of up to `clips` test clips of each class, spread over the split."""
    test = _test(store, params)
    picked = []
    for k in classes:
        own = test[store.labels[test] == k]
        picked.append(own[np.unique(np.linspace(0, len(own) - 1, min(max(clips, 1), len(own))).astype(int))])
    positions = np.concatenate(picked)
    if len(positions) < 4:
        raise UserError(f"explain: {len(positions)} clips are too few to map; raise --clips")
    return positions


def _test(store: Store, params: Params) -> NDArray:
    return parts_of(store, params).tests[params.entry.split.test[0]]


def look(
    params: Params, member: str, store: Store, runs: Path, positions: NDArray, mapped: list[int], shown: list[int]
) -> Learned:
    """Look at a trained member through the clips at `positions`, and for `shown` classes at its evidence."""
    import torch

    from model.checkpoint import build_network
    from model.explain import observe
    from model.feeding import validation_clips
    from model.layouts import layout_from_dict

    spec = params.member(member)
    path = runs / member / "train" / f"{'last' if params.protocol == 'last' else 'best'}.pt"
    checkpoint = own_checkpoint(path, store, member)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_flush_denormal(True)
    net: Any = build_network(checkpoint, str(path)).to(device)
    feed: Any = validation_clips(store, positions, checkpoint["recipe"], device)
    seen = observe(net, feed, device=device)
    labels, scores = store.labels[positions], seen.scores.numpy()
    layout = layout_from_dict(checkpoint["layout"], str(path))
    limbs = spec.stream == "limb"
    parts: list[tuple[int, ...]] = list(layout.limbs) if limbs else [(v,) for v in range(layout.num_joints)]
    # Drawn as they are: sampled as the network sees them, but neither differenced nor normalised.
    plain = {"finish": None, **checkpoint["recipe"], "stream": "joint", "difference": "before", "normalise_2d": None}
    drawable = validation_clips(store, positions, plain, "cpu")

    def mean(values: Any) -> NDArray:
        """(N, …) -> (K, …), the mean over the clips of each class mapped."""
        return np.stack([np.asarray(values)[labels == k].mean(0) for k in mapped])

    base = np.stack([block.numpy() for block in seen.base]) if seen.base else np.zeros((0, *[layout.num_joints] * 2))
    averaged = {kind: np.stack([mean(block) for block in blocks], 1) for kind, blocks in seen.shown.items()}
    if "enhanced" in averaged:
        averaged["added"] = averaged["enhanced"] - base
    return Learned(
        name=member,
        network=spec.model,
        stream=spec.stream,
        layout=layout,
        labels=labels,
        predicted=scores.argmax(1),
        features=seen.features.numpy(),
        base=base,
        shown=averaged,
        rebuilt=None if seen.reconstructed is None else mean(seen.reconstructed),
        use=None if seen.responses is None else mean(seen.responses),
        entropy=None if seen.entropy is None else mean(seen.entropy),
        parts=parts,
        channels=tuple(store.channels),
        feeds_back=bool(getattr(net, "feeds_back", False)),
        evidence=_evidence(net, feed, drawable, scores, labels, shown, device),
    )


def _evidence(
    net: Any, feed: Any, drawable: Any, scores: NDArray, labels: NDArray, shown: list[int], device: str
) -> list[Evidence]:
    """Of each class shown its surest clips, the surest first."""
    from model.explain import occlusion

    rows = []
    for k in shown:
        own = np.flatnonzero(labels == k)
        rows += own[np.argsort(-scores[own, k], kind="stable")][:OCCLUDED].tolist()
    if not rows:
        return []
    x = feed.batch(rows).to(device)
    parts, frames = occlusion(net, x, feed.labels[rows].to(device))
    joints = drawable.batch(rows).numpy()
    return [
        Evidence(
            feed.ids[row],
            int(labels[row]),
            int(scores[row].argmax()),
            float(scores[row, labels[row]]),
            joints[i],
            parts[i].numpy(),
            frames[i].numpy(),
        )
        for i, row in enumerate(rows)
    ]


def arrays_of(
    found: Learned, other: Learned | None, maps: dict[str, NDArray], store: Store, shown: list[int], mapped: list[int]
) -> dict[str, NDArray]:
    """Everything drawn, by name: `<member>/A0` (B, V, V), `<member>/enhanced` (K, B, V, V), …; K counts `classes`."""
    arrays: dict[str, NDArray] = {
        "classes": np.array([store.classes[k] for k in mapped]),
        "shown": np.array([store.classes[k] for k in shown]),
        "joints": np.array(found.layout.joints),
        "labels": found.labels,
    }
    for each in (found, other):
        if each is None:
            continue
        own = {"A0": each.base, **each.shown, "Z": each.rebuilt, "prototype_use": each.use, "entropy": each.entropy}
        own |= {"features": each.features, "map": maps[each.name]}
        arrays |= {f"{each.name}/{key}": value for key, value in own.items() if value is not None}
    arrays["evidence/ids"] = np.array([item.id for item in found.evidence])
    arrays["evidence/parts"] = np.stack([item.parts for item in found.evidence])
    arrays["evidence/frames"] = np.stack([item.frames for item in found.evidence])
    return arrays
