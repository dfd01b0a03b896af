"""Forward and train step of a network beside its plain form: samples/s, ratio, peak memory.

    python -m benchmarks.train_step [--networks protogcn stgcnpp] [--batch 8] [--frames 100] [--rounds 5]

Each form runs in a process of its own for its peak memory; the times of a table are taken alternately in one process,
and the best of the rounds counts, because neighbours of a shared machine only ever add time. Both forms are first shown
to give the same loss and gradients in float64.
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.machine import resident_peak_gib
from benchmarks.plain.protogcn import PlainProtoGCN
from benchmarks.plain.stgcnpp import PlainSTGCNPP
from model import create_model
from model.reference import to_original

JOINTS, CLASSES = 25, 60
PLAIN: dict[str, Callable[..., nn.Module]] = {"protogcn": PlainProtoGCN, "stgcnpp": PlainSTGCNPP}
BASE = {"protogcn": 96, "stgcnpp": 64}
FORMS = ("plain", "ours")


def pair(name: str, base: int | None = None) -> dict[str, nn.Module]:
    """The plain form of a network and ours, with the same weights."""
    torch.manual_seed(0)
    options = {"dropout": 0.0} if name == "protogcn" else {}
    base = base or BASE[name]
    ours = create_model(name, layout="nturgb+d", num_classes=CLASSES, base_channels=base, **options)
    with torch.no_grad():
        for parameter_name, parameter in ours.named_parameters():
            # At their initial zero the learned topologies would not be compared.
            if parameter_name.endswith(("alpha", "beta", "add_coeff")):
                parameter.normal_(std=0.2)
    plain = PLAIN[name](JOINTS, CLASSES, base)
    plain.load_state_dict(to_original(ours, ours.state_dict()))
    if name == "protogcn":
        plain.cls_head.csc_loss.bank = ours.contrast.bank.clone()
    return {"plain": plain, "ours": ours}


def loss_of(net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """The training loss of either form."""
    result = net.loss(x, labels)
    return result if isinstance(result, Tensor) else result[0]


def data(batch: int, frames: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Clips (N, 2, T, 25, 3) and labels from a fixed seed."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 2, frames, JOINTS, 3, generator=generator)
    return x.to(device), torch.randint(CLASSES, (batch,), generator=generator).to(device)


def largest_difference(name: str, base: int | None = None, frames: int = 12) -> float:
    """Largest relative difference of loss and gradients between the forms, in float64."""
    nets = {form: net.double() for form, net in pair(name, base).items()}
    x, labels = data(4, frames)
    losses = {form: loss_of(net, x.double(), labels) for form, net in nets.items()}
    for loss in losses.values():
        loss.backward()
    gradients = {name: p.grad for name, p in nets["ours"].named_parameters() if p.grad is not None}
    ours = to_original(nets["ours"], gradients)
    plain = {name: p.grad for name, p in nets["plain"].named_parameters() if p.grad is not None}
    values = {form: float(loss.detach()) for form, loss in losses.items()}
    differences = [abs(values["ours"] / values["plain"] - 1)]
    # A bias before a norm has no gradient but rounding, so differences are seen against the largest of all.
    scale = max(float(gradient.abs().max()) for gradient in plain.values())
    differences += [float((ours[key] - plain[key]).abs().max()) / scale for key in plain]
    return max(differences)


def measure(name: str, batch: int, frames: int, rounds: int, device: str) -> dict[str, dict[str, float]]:
    """Best seconds of a forward pass and of a train step (without optimiser) of both forms, taken alternately."""
    nets = {form: net.to(device) for form, net in pair(name).items()}
    x, labels = data(batch, frames, device)

    def forward(net: nn.Module) -> None:
        net.eval()
        with torch.inference_mode():
            net(x)

    def step(net: nn.Module) -> None:
        net.train()
        net.zero_grad(set_to_none=True)
        loss_of(net, x, labels).backward()

    best: dict[str, dict[str, float]] = {}
    for action in (step, forward):  # training first gives the norms statistics that real data would
        for round_ in range(rounds + 1):
            for form, net in nets.items():
                began = time.perf_counter()
                action(net)
                if device != "cpu":
                    torch.cuda.synchronize()
                seconds = time.perf_counter() - began
                if round_:  # the first warms up
                    times = best.setdefault(action.__name__, {})
                    times[form] = min(times.get(form, seconds), seconds)
    return best


def _peak(name: str, form: str, batch: int, frames: int) -> float:
    net = pair(name)[form]
    x, labels = data(batch, frames)
    for _ in range(2):
        net.zero_grad(set_to_none=True)
        loss_of(net, x, labels).backward()
    return resident_peak_gib()


def peak_gib(name: str, form: str, batch: int, frames: int) -> float:
    """Largest resident memory of a fresh process that makes two train steps, in GiB."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (name, form, batch, frames))


def main() -> None:
    parser = argparse.ArgumentParser(description="Forward and train step of networks beside their plain form.")
    parser.add_argument("--networks", nargs="+", default=list(PLAIN), choices=list(PLAIN))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {options.threads} threads"
    print(f"{where}; torch {torch.__version__}; batch {options.batch}, {options.frames} frames, 2 x 25 joints, float32")
    print(f"{'':10}{'':9}{'plain/s':>9}{'ours/s':>9}{'ratio':>7}")
    figures: dict[str, dict[str, float]] = {}
    for name in options.networks:
        difference = largest_difference(name)
        if difference > 1e-9:
            sys.exit(f"{name}: the forms differ by {difference:.1e} in float64; nothing is timed")
        found: dict[str, float] = {"float64_difference": difference}
        for action, times in measure(name, options.batch, options.frames, options.rounds, device).items():
            rates = {form: options.batch / seconds for form, seconds in times.items()}
            ratio = rates["ours"] / rates["plain"]
            found |= {f"{action}_{form}_per_s": rate for form, rate in rates.items()} | {f"{action}_ratio": ratio}
            print(f"{name:10}{action:9}{rates['plain']:9.1f}{rates['ours']:9.1f}{ratio:7.2f}")
        if device == "cpu" and sys.platform == "linux":
            peaks = {form: peak_gib(name, form, options.batch, options.frames) for form in FORMS}
            found |= {f"peak_{form}_gib": peak for form, peak in peaks.items()}
            ratio = peaks["plain"] / peaks["ours"]
            print(f"{name:10}{'GiB':9}{peaks['plain']:9.2f}{peaks['ours']:9.2f}{ratio:7.2f}")
        print(f"{name:10}loss and gradients of both forms agree to {difference:.0e} in float64")
        figures[name] = found
    if options.json:
        facts = {"machine": where, "torch": torch.__version__, "batch": options.batch, "frames": options.frames}
        options.json.write_text(json.dumps({**facts, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
