"""Features of ten classes in two dimensions, the early-fusion baseline beside UmURL."""

from pathlib import Path
from typing import Any

import numpy as np

from components.embedding import embedded
from components.files import staged_dir, write_bytes, write_json
from components.params import Params
from components.umurl import encoder_run, load_features, main_test, splits_of
from model.errors import UserError
from model.store import Store, open_store

SHOWN = {"early_fusion": "early fusion", "umurl": "UmURL"}


def umurl_plot(params: Params, data: Path, features: Path, out: Path) -> None:
    """Draw t-SNE maps of the test features of some classes, one map per encoder.

    Writes `features.png` and `points.json` (the classes drawn, clips, labels and coordinates).

    Args:
        params: the parameters; `umurl.plot` says how many classes and the perplexity.
        data: folder of the packed store.
        features: folder with the features of every encoder.
        out: folder for the picture.

    Raises:
        UserError: features that are missing or of other data, or fewer than four clips to show.
    """
    from components.figures import feature_maps, render

    store = open_store(data)
    positions, classes = chosen_clips(params, store)
    labels = store.labels[positions]
    maps = {
        title: embedded(
            load_features(features, encoder, store).at(positions), params.umurl.plot.perplexity, params.umurl.seed
        )
        for encoder, title in SHOWN.items()
    }
    names = [store.classes[c] for c in classes]
    rows = np.searchsorted(classes, labels)
    _, png = render("umurl", lambda: feature_maps(maps, rows, names))
    points: dict[str, Any] = {title: np.round(values, 4).tolist() for title, values in maps.items()}
    with staged_dir(out) as aside:
        write_bytes(aside / "features.png", png)
        write_json(
            aside / "points.json",
            {"split": main_test(params), "classes": names, "ids": [store.ids[p] for p in positions],
             "labels": labels.tolist(), "points": points},
        )  # fmt: skip
    with encoder_run(params, "umurl", store) as run:
        run.log_file(out / "features.png")


def chosen_clips(params: Params, store: Store) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the test clips shown and the classes that they are of, ascending."""
    spec = params.umurl.plot
    generator = np.random.default_rng(params.umurl.seed)
    test = splits_of(params, store)[main_test(params)]
    present = np.unique(store.labels[test])
    classes = np.sort(generator.permutation(present)[: spec.classes])
    positions = test[np.isin(store.labels[test], classes)]
    if len(positions) > spec.clips:
        positions = np.sort(generator.permutation(positions)[: spec.clips])
    if len(positions) < 4:
        raise UserError(f"umurl-plot: split {main_test(params)!r} has {len(positions)} clips to show; 4 are needed")
    return positions, classes
