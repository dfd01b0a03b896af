"""Losses: cross entropy lives in torch; here is ProtoGCN's class-specific contrast."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.distributed import gather_features

EPSILON = 1e-12  # added to both norms of the cosine


class ClassContrast(nn.Module):
    """Class-specific contrastive loss (ProtoGCN, section 3.4) with a bank of one vector per class.

    The bank is a buffer: it is saved with the weights, restored on resume and the same on every rank. The
    update uses only correctly classified samples, as the released code does (the paper averages all samples
    of a class), and the gradient flows through the fresh part of the bank; the former content is constant.
    """

    bank: Tensor

    def __init__(
        self, width: int, num_classes: int, *, size: int = 256, momentum: float = 0.9, temperature: float = 0.125
    ) -> None:
        super().__init__()
        self.cl_fc = nn.Linear(width, size)
        self.momentum = momentum
        self.temperature = temperature
        self.register_buffer("bank", torch.randn(size, num_classes))
        self.deferred = False
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def forward(self, graph: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Graph vectors (N, V*V), class scores (N, classes) and labels (N,) of this rank -> scalar.

        Ranks pool their samples, so the value equals that of one process holding the whole batch.
        """
        with torch.autocast(graph.device.type, enabled=False):
            dtype = self.bank.dtype
            features = gather_features(self.cl_fc(graph.to(dtype)))
            correct = gather_features(logits.detach().argmax(1) == labels)
            labels = gather_features(labels)
            chosen = F.one_hot(labels, self.bank.shape[1]).to(features.dtype) * correct[:, None]
            sums, counts = features.T @ chosen, chosen.sum(0)
            bank = self._updated_bank(sums, counts)
            if self.training and self.deferred:
                self._waiting.append((sums.detach(), counts))
            elif self.training:
                self.bank.copy_(bank.detach())
            directions = bank / (bank.norm(dim=0, keepdim=True) + EPSILON)
            features = features / (features.norm(dim=1, keepdim=True) + EPSILON)
            return F.cross_entropy(features @ directions / self.temperature, labels)

    @torch.no_grad()
    def commit(self) -> None:
        """Move the bank by the means over all passes since the last call, if `deferred` kept them back."""
        if self._waiting:
            sums, counts = (torch.stack(values).sum(0) for values in zip(*self._waiting, strict=True))
            self._waiting.clear()
            self.bank.copy_(self._updated_bank(sums, counts))

    def _updated_bank(self, sums: Tensor, counts: Tensor) -> Tensor:
        mean = sums / counts.clamp(min=1)
        # clone: the buffer is overwritten before the backward pass runs
        former = self.bank.clone()
        return torch.where(counts > 0, self.momentum * former + (1 - self.momentum) * mean, former)


def defer_banks(net: nn.Module, passes: int) -> None:
    """Have class banks move once per optimiser step of so many forward passes, at `commit_banks`."""
    for module in net.modules():
        if isinstance(module, ClassContrast):
            module.deferred = passes > 1


def commit_banks(net: nn.Module) -> None:
    """Move the banks that `defer_banks` keeps back: after an optimiser step."""
    for module in net.modules():
        if isinstance(module, ClassContrast):
            module.commit()
