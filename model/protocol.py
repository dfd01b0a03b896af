"""Development splits: training clips held out, by the protocol's own factor, to choose the epoch without the test set.

Cross-subject protocols hold out whole subjects, cross-view whole cameras, cross-setup whole setups, so that the
development set differs from training in the way the test set does.
"""

import numpy as np

from model.errors import UserError
from model.store import Store

FACTORS = ("subject", "camera", "setup")
FACTOR_OF_PROTOCOL = {"xsub": "subject", "xview": "camera", "xset": "setup"}


def development_split(
    store: Store,
    train_positions: np.ndarray,
    *,
    split: str = "",
    factor: str = "auto",
    share: float = 0.2,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, str]:
    """Divide training clips into (train, development, what was held out in words), both in their given order.

    `factor` is "subject", "camera", "setup" or "none" (stratified by class). "auto" takes the factor that the name
    of the `split` begins with (xsub, xview, xset), else the subject, and stratifies where that factor is not known
    or has one value only. Whole groups are held out until about `share` of the clips is; every class keeps training
    clips. Depends on nothing but the arguments.

    Raises UserError when the factor is unknown to the store or no group can be held out.
    """
    train_positions = np.asarray(train_positions, np.int64)
    if not 0 < share < 1:
        raise UserError(f"development share {share} must lie between 0 and 1")
    if factor not in (*FACTORS, "none", "auto"):
        raise UserError(f"development factor '{factor}' is not one of {', '.join((*FACTORS, 'none', 'auto'))}")
    random = np.random.RandomState(seed)
    labels = store.labels[train_positions]
    if factor == "auto":
        factor = FACTOR_OF_PROTOCOL.get(split.split("_")[0], "subject")
        if factor not in store.factors or len(np.unique(store.factors[factor][train_positions])) < 2:
            factor = "none"
    if factor == "none":
        held, words = _stratified(labels, share, random)
    elif factor not in store.factors:
        known = ", ".join(store.factors) or "no factor at all"
        raise UserError(f"development factor '{factor}' is not known of every clip (known: {known}); use 'none'")
    else:
        held, words = _grouped(store.factors[factor][train_positions], factor, labels, share, random)
    description = f"{words}{held.sum()} of {len(held)} training clips)"
    return train_positions[~held], train_positions[held], description


def _grouped(
    groups: np.ndarray, factor: str, labels: np.ndarray, share: float, random: np.random.RandomState
) -> tuple[np.ndarray, str]:
    values, group = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(values), int(labels.max()) + 1), np.int64)
    np.add.at(counts, (group, labels), 1)
    left = counts.sum(axis=0)
    present = left > 0
    wanted, taken = share * len(labels), 0
    chosen: list[int] = []
    for g in random.permutation(len(values)):
        size = int(counts[g].sum())
        nearer = abs(taken + size - wanted) < abs(taken - wanted)
        if (nearer or not chosen) and (left - counts[g])[present].all():
            chosen.append(int(g))
            left, taken = left - counts[g], taken + size
    if not chosen:
        raise UserError(
            f"development factor '{factor}': no {factor} can be held out without losing a class from training; "
            "use another factor or 'none'"
        )
    names = ", ".join(str(values[g]) for g in sorted(chosen))
    plural = "s" if len(chosen) > 1 else ""
    return np.isin(group, chosen), f"{factor}{plural} {names} ({len(chosen)} of {len(values)}; "


def _stratified(labels: np.ndarray, share: float, random: np.random.RandomState) -> tuple[np.ndarray, str]:
    order = random.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    size = counts[labels[order]]
    # At least one of two or more clips is held out, and at least one always stays.
    quota = np.clip(np.rint(share * size), 1, size - 1)
    held = np.zeros(len(labels), bool)
    held[order] = rank < quota
    if not held.any():
        raise UserError("no development clips: every class has a single training clip; turn the split off")
    return held, "a share of every class ("
