"""Linear evaluation: one linear layer on the fixed features of every encoder → score tables and metrics."""

from pathlib import Path
from typing import Any

import numpy as np

from components.files import read_json, staged_dir, write_json
from components.params import Params
from components.splits import DEVELOPMENT
from components.umurl import ENCODERS, TRAIN, encoder_run, load_features, main_test, metric_name, splits_of
from model.metrics import summary
from model.scoretable import ScoreTable, save_table
from model.store import Store, open_store


def umurl_linear(params: Params, data: Path, features: Path, out: Path) -> None:
    """Train a linear classifier on every encoder's training features and score the splits.

    Writes, as `evaluate` does of members, `<encoder>/scores/<last|best_on_test>-<split>.npz` and `metrics.json` there,
    so that they can be fused and compared; and `<encoder>/history.json`, the accuracy while training (on the
    development split where there is one, else on the test split, which then only `best_on_test` acts on).

    Args:
        params: the parameters; `umurl.linear` says how.
        data: folder of the packed store.
        features: folder with the features of every encoder.
        out: folder for tables and metrics.

    Raises:
        UserError: features that are missing or of other data.
    """
    store = open_store(data)
    metrics = {}
    with staged_dir(out) as aside:
        for encoder in ENCODERS:
            metrics[encoder] = _evaluated(params, encoder, store, features, aside / encoder)
        write_json(aside / "metrics.json", metrics)
    for encoder in ENCODERS:
        entry = read_json(out / "metrics.json")[encoder]
        chosen = entry[entry["chosen"]]
        with encoder_run(params, encoder, store) as run:
            figures = {
                metric_name(params, split, f"linear/{figure}"): value
                for split, values in chosen.items()
                if isinstance(values, dict)
                for figure, value in values.items()
            }
            run.log_final(figures, step=params.umurl.pretrain.epochs)
            run.log_tags({"linear.reported": entry["chosen"]})


def _evaluated(params: Params, encoder: str, store: Store, features: Path, out: Path) -> dict[str, Any]:
    import torch

    from model.settings import TrainSettings
    from model.umurl_probe import linear_classifier, linear_evaluation

    spec, seed = params.umurl.linear, params.umurl.seed
    found, splits = load_features(features, encoder, store), splits_of(params, store)
    settings = TrainSettings(
        epochs=spec.epochs,
        batch_size=spec.batch_size,
        lr=spec.lr,
        seed=seed,
        momentum=spec.momentum,
        nesterov=False,
        weight_decay=0.0,
        schedule="step",
        milestones=tuple(spec.milestones),
        validate_every=spec.look_every,
    )

    def pair(split: str) -> tuple[Any, Any]:
        positions = splits[split]
        return torch.from_numpy(found.at(positions)), torch.from_numpy(store.labels[positions])

    on_test = spec.report == "best_on_test"
    watched = DEVELOPMENT if DEVELOPMENT in splits and not on_test else main_test(params)
    layer = linear_classifier(found.values.shape[1], len(store.classes), seed)
    probe = linear_evaluation(layer, pair(TRAIN), pair(watched), settings)
    write_json(out / "history.json", [{**look, "split": watched} for look in probe.history])
    used, epoch = (probe.best, probe.best_epoch) if on_test else (probe.last, spec.epochs)
    entry: dict[str, Any] = {"epoch": epoch}
    for split, positions in splits.items():
        if split == TRAIN:
            continue
        with torch.no_grad():
            scores = used(pair(split)[0]).softmax(1).numpy().astype(np.float32)
        table = ScoreTable(
            ids=[store.ids[p] for p in positions],
            labels=store.labels[positions],
            scores=scores,
            split=split,
            member=f"{encoder}-linear",
            data_hash=store.data_hash,
            classes=list(store.classes),
        )
        save_table(out / "scores" / f"{spec.report}-{split}.npz", table)
        entry[split] = summary(table)
    metrics = {"chosen": spec.report, spec.report: entry}
    write_json(out / "scores" / "metrics.json", metrics)
    return metrics
