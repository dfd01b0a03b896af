"""A member's checkpoints → score tables on every split, and their metrics."""

from pathlib import Path
from typing import Any

from components.files import read_json, staged_dir, write_json
from components.params import Params
from components.splits import parts_of, scored_splits
from components.tracked import track_evaluation
from model.errors import UserError
from model.metrics import summary
from model.scoretable import ScoreTable, save_table
from model.store import open_store


def evaluate(params: Params, member: str, data: Path, trained: Path, out: Path) -> None:
    """Score the best and the last checkpoint by the recipe's test protocol.

    Writes `<best|last>-<split>.npz` for the development split (where there is one) and every test split, and
    `metrics.json`, which names the checkpoint that the protocol counts.

    Args:
        params: the parameters.
        member: name of the member in params.yaml.
        data: folder of the packed store.
        trained: folder with best.pt and last.pt.
        out: folder for the score tables.

    Raises:
        UserError: a checkpoint is missing, corrupt or of other data or classes.
    """
    import torch

    from model.checkpoint import build_network, load_checkpoint
    from model.feeding import test_clips
    from model.score import score_clips

    params.member(member)
    store = open_store(data)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    metrics: dict[str, Any] = {"chosen": "last" if params.protocol == "last" else "best"}
    parts = parts_of(store, params)
    batch = params.entry.recipe.test_batch
    with staged_dir(out) as aside:
        for which in ("best", "last"):
            path = trained / f"{which}.pt"
            checkpoint = load_checkpoint(path)
            if list(checkpoint["classes"]) != list(store.classes) or checkpoint["data_hash"] != store.data_hash:
                raise UserError(f"{path}: trained on other data or classes than {data} holds; train {member!r} again")
            net = build_network(checkpoint).to(device)
            recipe = {**checkpoint["recipe"], "test_clips": params.entry.recipe.test_clips}
            metrics[which] = {"epoch": checkpoint["epoch"]}
            for split, positions in scored_splits(parts).items():
                clips = test_clips(store, positions, recipe, device)
                table = ScoreTable(
                    ids=[store.ids[p] for p in positions],
                    labels=store.labels[positions],
                    scores=score_clips(net, clips, batch, device),
                    split=split,
                    member=member,
                    data_hash=store.data_hash,
                    classes=list(store.classes),
                )
                save_table(aside / f"{which}-{split}.npz", table)
                metrics[which][split] = summary(table)
        write_json(aside / "metrics.json", metrics)
    track_evaluation(params, member, store, trained, read_json(out / "metrics.json"))
