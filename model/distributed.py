"""Several processes that train as one: who we are, gathering with gradients, synchronised batch norm.

Convention: rank r has loss L_r, and the objective is the mean of L_r over the ranks, which is what torch's
DistributedDataParallel minimises. The backward passes here therefore *sum* over ranks what each rank's loss
asks of a shared value; DistributedDataParallel then divides by the number of ranks. When L_r weighs the
rank's clips by their part of the batch, gradients equal those of one process that holds the whole batch.
"""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from model.errors import UserError

_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def world() -> tuple[int, int]:
    """(rank, number of ranks); (0, 1) without torch.distributed."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def init_from_env(device: str | torch.device = "cpu", timeout_minutes: float = 30.0) -> tuple[int, int]:
    """Join the process group that torchrun describes in the environment: gloo on CPU, nccl on GPU.

    Does nothing when there is no such description or the group exists. Returns world().
    Raises UserError when the description is incomplete.
    """
    if world()[1] > 1 or int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return world()
    missing = [name for name in _TORCHRUN if name not in os.environ]
    if missing:
        raise UserError(f"WORLD_SIZE is set but {', '.join(missing)} is not; start with torchrun")
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    timeout = timedelta(minutes=timeout_minutes)
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    # torchrun keeps one store over its restarts, in which ranks would find addresses of processes that are gone.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"attempt-{attempt}", store)
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    return world()


def share(count: int, rank: int, size: int) -> slice:
    """The rank's contiguous share of `count` rows; shares differ by at most one row."""
    return slice(count * rank // size, count * (rank + 1) // size)


def gather_features(tensor: Tensor) -> Tensor:
    """Rows (N_r, ...) of all ranks, concatenated in rank order, with gradients to every rank's rows.

    Ranks may hold different numbers of rows. With one rank the tensor itself is returned.
    """
    if world()[1] == 1:
        return tensor
    return _Gather.apply(tensor)


class SharedDropout(nn.Dropout):
    """Dropout that does not depend on how a batch is spread over ranks.

    The mask is drawn for the rows of all ranks, in rank order, of which each applies its own. That needs the same
    random state on every rank, which `model.train` sets before each step.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        rank, size = world()
        counts = _row_counts(x) if size > 1 else [len(x)]
        kept = torch.empty((sum(counts), *x.shape[1:]), dtype=x.dtype, device=x.device).bernoulli_(1 - self.p)
        first = sum(counts[:rank])
        return x * kept[first : first + len(x)] / (1 - self.p)


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean over the ranks, without gradients; `values` itself with one rank."""
    size = world()[1]
    if size == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / size


@torch.no_grad()
def broadcast_state(net: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0."""
    if world()[1] > 1:
        for tensor in (*net.parameters(), *net.buffers()):
            dist.broadcast(tensor.detach(), src=0)


def broadcast_object(value: Any) -> Any:
    """Rank 0's value on every rank."""
    if world()[1] == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def barrier() -> None:
    """Wait until every rank is here."""
    if world()[1] > 1:
        dist.barrier()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, tensor: Tensor) -> Tensor:
        rank, size = world()
        counts = _row_counts(tensor)
        # All-gather wants equal shapes, so shorter ranks are padded to the longest.
        longest = max(counts)
        padded = tensor.new_zeros((longest, *tensor.shape[1:]))
        padded[: counts[rank]] = tensor
        gathered = [torch.empty_like(padded) for _ in range(size)]
        dist.all_gather(gathered, padded)
        first = sum(counts[:rank])
        ctx.rows = slice(first, first + counts[rank])  # type: ignore[attr-defined]
        return torch.cat([rows[:count] for rows, count in zip(gathered, counts, strict=True)])

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.rows]  # type: ignore[attr-defined]


def _row_counts(tensor: Tensor) -> list[int]:
    size = world()[1]
    mine = torch.tensor([len(tensor)], device=tensor.device)
    counts = [torch.empty_like(mine) for _ in range(size)]
    dist.all_gather(counts, mine)
    return [int(count) for count in counts]


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm whose training statistics are those of all ranks' rows together; also on CPU.

    torch's own refuses CPU tensors. x (N_r, C, ...) -> the same shape; tensors and names are BatchNorm's.
    Statistics are merged from each rank's mean and centred sum of squares (Chan et al. 1979), which loses no
    digits. With `process_group` only its ranks share statistics.
    """

    process_group: Any = None

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch norm wants at least 2 axes, not {input.dim()}")

    def forward(self, x: Tensor) -> Tensor:
        use_batch = self.training or self.running_mean is None
        if not use_batch or world()[1] == 1:
            return super().forward(x)
        self._check_input_dim(x)
        # Like torch's kernels: statistics in the precision of the parameters, whatever autocast made of x.
        wide = x if x.dtype == torch.float64 else x.float()
        weight = wide.new_ones(self.num_features) if self.weight is None else self.weight
        bias = wide.new_zeros(self.num_features) if self.bias is None else self.bias
        y, mean, variance, count = _Normalise.apply(wide, weight, bias, self.eps, self.process_group)
        if self.training and self.track_running_stats:
            self._track(mean, variance, count)
        return y.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = variance * (count / (count - 1))
        for running, fresh in ((self.running_mean, mean), (self.running_var, unbiased)):
            assert running is not None
            running.mul_(1 - momentum).add_(fresh.to(running.dtype), alpha=momentum)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, eps: float, group: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        axes = [axis for axis in range(x.dim()) if axis != 1]
        local_mean = x.mean(axes)
        local_squares = (x - _along_channels(local_mean, x)).square().sum(axes)
        rows = torch.full_like(local_mean, x.numel() // x.shape[1])
        mine = torch.stack([local_mean, local_squares, rows])
        ranks = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
        dist.all_gather(ranks, mine, group=group)
        means, squares, counts = torch.stack(ranks, dim=1)  # each (ranks, C)
        count = counts.sum(0)
        mean = (means * counts).sum(0) / count
        variance = (squares.sum(0) + (counts * (means - mean).square()).sum(0)) / count
        scale = (variance + eps).rsqrt()
        normalised = (x - _along_channels(mean, x)) * _along_channels(scale, x)
        ctx.save_for_backward(normalised, weight, scale, count)
        ctx.group = group  # type: ignore[attr-defined]
        y = normalised * _along_channels(weight, x) + _along_channels(bias, x)
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        grad = gradients[0]
        normalised, weight, scale, count = ctx.saved_tensors  # type: ignore[attr-defined]
        axes = [axis for axis in range(grad.dim()) if axis != 1]
        grad_bias = grad.sum(axes)
        grad_weight = (grad * normalised).sum(axes)
        # The mean and variance depend on every rank's rows, so their gradient is summed over ranks; the
        # parameters' own gradients stay local, because DistributedDataParallel averages those.
        both = torch.stack([grad_bias, grad_weight])
        dist.all_reduce(both, group=ctx.group)  # type: ignore[attr-defined]
        through_mean, through_scale = (_along_channels(value / count, grad) for value in both)
        grad_x = (grad - through_mean - normalised * through_scale) * _along_channels(weight * scale, grad)
        return grad_x, grad_weight, grad_bias, None, None


def _along_channels(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(1, -1, *[1] * (like.dim() - 2))


def convert_sync_batchnorm(net: nn.Module) -> nn.Module:
    """Replace every batch norm inside `net` (in place) by a synchronised one with the same tensors.

    Names in the state dict do not change.
    """
    for name, child in net.named_children():
        if isinstance(child, SyncBatchNorm | nn.SyncBatchNorm):
            continue
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(net, name, synchronised(child))
        else:
            convert_sync_batchnorm(child)
    return net


def synchronised(norm: nn.modules.batchnorm._BatchNorm, process_group: Any = None) -> nn.modules.batchnorm._BatchNorm:
    """The batch norm that shares statistics over the ranks of `process_group` (all), with the tensors of `norm`.

    On a GPU it is torch's own SyncBatchNorm (fused kernels).
    """
    kind: type[SyncBatchNorm] | type[nn.SyncBatchNorm] = SyncBatchNorm
    if any(tensor.is_cuda for tensor in (*norm.parameters(recurse=False), *norm.buffers(recurse=False))):
        kind = nn.SyncBatchNorm
    fresh = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    fresh.process_group = process_group
    # The very same parameter objects, so an optimiser made earlier still holds them.
    fresh._parameters = norm._parameters
    fresh._buffers = norm._buffers
    return fresh.train(norm.training)
