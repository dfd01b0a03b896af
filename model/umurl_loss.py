"""UmURL's pre-training loss (facts of the released code): VICReg with weights 5, 5 and 1 over modalities.

z (N, D) are projected features. Under torch.distributed every rank passes its rows; they are gathered with their
gradients, so each rank's loss is that of one process with the whole batch.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from model.distributed import gather_features

AGREEMENT = 5.0  # weight of the intra- and inter-modal terms
VARIANCE = 5.0
EPSILON = 1e-4

Parts = dict[str, Tensor]


def consistency_loss(single: Sequence[Tensor], fused: Sequence[Tensor]) -> tuple[Tensor, Parts]:
    """Loss of uni-modal features and the fused feature's parts, both per modality: (N, D) each.

    Intra-modal: the fused feature's part is drawn to the modality's own. Inter-modal: each modality is drawn to
    their mean. Returns the total and its detached parts: intra, inter, variance, covariance.
    """
    with torch.autocast(fused[0].device.type, enabled=False):
        own, parts = ([gather_features(_wide(z)) for z in group] for group in (single, fused))
        intra = sum_of([F.mse_loss(z, u) for z, u in zip(own, parts, strict=True)])
        centre = torch.stack(own).mean(0)
        inter = sum_of([F.mse_loss(z, centre) for z in own])
        return _total(intra + inter, [*own, *parts], {"intra": intra, "inter": inter})


def fusion_loss(one: Tensor, two: Tensor) -> tuple[Tensor, Parts]:
    """Loss of the early-fusion baseline: two views' fused features (N, D) agree, nothing is said of modalities."""
    with torch.autocast(one.device.type, enabled=False):
        one, two = (gather_features(_wide(z)) for z in (one, two))
        agreement = F.mse_loss(one, two)
        return _total(agreement, [one, two], {"agreement": agreement})


def _total(agreement: Tensor, features: Sequence[Tensor], parts: Parts) -> tuple[Tensor, Parts]:
    terms = [variance_covariance(z) for z in features]
    variance, covariance = (sum_of(kind) for kind in zip(*terms, strict=True))
    total = AGREEMENT * agreement + VARIANCE * variance + covariance
    parts = {**parts, "variance": variance, "covariance": covariance}
    return total, {name: value.detach() for name, value in parts.items()}


def variance_covariance(z: Tensor) -> tuple[Tensor, Tensor]:
    """How far z (N, D) falls short of unit spread per column, and how much its columns vary together.

    mean_d relu(1 - sqrt(var_d + 1e-4)) with the unbiased variance, and (1/D) times the sum of the squared
    covariances (N - 1) off the diagonal. The latter needs no D x D matrix when N < D: the squares of Z^T Z and of
    Z Z^T sum to the same.
    """
    rows, columns = z.shape
    centred = z - z.mean(0)
    variance = centred.square().sum(0) / (rows - 1)
    product = centred @ centred.T if rows < columns else centred.T @ centred
    squares = (product / (rows - 1)).square().sum()
    spread = F.relu(1 - (variance + EPSILON).sqrt()).mean()
    return spread, (squares - variance.square().sum()) / columns


def sum_of(terms: Sequence[Tensor]) -> Tensor:
    """The sum of scalars."""
    return torch.stack(list(terms)).sum()


def _wide(z: Tensor) -> Tensor:
    return z if z.dtype == torch.float64 else z.float()
