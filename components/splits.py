"""Which clips train, choose the epoch, and test, under a protocol."""

from dataclasses import dataclass

import numpy as np

from components.params import Params
from model.errors import UserError
from model.protocol import development_split
from model.store import Store

DEVELOPMENT = "development"


@dataclass(frozen=True)
class Parts:
    """Positions in the store. `select` chooses the epoch (None: the last counts); `tests` maps split to positions."""

    train: np.ndarray
    select: np.ndarray | None
    development: np.ndarray | None
    tests: dict[str, np.ndarray]
    description: str


def parts_of(store: Store, params: Params) -> Parts:
    """Apply the protocol of `params` to a store. Raises UserError naming a split that the store lacks."""
    split = params.entry.split
    for name in (split.train, *split.test):
        if name not in store.splits:
            raise UserError(
                f"datasets.{params.dataset}.split: the data has no split {name!r}; "
                f"it has {', '.join(sorted(store.splits)) or 'none'}"
            )
    train = store.splits[split.train]
    tests = {name: store.splits[name] for name in split.test}
    shared = np.intersect1d(train, np.concatenate(list(tests.values())))
    if len(shared):
        raise UserError(
            f"datasets.{params.dataset}.split: {len(shared)} clips are in both {split.train!r} and a test split, "
            f"for instance {store.ids[shared[0]]!r}; name splits that do not overlap"
        )
    main = split.test[0]
    if params.protocol == "development":
        factor = {"xsub": "subject", "xview": "camera", "xset": "setup"}.get(split.name, "auto")
        factor = split.development if split.development != "auto" else factor
        train, development, held_out = development_split(
            store, train, factor=factor, share=split.development_share, seed=0
        )
        text = f"development: epoch chosen on {held_out}, held out of {split.train}; tested on {', '.join(tests)}"
        return Parts(train, development, development, tests, text)
    if params.protocol == "published":
        text = f"published: best epoch on the test split {main} itself, as the original papers report"
        return Parts(train, tests[main], None, tests, text)
    return Parts(train, None, None, tests, f"last: all of {split.train}, last epoch; tested on {', '.join(tests)}")


def scored_splits(parts: Parts) -> dict[str, np.ndarray]:
    """Splits that evaluation scores, the development split first."""
    own = {} if parts.development is None else {DEVELOPMENT: parts.development}
    return {**own, **parts.tests}
