"""What score tables say beyond one number: intervals, contributions, confused pairs, calibration. numpy only."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054
TABLE5_BANDS = (10, 30, 60, 120)  # last class of each difficulty band in ProtoGCN's Table 5, of 120 classes


def wilson(correct: Any, count: Any) -> tuple[NDArray, NDArray]:
    """95 % Wilson score interval of a proportion; (0, 1) where there is nothing to count."""
    correct, count = np.asarray(correct, float), np.asarray(count, float)
    n = np.maximum(count, 1)
    p = correct / n
    middle = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * np.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    low, high = np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)
    return np.where(count > 0, low, 0.0), np.where(count > 0, high, 1.0)


def performances(labels: NDArray, factors: Mapping[str, NDArray]) -> NDArray:
    """Group of each clip, numbered from 0: a subject's takes of one action, all views and repeats together.

    Views of one performance are no independent evidence, so intervals resample whole groups. Where the subject
    is unknown each clip is its own group. `factors` holds (N,) arrays named subject, camera, setup.
    """
    if "subject" not in factors:
        return np.arange(len(labels))
    keys = [factors[name] for name in ("subject", "setup") if name in factors] + [labels]
    return np.unique(np.stack(keys, axis=1), axis=0, return_inverse=True)[1].reshape(-1)


def top_hits(scores: NDArray, labels: NDArray, k: int) -> NDArray:
    """(N,) whether the label is among the k largest scores, with `model.metrics.top_k`'s rule for ties."""
    if k == 1:
        return scores.argmax(axis=1) == labels
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    later = np.arange(scores.shape[1]) > labels[:, None]
    return ((scores > own) | ((scores == own) & later)).sum(axis=1) < k


def resample(
    labels: NDArray, scores: Mapping[str, NDArray], groups: NDArray, *, seed: int = 0, draws: int = 1000
) -> dict[str, dict[str, NDArray]]:
    """Bootstrap of top1, top5 and mean_class over whole groups, with the same draws for every entry of `scores`.

    labels (N,), each scores (N, K), groups (N,) from `performances`. Returns name -> metric -> (draws,).
    Shared draws make the difference of two entries a paired bootstrap.
    """
    pairs, unit = np.unique(np.stack([labels, groups], axis=1), axis=0, return_inverse=True)
    unit = unit.reshape(-1)  # a unit is a group within one class; units come sorted by class
    starts = np.flatnonzero(np.r_[True, np.diff(pairs[:, 0]) > 0])
    resampled = np.unique(pairs[:, 1], return_inverse=True)[1].reshape(-1)
    size = int(resampled.max()) + 1
    clips = np.bincount(unit, minlength=len(pairs)).astype(np.float64)
    hits = {
        (name, k): np.bincount(unit, weights=top_hits(table, labels, k), minlength=len(pairs))
        for name, table in scores.items()
        for k in (1, 5)
    }
    out = {name: {m: np.empty(draws) for m in ("top1", "top5", "mean_class")} for name in scores}
    generator = np.random.default_rng(seed)
    step = max(1, 4_000_000 // size)
    for begin in range(0, draws, step):
        rows = min(step, draws - begin)
        drawn = generator.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
        weight = np.bincount(drawn.reshape(-1), minlength=rows * size).reshape(rows, size)[:, resampled]
        total = weight @ clips
        per_class = np.add.reduceat(weight * clips, starts, axis=1)
        seen = per_class > 0
        part = slice(begin, begin + rows)
        for name in scores:
            out[name]["top1"][part] = weight @ hits[name, 1] / total
            out[name]["top5"][part] = weight @ hits[name, 5] / total
            right = np.add.reduceat(weight * hits[name, 1], starts, axis=1)
            out[name]["mean_class"][part] = (right / np.maximum(per_class, 1)).sum(axis=1) / seen.sum(axis=1)
    return out


def interval(drawn: NDArray, value: float, independent: int) -> tuple[float, float]:
    """95 % percentile interval; Wilson's over `independent` groups where every draw says 0 or 1."""
    if value in (0.0, 1.0):
        low, high = wilson(value * independent, independent)
        return float(low), float(high)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def contributions(labels: NDArray, scores: Sequence[NDArray], weights: Sequence[float]) -> dict[str, Any]:
    """What each member adds to the top-1 of a weighted sum. scores: n arrays (N, K), rows alike.

    `alone`, `without` (leave one out) and `shapley`: a member's gain averaged over every order of joining, exact,
    from all 2^n subsets. The empty subset counts as chance (1/K), so the values add up to fused - chance.
    """
    n, chance = len(scores), 1.0 / scores[0].shape[1]
    value = np.full(2**n, chance)

    def visit(member: int, subset: int, total: NDArray | None) -> None:
        # Depth first: only n partial sums are alive, however many subsets there are.
        if member == n:
            if total is not None:
                value[subset] = (total.argmax(axis=1) == labels).mean()
            return
        visit(member + 1, subset, total)
        mine = scores[member] * np.float64(weights[member])  # in double precision, as fusing does
        visit(member + 1, subset | 1 << member, mine if total is None else total + mine)

    visit(0, 0, None)
    subsets = np.arange(2**n)
    size = np.bitwise_count(subsets).astype(int)
    order_share = np.array([1 / (n * _choose(n - 1, s)) for s in range(n)])
    everyone = 2**n - 1
    shapley = []
    for member in range(n):
        absent = subsets[(subsets >> member & 1) == 0]
        gain = value[absent | 1 << member] - value[absent]
        shapley.append(float((order_share[size[absent]] * gain).sum()))
    return {
        "chance": chance,
        "fused": float(value[everyone]),
        "alone": [float(value[1 << m]) for m in range(n)],
        "without": [float(value[everyone ^ 1 << m]) for m in range(n)],
        "shapley": shapley,
    }


def _choose(n: int, k: int) -> int:
    out = 1
    for i in range(k):
        out = out * (n - i) // (i + 1)
    return out


def confused_pairs(matrix: NDArray, limit: int) -> list[dict[str, Any]]:
    """The unordered class pairs most often taken for each other, by the mean of their two confusion rates."""
    rate = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    both = np.triu(rate + rate.T, 1) / 2
    order = np.argsort(-both, axis=None, kind="stable")[:limit]
    pairs = [divmod(int(flat), len(matrix)) for flat in order if both.flat[flat] > 0]
    return [
        {
            "a": a,
            "b": b,
            "rate": float(both[a, b]),
            "a_as_b": int(matrix[a, b]),
            "b_as_a": int(matrix[b, a]),
            "clips": int(matrix[a].sum() + matrix[b].sum()),
        }
        for a, b in pairs
    ]


def similar_order(matrix: NDArray) -> list[int]:
    """Class order that puts confused classes side by side: the Fiedler vector of the confusion graph."""
    rate = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    weight = rate + rate.T + 1e-4  # the small constant keeps unconfused classes in one connected graph
    np.fill_diagonal(weight, 0)
    laplacian = np.diag(weight.sum(axis=1)) - weight
    vector = np.linalg.eigh(laplacian)[1][:, min(1, len(matrix) - 1)].round(9)
    if vector[np.argmax(np.abs(vector))] < 0:  # an eigenvector's sign is arbitrary; the page must not be
        vector = -vector
    return np.argsort(vector, kind="stable").tolist()


def reliability(labels: NDArray, scores: NDArray, bins: int = 15) -> dict[str, Any]:
    """Calibration of scores (N, K) normalised to sum one: reliability bins, ECE (Guo 2017), Brier score, NLL."""
    p = scores.astype(np.float64)
    p /= np.maximum(p.sum(axis=1, keepdims=True), 1e-12)
    sure, right = p.max(axis=1), p.argmax(axis=1) == labels
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    confidence = np.bincount(place, weights=sure, minlength=bins) / np.maximum(count, 1)
    accuracy = np.bincount(place, weights=right, minlength=bins) / np.maximum(count, 1)
    true = np.take_along_axis(p, labels[:, None], axis=1)[:, 0]
    return {
        "count": count.tolist(),
        "confidence": confidence.tolist(),
        "accuracy": accuracy.tolist(),
        "ece": float((count * np.abs(accuracy - confidence)).sum() / max(len(labels), 1)),
        "brier": float(((p**2).sum(axis=1) - 2 * true + 1).mean()),
        "nll": float(-np.log(np.maximum(true, 1e-12)).mean()),
        "mean_confidence": float(sure.mean()),
    }


def class_accuracy(matrix: NDArray) -> NDArray:
    """(K,) recall of each class; NaN for a class without clips."""
    count = matrix.sum(axis=1)
    return np.where(count > 0, np.diag(matrix) / np.maximum(count, 1), np.nan)


def difficulty_bands(ranking: NDArray, accuracy: Mapping[str, NDArray]) -> list[dict[str, Any]]:
    """Mean class accuracy in four bands of difficulty (ProtoGCN, Table 5), hardest first.

    ranking (K,): class accuracies of a run outside the comparison, which alone orders the classes. The bands are
    the paper's 1-10, 11-30, 31-60, 61-120, scaled to the number of classes that have clips.
    """
    order = np.argsort(ranking, kind="stable")[: int(np.isfinite(ranking).sum())]
    ends = [max(1, round(len(order) * end / TABLE5_BANDS[-1])) for end in TABLE5_BANDS]
    bands, begin = [], 0
    for end in ends:
        chosen = order[begin:end]
        if len(chosen):
            mean = {name: float(np.nanmean(values[chosen])) for name, values in accuracy.items()}
            bands.append({"from": begin + 1, "to": end, "ranking": float(ranking[chosen].mean()), "mean": mean})
        begin = end
    return bands
