"""Retrieval: every test clip takes the class of the training clip whose features are nearest."""

from pathlib import Path
from typing import Any

from components.files import staged_dir, write_json
from components.params import Params
from components.umurl import ENCODERS, TRAIN, encoder_run, load_features, metric_name, splits_of
from model.store import open_store


def umurl_retrieve(params: Params, data: Path, features: Path, out: Path) -> None:
    """Find every scored clip's neighbours among the training clips, by cosine, for all encoders.

    Writes `metrics.json`: per encoder and split the share of clips whose neighbours name the right class.

    Args:
        params: the parameters; `umurl.retrieval` says how many neighbours vote.
        data: folder of the packed store.
        features: folder with the features of every encoder.
        out: folder for the metrics.

    Raises:
        UserError: features that are missing or of other data.
    """
    import torch

    from model.umurl_probe import retrieve

    store = open_store(data)
    splits = splits_of(params, store)
    train = splits.pop(TRAIN)
    metrics: dict[str, Any] = {}
    for encoder in ENCODERS:
        found = load_features(features, encoder, store)
        gallery, labels = torch.from_numpy(found.at(train)), torch.from_numpy(store.labels[train])
        metrics[encoder] = {}
        for split, positions in splits.items():
            named, _ = retrieve(
                gallery, labels, torch.from_numpy(found.at(positions)), params.umurl.retrieval.neighbours
            )
            right = named.numpy() == store.labels[positions]
            metrics[encoder][split] = {"top1": float(right.mean()), "count": len(positions)}
    with staged_dir(out) as aside:
        write_json(aside / "metrics.json", metrics)
    for encoder, entry in metrics.items():
        with encoder_run(params, encoder, store) as run:
            figures = {metric_name(params, split, "retrieval/top1"): values["top1"] for split, values in entry.items()}
            run.log_final(figures, step=params.umurl.pretrain.epochs)
