"""Persons that are not there are computed once.

A slot without a person holds zeros, and most clips of NTU have such a second slot. Zeros of one slot give the same
activations in every clip: one stands for all, and in training counts as often in the statistics of the norms.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.distributed import SharedDropout
from model.nets.norm import BatchNorm, ready, separate


@dataclass(frozen=True)
class Distinct:
    """Rows of (N*M) that differ, how many each stands for, and where each row's stand-in is among them."""

    rows: Tensor
    counts: Tensor
    places: Tensor


def distinct_persons(x: Tensor, blocks: nn.Module) -> Distinct | None:
    """Of clips (N, M, T, V, C) that enter `blocks`; None where nothing is saved or the result could be another one."""
    # How many rows there are is read on the host, which neither a compiler nor a recorded graph can do.
    recorded = (
        x.is_meta
        or separate()
        or torch.compiler.is_compiling()
        or (x.is_cuda and torch.cuda.is_current_stream_capturing())
    )
    if recorded or x.requires_grad or (blocks.training and not _can_count(x, blocks)):
        return None
    empty = ~x.flatten(2).any(2)  # (N, M)
    if not bool((empty.sum(0) > 1).any()):
        return None
    own = torch.arange(empty.numel(), device=x.device).view_as(empty)
    # The first empty clip of a slot: norms of the input may treat slots differently.
    first = empty.int().argmax(0) * empty.shape[1] + own[0]
    rows, places, counts = torch.where(empty, first, own).flatten().unique(return_inverse=True, return_counts=True)
    return Distinct(rows, counts, places)


def _can_count(x: Tensor, blocks: nn.Module) -> bool:
    """Whether every norm can count a row several times, and nothing is dropped at random."""
    for module in blocks.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not (
            isinstance(module, BatchNorm) and ready(module, x)
        ):
            return False
        if isinstance(module, SharedDropout) and module.active:
            return False
    return True
