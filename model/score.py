"""Scores of clips by a trained network."""

import numpy as np
import torch
from torch import Tensor, nn

from model.distributed import gather_features, share, world
from model.errors import UserError
from model.feeding import Feed
from model.settings import autocast


def score_clips(
    net: nn.Module,
    clips: Feed,
    batch_size: int,
    device: str | torch.device = "cpu",
    *,
    amp: bool = False,
) -> np.ndarray:
    """Class probabilities (N, K) float32: softmax of every test clip, mean over a sample's clips ("prob").

    `batch_size` counts network inputs, so ten test clips a sample make ten. Raises UserError naming samples
    whose scores are not finite.
    """
    scores = clip_logits(net, clips, batch_size, device, amp=amp).softmax(dim=-1).mean(dim=1).numpy()
    flawed = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(flawed):
        names = ", ".join(repr(clips.ids[row]) for row in flawed[:3])
        raise UserError(f"{len(flawed)} samples ({names}) get NaN scores; the weights are spoilt, train again")
    return scores


def clip_logits(
    net: nn.Module,
    clips: Feed,
    batch_size: int,
    device: str | torch.device = "cpu",
    *,
    amp: bool = False,
) -> Tensor:
    """Logits (N, test clips, K) float32 on the CPU, in eval mode; the network's mode is put back.

    Under torch.distributed every rank scores its own share, no sample twice, and all get the whole.
    """
    # Nearly dead channels decay to denormal numbers, which make a CPU ten times slower.
    torch.set_flush_denormal(True)
    device = torch.device(device)
    rank, size = world()
    shared = size > 1 and len(clips) >= size
    mine = range(len(clips))[share(len(clips), rank, size)] if shared else range(len(clips))
    step = max(1, batch_size // clips.num_clips)
    was_training = net.training
    net.eval()
    found = []
    for start in range(0, len(mine), step):
        rows = torch.arange(mine[start], mine[min(start + step, len(mine)) - 1] + 1)
        x = clips.batch(rows, None).to(device, non_blocking=True)
        with torch.inference_mode(), autocast(device, amp):
            logits = net(x)
        found.append(logits.float().reshape(len(rows), clips.num_clips, -1))
    net.train(was_training)
    whole = torch.cat(found)
    return (gather_features(whole) if shared else whole).cpu()
