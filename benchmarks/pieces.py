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
from model.nets.memory import channels_first
from model.nets.moments import Slope, statistics
from model.nets.onednn import product

N, T, V, C = 16, 100, 25, 96  # 8 clips of 2 persons in ProtoGCN's first blocks


def pieces() -> dict[str, dict[str, Callable[[], Any]]]:
    """Ways to compute the same, by what they compute."""
    torch.manual_seed(0)
    x, grad = torch.randn(N, T, V, C), torch.randn(N, T, V, C)
    rows, mean = x.flatten(1, 2), x.mean((0, 1, 2))
    kernel, matrix = torch.randn(C, C, 1, 1), torch.randn(C, C)
    pairs = torch.randn(N * C * V * V)
    person, receivers = x[0], torch.randn(3 * V, V)
    part = slice(C // 6, C // 3)
    few, short = torch.zeros(T + 2, V, C), torch.randn(C // 6, C // 6, 3, 1)
    side = short.squeeze(3).transpose(1, 2).flatten(1).contiguous()
    slope = Slope(statistics(rows, 1e-5), torch.ones(C))

    def whole_statistics() -> Tensor:
        centred = rows - (rows.sum(1).double().sum(0) / (N * T * V)).float()
        return (centred * centred).sum(1).double().sum(0)

    def gradients(bias: bool) -> Any:
        images = channels_first(grad), channels_first(x), kernel, [C]
        wanted = [True, True, bias]
        return torch.ops.aten.convolution_backward(*images, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, wanted)

    def products() -> None:
        for own, of in zip(grad.flatten(1, 2), rows, strict=True):
            product(own, matrix.t())
            product(own.t(), of.t())

    def one_pass() -> None:
        slope.add(grad[0], person)
        slope.sums.clear()

    return {
        "statistics of a norm": {
            "over all at once, as before": whole_statistics,
            "clip by clip": lambda: statistics(rows, 1e-5),
            "a sum over all, the least": lambda: rows.sum(1) - mean,
        },
        "sums of a norm's gradient, 1 person": {
            "a product and two sums": lambda: (grad[0].sum((0, 1)), ((person - mean) * grad[0]).sum((0, 1))),
            "one pass": one_pass,
        },
        "tanh": {
            "tanh": lambda: pairs.tanh(),
            "2 sigmoid(2x) - 1": lambda: (2 * pairs).sigmoid_().mul_(2).sub_(1),
        },
        "1x1 convolution of 1 person": {
            "convolution": lambda: F.conv2d(channels_first(x[:1]), kernel),
            "MKL's product": lambda: rows[0] @ matrix,
            "oneDNN's product": lambda: product(rows[0], matrix),
        },
        "1x1 convolution of 16 persons": {
            "convolution": lambda: F.conv2d(channels_first(x), kernel),
            "oneDNN's products, a person at a time": lambda: [product(each, matrix) for each in rows],
        },
        "its gradients": {
            "with the bias's": lambda: gradients(True),
            "without": lambda: gradients(False),
            "products, a person at a time": products,
        },
        "projection with frames and joints last, 16 persons": {
            "convolution, then a copy": lambda: F.conv2d(channels_first(x), kernel).contiguous(),
            "W @ x^T, a person at a time": lambda: [product(matrix, each) for each in rows],
        },
        "joints mixed, 1 person": {
            "a product a frame": lambda: torch.bmm(receivers.expand(T, -1, -1), person),
            "a copy and one product": lambda: product(receivers, person.transpose(0, 1).reshape(V, -1).t()),
        },
        "a branch over time, 1 person": {
            "convolution": lambda: F.conv2d(channels_first(few[None, ..., part]), short),
            "frames side by side, product": lambda: product(
                torch.cat([few[i : i + T, :, part] for i in range(3)], 2).flatten(0, 1), side
            ),
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
