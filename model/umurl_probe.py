"""What features are worth without training their network further: linear evaluation and retrieval (UmURL's protocols).

Features are x (N, F) float32 with labels y (N,) int64.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.errors import UserError
from model.settings import OPTIMISERS, TrainSettings, epoch_batches, learning_rate

QUERIES = 1024  # compared with the gallery at a time


@dataclass(frozen=True)
class Probe:
    """A trained linear classifier, and per look its epoch (from 1), rate and top-1 on the test features.

    `best` is the classifier of the look with the highest top-1, the earliest of equal ones. It was chosen on the test
    set, so it is no estimate; the released code reports it.
    """

    last: nn.Linear
    best: nn.Linear
    best_epoch: int
    history: list[dict[str, float]]


def linear_classifier(width: int, classes: int, seed: int) -> nn.Linear:
    """A classifier as released: weights N(0, 0.01), biases 0."""
    layer = nn.Linear(width, classes)
    nn.init.normal_(layer.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(layer.bias)
    return layer


def linear_evaluation(
    layer: nn.Linear,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    settings: TrainSettings,
    *,
    shuffle: bool = True,
) -> Probe:
    """Train `layer` in place on fixed features and look at `test` every `settings.validate_every` epochs.

    Batches are drawn anew each epoch unless `shuffle` is off. Raises UserError for fewer than two training features.
    """
    (x, y), (test_x, test_y) = train, test
    if len(x) < 2:
        raise UserError(f"linear evaluation: {len(x)} training features; there must be at least 2")
    optimiser = OPTIMISERS[settings.optimiser](layer.parameters(), settings)
    history: list[dict[str, float]] = []
    best, best_epoch, best_top1 = layer, 0, -1.0
    for epoch in range(settings.epochs):
        ordered = torch.arange(len(x)).split(settings.batch_size)
        batches = epoch_batches(settings, y, epoch) if shuffle else list(ordered)
        rate = learning_rate(settings, epoch * len(batches), len(batches))
        for group in optimiser.param_groups:
            group["lr"] = rate
        for rows in batches:
            optimiser.zero_grad()
            F.cross_entropy(layer(x[rows]), y[rows]).backward()
            optimiser.step()
        if (epoch + 1) % settings.validate_every == 0 or epoch + 1 == settings.epochs:
            with torch.no_grad():
                top1 = float((layer(test_x).argmax(1) == test_y).double().mean())
            history.append({"epoch": epoch + 1.0, "lr": rate, "top1": top1})
            if top1 > best_top1:
                best, best_epoch, best_top1 = _copy(layer), epoch + 1, top1
    return Probe(layer, best, best_epoch, history)


def retrieve(gallery: Tensor, labels: Tensor, queries: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """The majority label (Q,) of the k gallery features of highest cosine, and their rows (Q, k), nearest first.

    Of classes named equally often the smallest counts. Raises UserError when the gallery holds fewer than k.
    """
    if len(gallery) < k:
        raise UserError(f"retrieval: the gallery holds {len(gallery)} clips, fewer than the {k} neighbours asked for")
    gallery = F.normalize(gallery)
    near = torch.cat([(F.normalize(part) @ gallery.T).topk(k).indices for part in queries.split(QUERIES)])
    votes = F.one_hot(labels[near], int(labels.max()) + 1).sum(1)
    return votes.argmax(1), near


def _copy(layer: nn.Linear) -> nn.Linear:
    copy = nn.Linear(layer.in_features, layer.out_features)
    copy.load_state_dict(layer.state_dict())
    return copy
