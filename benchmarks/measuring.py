"""What the benchmarks share: clips, clocks, counted work, the machine's own rates, peak memory."""

import argparse
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import resident_peak_gib
from model.complexity import usual_input

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLASSES = 60


def options_parser(description: str, networks: list[str], chosen: list[str]) -> argparse.ArgumentParser:
    """The options that every benchmark of networks has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--networks", nargs="+", default=chosen, choices=networks)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", type=float, default=0.0, help="share of clips whose second person is missing")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bfloat16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--compile", dest="mode", help="torch.compile in this mode; reduce-overhead: CUDA graphs")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: of this process, on a busy machine")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def prepare(options: argparse.Namespace) -> str:
    """Sets threads as asked and says where and on what all is measured."""
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    where = torch.cuda.get_device_name() if DEVICE == "cuda" else f"CPU, {options.threads} threads"
    line = f"{where}; torch {torch.__version__}; {'bfloat16 autocast' if options.bfloat16 else 'float32'}"
    print(
        f"{line}; batch {options.batch}, {options.frames} frames, second person missing in {options.alone:.0%}; ",
        end="",
    )
    print(f"{options.clock} clock, best of {options.rounds}" + (f"; compiled: {options.mode}" if options.mode else ""))
    return where


def write(options: argparse.Namespace, where: str, figures: dict[str, Any]) -> None:
    """The figures and all that they depend on, as JSON if asked."""
    if options.json:
        asked = {key: value for key, value in vars(options).items() if key != "json"}
        facts = {"machine": where, "torch": torch.__version__, **asked, "figures": figures}
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


def clips(net: nn.Module, batch: int, frames: int, alone: float = 0.0) -> tuple[Tensor, Tensor]:
    """Clips in the network's shape and labels, from a fixed seed."""
    generator = torch.Generator().manual_seed(1)
    shape = usual_input(net, frames=frames if hasattr(net, "gcn") else None)[1:]
    x = torch.randn(batch, *shape, generator=generator)
    if hasattr(net, "gcn"):
        x[: round(alone * batch), 1:] = 0
    return x.to(DEVICE), torch.randint(CLASSES, (batch,), generator=generator).to(DEVICE)


def autocast(on: bool) -> Any:
    """bfloat16 where it is safe, or nothing."""
    return torch.autocast(DEVICE, torch.bfloat16) if on else nullcontext()


def alternating(actions: dict[str, Callable[[], Any]], rounds: int, clock: str) -> dict[str, float]:
    """Best seconds of each action, taken in turn after one round that warms up."""
    now, best = CLOCKS[clock], dict.fromkeys(actions, float("inf"))
    for round_ in range(rounds + 1):
        for name, action in actions.items():
            began = now()
            action()
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            if round_:
                best[name] = min(best[name], now() - began)
    return best


class _Traffic(TorchDispatchMode):
    """Bytes of all operands read once and all results written once, an operation at a time; views are free."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        aliases = [r.alias_info for r in func._schema.returns]
        if not any(alias is not None and not alias.is_write for alias in aliases):
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def _convolution(x: Any, weight: Any, *rest: Any, out_shape: Any, **named: Any) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def _onto(target: Any, x: Any, weight: Any, *rest: Any, out_shape: Any, **named: Any) -> int:
    return _convolution(x, weight, out_shape=out_shape)


def _product(a: Any, b: Any, *rest: Any, out_shape: Any, **named: Any) -> int:
    return 2 * math.prod(out_shape) * a[-1]


# Operations of `model.nets.onednn`, which torch's counter does not know.
ONEDNN = {
    getattr(torch.ops.mkldnn, name): count
    for name, count in (
        ("_convolution_pointwise", _convolution),
        ("_convolution_pointwise_", _onto),
        ("_linear_pointwise", _product),
    )
    if hasattr(torch.ops.mkldnn, name)
}


def counted(action: Callable[[], Any]) -> tuple[float, float]:
    """(floating-point operations of convolutions and products, bytes of traffic) of an action."""
    with FlopCounterMode(display=False, custom_mapping=ONEDNN) as operations:
        action()
    with _Traffic() as traffic:
        action()
    return float(operations.get_total_flops()), float(traffic.bytes)


def rates(bfloat16: bool, clock: str) -> tuple[float, float]:
    """(operations per second of the best of a matrix product and a 1x1 convolution, bytes per second of a copy)."""
    kind = torch.bfloat16 if bfloat16 else torch.float32
    size = 8192 if DEVICE == "cuda" else 1536
    square = torch.randn(size, size, device=DEVICE, dtype=kind)
    images = torch.randn(16, 384, 25, 25, device=DEVICE, dtype=kind).to(memory_format=torch.channels_last)
    kernel = torch.randn(384, 384, 1, 1, device=DEVICE, dtype=kind)
    source = torch.randn(2**28 if DEVICE == "cuda" else 2**25, device=DEVICE)
    target = torch.empty_like(source)
    actions: dict[str, Callable[[], Any]] = {
        "product": lambda: square @ square,
        "convolution": lambda: torch.conv2d(images, kernel),
        "copy": lambda: target.copy_(source),
    }
    seconds = alternating(actions, 5, clock)
    work = max(2 * size**3 / seconds["product"], 2 * 16 * 625 * 384**2 / seconds["convolution"])
    return work, 2 * 4 * source.numel() / seconds["copy"]


def peak_gib(action: Callable[..., Callable[[], Any]], *arguments: Any) -> float | None:
    """GiB that two calls of `action(*arguments)()` need beyond what lay in memory before; None where unknown.

    On CPU it is measured in a process of its own.
    """
    if DEVICE == "cuda":
        run = action(*arguments)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**30
    if sys.platform != "linux":
        return None
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_resident, (action, arguments, torch.get_num_threads()))


def _resident(action: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...], threads: int) -> float:
    torch.set_num_threads(threads)
    run = action(*arguments)
    status = Path("/proc/self/status").read_text().splitlines()
    before = float(next(line for line in status if line.startswith("VmRSS")).split()[1]) / 2**20
    run()
    run()
    return resident_peak_gib() - before
