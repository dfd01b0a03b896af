"""A member's checkpoints → score tables on every split, and their metrics."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from components.files import read_json, staged_dir, write_json
from components.params import Params
from components.splits import parts_of, scored_splits
from components.storage import file_md5
from components.tracked import track_evaluation
from components.train import publish_given
from model.errors import UserError
from model.metrics import summary
from model.scoretable import ScoreTable, save_table
from model.store import Store, open_store


def evaluate(
    params: Params, member: str, data: Path, *, out: Path, trained: Path | None = None, checkpoint: str = ""
) -> None:
    """Score the best and the last checkpoint, or a given one, by the recipe's test protocol.

    Writes `<best|last>-<split>.npz` for the development split (where there is one) and every test split, and
    `metrics.json`, which names the checkpoint that the protocol counts.

    Args:
        params: the parameters.
        member: name of the member in params.yaml.
        data: folder of the packed store.
        trained: folder with best.pt and last.pt.
        out: folder for the score tables.
        checkpoint: in place of that folder a published checkpoint or models:/NAME/VERSION, which need not be of
            these data; its scores are printed and not tracked.

    Raises:
        UserError: a checkpoint is missing, corrupt or of other data or classes.
    """
    if checkpoint:
        if trained is not None:
            raise UserError("evaluate: give --trained or --checkpoint, not both")
        with tempfile.TemporaryDirectory(prefix="sixstream-") as scratch:
            folder = Path(scratch) / "trained"
            publish_given(params.with_weights(member, checkpoint), member, open_store(data), folder)
            metrics = score_trained(params, member, data, folder, out)
        for split, found in metrics[metrics["chosen"]].items():
            if split != "epoch":
                print(f"{member}, {split}: top-1 {found['top1']:.2%}, mean class {found['mean_class']:.2%}")
        return
    if trained is None:
        raise UserError("evaluate: name the folder of the training with --trained, or a file with --checkpoint")
    metrics = score_trained(params, member, data, trained, out)
    track_evaluation(params, member, open_store(data), trained, metrics)


def score_trained(params: Params, member: str, data: Path, trained: Path, out: Path) -> dict[str, Any]:
    """Score best.pt and last.pt in `trained`; the content of metrics.json."""
    import torch

    from model.checkpoint import build_network
    from model.feeding import test_clips
    from model.score import score_clips

    own = params.recipe(member)
    store = open_store(data)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    metrics: dict[str, Any] = {"chosen": "last" if params.protocol == "last" else "best"}
    splits = scored_splits(parts_of(store, params))
    # Splits may overlap (a test split and the same without its doubles): every clip is scored once.
    union = np.unique(np.concatenate(list(splits.values())))
    scored: dict[str, np.ndarray] = {}
    with staged_dir(out) as aside:
        for which in ("best", "last"):
            path = trained / f"{which}.pt"
            checkpoint = own_checkpoint(path, store, member)
            weights = file_md5(path)
            if weights not in scored:  # without a selection split the best checkpoint is the last
                recipe = {**checkpoint["recipe"], "test_clips": own.test_clips}
                net = build_network(checkpoint, str(path)).to(device)
                clips = test_clips(store, union, recipe, device)
                scored[weights] = score_clips(net, clips, own.test_batch, device)
            metrics[which] = {"epoch": checkpoint["epoch"]}
            for split, positions in splits.items():
                table = ScoreTable(
                    ids=[store.ids[p] for p in positions],
                    labels=store.labels[positions],
                    scores=scored[weights][np.searchsorted(union, positions)],
                    split=split,
                    member=member,
                    data_hash=store.data_hash,
                    classes=list(store.classes),
                )
                save_table(aside / f"{which}-{split}.npz", table)
                metrics[which][split] = summary(table)
        write_json(aside / "metrics.json", metrics)
    return dict(read_json(out / "metrics.json"))


def own_checkpoint(path: Path, store: Store, member: str) -> dict[str, Any]:
    """A member's checkpoint. Raises UserError when it is missing, damaged or of other data or classes than `store`."""
    from model.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    if list(checkpoint["classes"]) != list(store.classes) or checkpoint["data_hash"] != store.data_hash:
        raise UserError(f"{path}: trained on other data or classes than {store.folder} holds; train {member!r} again")
    return checkpoint
