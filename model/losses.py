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

    def forward(self, graph: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Graph vectors (N, V*V), class scores (N, classes) and labels (N,) of this rank -> scalar.

        Ranks pool their samples, so the value equals that of one process holding the whole batch.
        """
        with torch.autocast(graph.device.type, enabled=False):
            dtype = self.bank.dtype
            features = gather_features(self.cl_fc(graph.to(dtype)))
            correct = gather_features(logits.detach().argmax(1) == labels)
            labels = gather_features(labels)
            bank = self._updated_bank(features, labels, correct)
            if self.training:
                self.bank.copy_(bank.detach())
            directions = bank / (bank.norm(dim=0, keepdim=True) + EPSILON)
            features = features / (features.norm(dim=1, keepdim=True) + EPSILON)
            return F.cross_entropy(features @ directions / self.temperature, labels)

    def _updated_bank(self, features: Tensor, labels: Tensor, correct: Tensor) -> Tensor:
        chosen = F.one_hot(labels, self.bank.shape[1]).to(features.dtype) * correct[:, None]
        count = chosen.sum(0)
        mean = features.T @ chosen / count.clamp(min=1)
        # clone: the buffer is overwritten before the backward pass runs
        former = self.bank.clone()
        return torch.where(count > 0, self.momentum * former + (1 - self.momentum) * mean, former)
