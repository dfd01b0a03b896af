"""Metrics of class scores, each definition under its own name; numpy, vectorised.

Throughout, scores (N, K) are any real class scores (larger is better) and labels (N,) integers below K.
"""

from collections.abc import Sequence

import numpy as np

from model.errors import UserError
from model.scoretable import ScoreTable


def top_k(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> float:
    """Share of clips whose label is among the k largest scores.

    Of equal scores the later class counts as larger for k > 1 (a stable sort, read from its end), as in the
    original evaluation; for k = 1 the first maximum counts, as everywhere arg-max is taken.
    """
    return float(_hits(scores, labels, k).mean())


def mean_class_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes that occur in the labels of the share of their clips that are right."""
    right = np.bincount(labels, weights=_hits(scores, labels), minlength=scores.shape[1])
    count = np.bincount(labels, minlength=scores.shape[1])
    present = count > 0
    return float((right[present] / count[present]).mean())


def mean_class_accuracy_union(scores: np.ndarray, labels: np.ndarray) -> float:
    """As mean_class_accuracy, but classes that are only predicted count too, with accuracy 0.

    This is the figure that MMAction2, PYSKL and ProtoGCN print as mean class accuracy.
    """
    predicted = scores.argmax(axis=1)
    right = np.bincount(labels, weights=predicted == labels, minlength=scores.shape[1])
    count = np.bincount(labels, minlength=scores.shape[1])
    occurs = (count > 0) | (np.bincount(predicted, minlength=scores.shape[1]) > 0)
    return float((right[occurs] / np.maximum(count[occurs], 1)).mean())


def confusion_matrix(
    predicted: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int | None = None,
    normalise: str | None = None,
) -> np.ndarray:
    """Counts (rows: truth, columns: prediction), float64.

    `classes` fixes the size; None keeps only the classes that occur in either. `normalise` divides by the
    number of clips of the true class ("true"), of the predicted class ("pred") or of all ("all"); 0 / 0 is 0.
    """
    if classes is None:
        occurring, positions = np.unique(np.concatenate([labels, predicted]), return_inverse=True)
        labels, predicted, classes = positions[: len(labels)], positions[len(labels) :], len(occurring)
    flat = np.bincount(labels * classes + predicted, minlength=classes * classes)
    matrix = flat.reshape(classes, classes).astype(np.float64)
    if normalise is None:
        return matrix
    totals = {
        "true": matrix.sum(axis=1, keepdims=True),
        "pred": matrix.sum(axis=0, keepdims=True),
        "all": matrix.sum(keepdims=True),
    }
    if normalise not in totals:
        raise UserError(f"normalise: {normalise!r} is none of true, pred, all")
    return matrix / np.maximum(totals[normalise], 1)


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean over classes of average precision; labels (N, K) of 0 and 1, several may be 1.

    Average precision is the sum over the distinct score thresholds of precision times the gain in recall.
    Classes without a positive clip are left out; without any positive clip the result is NaN.
    """
    precisions = [_average_precision(scores[:, k], labels[:, k]) for k in range(scores.shape[1]) if labels[:, k].any()]
    return float(np.mean(precisions)) if precisions else float("nan")


def _average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    order = np.argsort(-scores, kind="stable")
    ranked, positive = scores[order], labels[order].astype(np.float64)
    # Equal scores share one threshold: only the last of them is a point of the curve.
    points = np.flatnonzero(np.append(np.diff(ranked) != 0, True))
    true = positive.cumsum()[points]
    gain = np.diff(true, prepend=0.0) / positive.sum()
    return float((gain * true / (points + 1)).sum())


def average_clip(class_scores: np.ndarray, how: str = "prob") -> np.ndarray:
    """Outputs (N, clips, K) to one score per sample (N, K): "prob" = mean of softmax, "score" = mean."""
    if how == "score":
        return class_scores.mean(axis=1)
    if how != "prob":
        raise UserError(f"average_clip: {how!r} is neither prob nor score")
    shifted = np.exp(class_scores - class_scores.max(axis=-1, keepdims=True))
    return (shifted / shifted.sum(axis=-1, keepdims=True)).mean(axis=1)


def summary(table: ScoreTable) -> dict[str, float]:
    """top1, top5, mean_class (classes in the labels), mean_class_union (labels or predictions) and count."""
    scores, labels = table.scores, table.labels
    return {
        "top1": top_k(scores, labels, 1),
        "top5": top_k(scores, labels, 5),
        "mean_class": mean_class_accuracy(scores, labels),
        "mean_class_union": mean_class_accuracy_union(scores, labels),
        "count": len(labels),
    }


def paired_bootstrap(
    labels: np.ndarray,
    scores_a: np.ndarray,
    scores_b: np.ndarray,
    *,
    seed: int,
    draws: int = 2000,
    groups: Sequence[object] | np.ndarray | None = None,
) -> dict[str, float]:
    """Gain in top-1 of b over a on the same clips, with a 95 % interval (percentiles of resampled gains).

    `groups` (N,) names what is independent, such as the performance that several cameras filmed: whole groups
    are then drawn. Returns {"gain", "low", "high"} as shares.
    """
    if len(labels) == 0 or len(scores_a) != len(labels) or len(scores_b) != len(labels):
        raise UserError(
            f"bootstrap: {len(labels)} labels, {len(scores_a)} and {len(scores_b)} rows of scores; "
            "score both on the same clips"
        )
    change = _hits(scores_b, labels).astype(np.int64) - _hits(scores_a, labels)
    members = np.arange(len(labels))
    if groups is not None:
        if len(groups) != len(labels):
            raise UserError(f"bootstrap: {len(groups)} groups for {len(labels)} clips")
        members = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
    # A drawn group brings its summed change and its number of clips; a clip alone is a group of one.
    change_of = np.bincount(members, weights=change)
    clips_of = np.bincount(members)
    generator = np.random.default_rng(seed)
    gains = np.empty(draws)
    for draw in range(draws):
        drawn = generator.integers(len(clips_of), size=len(clips_of))
        gains[draw] = change_of[drawn].sum() / clips_of[drawn].sum()
    low, high = np.percentile(gains, [2.5, 97.5])
    return {"gain": float(change.mean()), "low": float(low), "high": float(high)}


def _hits(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> np.ndarray:
    if k == 1:
        return scores.argmax(axis=1) == labels
    best = np.argsort(scores, axis=1, kind="stable")[:, -k:]
    return (best == labels[:, None]).any(axis=1)
