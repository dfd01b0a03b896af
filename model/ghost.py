"""Batch norm over groups of a fixed number of clips, on any number of devices.

A recipe of eight GPUs with 16 clips each has batch norm average over 16 of its 128 clips. Here the global batch falls
into as many groups as the recipe has (`TrainSettings.groups`), in the order of its clips. A rank that holds several
groups normalises one after the other ("ghost" batch norm, Hoffer et al. 2017); where several ranks hold one group, they
synchronise their statistics, and others take no part. The running statistics move once per optimiser step, by the
groups' mean (the originals keep those of their first GPU).
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.distributed import synchronised, world
from model.errors import UserError

Norm = nn.modules.batchnorm._BatchNorm


@dataclass
class Groups:
    """The groups of one rank: how many of its own in each of the `passes` of a step, and what pass is under way."""

    total: int  # groups of a pass over all ranks
    passes: int
    process_group: Any = None  # the ranks that share one group, if there are several
    part: int = 0
    bounds: list[int] = field(default_factory=list)  # of this rank's groups, in clips of this pass

    @property
    def own(self) -> int:
        return max(1, self.total // world()[1])

    def begin(self, part: int, clips: int) -> None:
        """Pass `part` (from 0) of a step of `clips` clips, over all ranks and passes, begins."""
        rank, size = world()
        self.part = part
        pieces = max(self.total, size)  # of a pass: what one rank takes of one group
        first = part * pieces + rank * self.own
        rows = [clips * piece // (self.passes * pieces) for piece in range(first, first + self.own + 1)]
        self.bounds = [row - rows[0] for row in rows]


class GroupedBatchNorm(Norm):
    """A batch norm that is applied to each group of its rows; tensors and names are those of the norm it wraps.

    x (R, C, ...) -> the same shape; R is a multiple of the rank's clips, and the rows of a clip lie together.
    """

    def __init__(self, norm: Norm, groups: Groups) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self._parameters, self._buffers = norm._parameters, norm._buffers
        self.groups = groups
        self._inner = [norm]  # in a list, or its tensors would have second names

    def _check_input_dim(self, input: Tensor) -> None:
        self._inner[0]._check_input_dim(input)

    def forward(self, x: Tensor) -> Tensor:
        norm = self._inner[0].train(self.training)
        if not self.training:
            return norm(x)
        groups, momentum = self.groups, self.momentum
        assert momentum is not None
        rows, left = divmod(len(x), groups.bounds[-1])
        if left:
            raise ValueError(f"{len(x)} rows for {groups.bounds[-1]} clips: batch norm by groups needs whole clips")
        done, count = groups.part * groups.own, groups.passes * groups.own
        parts = []
        for number, (start, stop) in enumerate(pairwise(groups.bounds), start=1):
            # Taken one after the other with these weights, the groups of a step count alike and together `momentum`.
            norm.momentum = momentum / (count - (count - done - number) * momentum)
            parts.append(norm(x[start * rows : stop * rows]))
        norm.momentum = momentum
        if norm.num_batches_tracked is not None:  # a step counts once
            norm.num_batches_tracked.sub_(len(parts) - int(groups.part == 0))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def group_norms(net: nn.Module, total: int, passes: int) -> Groups:
    """Have every batch norm of `net` (in place) work on groups, `total` of them in each of the `passes` of a step.

    Called by every rank. Raises UserError when groups and ranks do not nest.
    """
    rank, size = world()
    if total % size and size % total:
        raise UserError(
            f"bn_batch: {total} groups for batch norm in a pass do not spread evenly over {size} processes; take a "
            "number of processes that divides them or is a multiple, or change accumulate"
        )
    groups = Groups(total, passes)
    if total < size:
        shared = size // total
        made = [dist.new_group(range(first, first + shared)) for first in range(0, size, shared)]
        groups.process_group = made[rank // shared]
    _convert(net, groups)
    return groups


def _convert(net: nn.Module, groups: Groups) -> None:
    for name, child in net.named_children():
        if isinstance(child, Norm):
            inner = child if groups.process_group is None else synchronised(child, groups.process_group)
            setattr(net, name, GroupedBatchNorm(inner, groups))
        else:
            _convert(child, groups)


@torch.no_grad()
def average_statistics(net: nn.Module) -> None:
    """Give every rank the mean over ranks of the running statistics, each rank having seen groups of its own."""
    size = world()[1]
    buffers = [
        buffer
        for norm in net.modules()
        if isinstance(norm, GroupedBatchNorm)
        for buffer in (norm.running_mean, norm.running_var)
        if buffer is not None
    ]
    if size == 1 or not buffers:
        return
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    dist.all_reduce(flat)
    for buffer, mean in zip(buffers, (flat / size).split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))
