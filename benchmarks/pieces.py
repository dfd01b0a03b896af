"""Single steps beside what they replaced, on CPU, one thread: the figures of docs/SPEED.md's list of ways.

python -m benchmarks.pieces [--clock cpu]
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measuring import CLOCKS, alternating
from model.nets import fused
from model.nets.memory import channels_first
from model.nets.moments import statistics

N, T, V, C = 16, 100, 25, 96  # 8 clips of 2 persons in ProtoGCN's first blocks


def pieces() -> dict[str, dict[str, Callable[[], Any]]]:
    """Ways to compute the same, by what they compute."""
    torch.manual_seed(0)
    x, few = torch.randn(N, T, V, C), torch.randn(4, T, V, C)
    rows, mean = x.flatten(1, 2), x.mean((0, 1, 2))
    kernel, matrix = torch.randn(C, C, 1, 1), torch.randn(C, C)
    turned = torch.empty(N, C, T * V)
    pairs = torch.randn(N * C * V * V)
    receivers, wide = torch.randn(3 * V, V), torch.randn(C, 3 * C, 1, 1)

    def whole_statistics() -> Tensor:
        centred = rows - (rows.sum(1).double().sum(0) / (N * T * V)).float()
        return (centred * centred).sum(1).double().sum(0)

    def mixed(portion: int) -> None:
        for start in range(0, N, portion):
            fused.project(fused._mixed(x[start : start + portion], receivers), wide)

    return {
        "statistics of a norm": {
            "over all at once, as before": whole_statistics,
            "clip by clip": lambda: statistics(rows, 1e-5),
            "a sum over all, the least": lambda: rows.sum(1) - mean,
        },
        "tanh": {
            "tanh": lambda: pairs.tanh(),
            "2 sigmoid(2x) - 1": lambda: (2 * pairs).sigmoid_().mul_(2).sub_(1),
        },
        "1x1 convolution of 4 persons": {
            "as 4 images": lambda: F.conv2d(channels_first(few), kernel),
            "as 16 images or more": lambda: fused.project(few, kernel),
        },
        "1x1 convolution of 16 persons": {
            "convolution": lambda: F.conv2d(channels_first(x), kernel),
            "an image a frame": lambda: F.conv2d(channels_first(x.view(N * T, 1, V, C)), kernel),
            "matrix product": lambda: rows @ matrix,
        },
        "projection with frames and joints last": {
            "convolution, then a copy": lambda: turned.copy_(fused.project(x, kernel).flatten(1, 2).transpose(1, 2)),
            "W @ x^T": lambda: torch.matmul(matrix, rows.transpose(1, 2), out=turned),
        },
        "mixed joints, projected": {
            "1 person at a time": lambda: mixed(1),
            "4": lambda: mixed(4),
            "16": lambda: mixed(16),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        for what, ways in pieces().items():
            found = alternating(ways, options.rounds, options.clock)
            print(f"{what}: " + "; ".join(f"{name} {seconds * 1e3:.2f} ms" for name, seconds in found.items()))


if __name__ == "__main__":
    main()
