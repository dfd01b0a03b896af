"""Forward and train step of every network: clips/s, peak memory, share of the roofline; beside its plain form.

    python -m benchmarks.train_step [--networks protogcn stgcnpp] [--batch 16] [--alone 0.8] [--json FILE]

The forms of a network take turns in one process, and the best of the rounds counts, because neighbours of a shared
machine only ever add time; memory is that of a process for each. Both forms are first shown to give the same loss and
gradients in float64. The roof is the time that the counted operations and bytes need at the rates which a matrix
product and a copy reach in the same run; work done within a cache can beat that of bytes.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measuring import (
    CLASSES,
    DEVICE,
    alternating,
    autocast,
    clips,
    counted,
    options_parser,
    peak_gib,
    prepare,
    rates,
    write,
)
from benchmarks.plain.protogcn import PlainProtoGCN
from benchmarks.plain.stgcnpp import PlainSTGCNPP
from model import create_model
from model.nets import NETWORKS
from model.reference import to_original

JOINTS = 25
PLAIN: dict[str, Callable[..., nn.Module]] = {"protogcn": PlainProtoGCN, "stgcnpp": PlainSTGCNPP}
BASE = {"protogcn": 96, "stgcnpp": 64}
LARGE = {"posec3d": 8}  # of these networks, this part of a batch


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


def forms_of(name: str) -> dict[str, nn.Module]:
    """The forms of a network, with the same weights."""
    if name in PLAIN:
        return pair(name)
    torch.manual_seed(0)
    options = {"head": "classifier"} if name == "umurl" else {}
    layout = "coco" if name == "posec3d" else "nturgb+d"
    return {"ours": create_model(name, layout=layout, num_classes=CLASSES, **options)}


def action_of(name: str, form: str, kind: str, batch: int, options: argparse.Namespace) -> Callable[[], Any]:
    """A train step (without optimiser) or a forward pass in eval mode of one form."""
    net = forms_of(name)[form].to(DEVICE)
    x, labels = clips(forms_of(name)["ours"], batch, options.frames, options.alone)
    run: Any = torch.compile(net, mode=options.mode, dynamic=False) if options.mode and kind == "forward" else net
    loss: Any = net.loss
    if options.mode and kind == "step":
        loss = torch.compile(loss, mode=options.mode, dynamic=False)

    def forward() -> None:
        net.eval()
        with torch.inference_mode(), autocast(options.bfloat16 and form == "ours"):
            run(x)

    def step() -> None:
        net.train()
        net.zero_grad(set_to_none=True)
        with autocast(options.bfloat16 and form == "ours"):
            result = loss(x, labels)
        (result if isinstance(result, Tensor) else result[0]).backward()

    return step if kind == "step" else forward


def measured(name: str, options: argparse.Namespace, roof: tuple[float, float]) -> dict[str, float]:
    """The figures of one network, printed as they come."""
    batch = max(1, options.batch // LARGE.get(name, 1))
    found: dict[str, float] = {"batch": batch}
    forms = list(forms_of(name))
    for kind in ("step", "forward"):
        actions = {form: action_of(name, form, kind, batch, options) for form in forms}
        seconds = alternating(actions, options.rounds, options.clock)
        rate = {form: batch / seconds[form] for form in forms}
        operations, traffic = counted(
            action_of(name, "ours", kind, batch, argparse.Namespace(**{**vars(options), "mode": None}))
        )
        share = max(operations / roof[0], traffic / roof[1]) / seconds["ours"]
        found |= {f"{kind}_{form}_per_s": rate[form] for form in forms}
        found |= {f"{kind}_gflop": operations / 1e9, f"{kind}_gbyte": traffic / 1e9, f"{kind}_roof": share}
        found[f"{kind}_arithmetic"] = operations / roof[0] / seconds["ours"]
        cells = [f"{rate[form]:8.2f}" if form in rate else f"{'':8}" for form in ("plain", "ours")]
        ratio = f"{rate['ours'] / rate['plain']:7.2f}" if "plain" in rate else f"{'':7}"
        work = f"{operations / 1e9:9.1f}{traffic / 1e9:8.1f}{share:7.0%}{found[f'{kind}_arithmetic']:7.0%}"
        print(f"{name:9}{kind:8}{''.join(cells)}{ratio}{work}", flush=True)
    peaks = {form: peak_gib(action_of, name, form, "step", batch, options) for form in forms}
    known = {form: peak for form, peak in peaks.items() if peak is not None}
    found |= {f"peak_{form}_gib": peak for form, peak in known.items()}
    cells = [f"{known[form]:8.2f}" if form in known else f"{'':8}" for form in ("plain", "ours")]
    ratio = f"{known['plain'] / known['ours']:7.2f}" if "plain" in known else ""
    print(f"{name:9}{'GiB':8}{''.join(cells)}{ratio}", flush=True)
    return found


def main() -> None:
    parser = options_parser("Forward and train step of the networks.", list(NETWORKS), list(NETWORKS))
    options = parser.parse_args()
    where = prepare(options)
    roof = rates(options.bfloat16, options.clock)
    print(f"a matrix product or convolution reaches {roof[0] / 1e9:.0f} Gflop/s, a copy {roof[1] / 1e9:.1f} GB/s")
    print(f"{'':17}{'plain/s':>8}{'ours/s':>8}{'ratio':>7}{'Gflop':>9}{'GB':>8}{'roof':>7}{'flops':>7}")
    figures: dict[str, Any] = {"flops_per_s": roof[0], "bytes_per_s": roof[1]}
    for name in options.networks:
        if name in PLAIN:
            difference = largest_difference(name)
            if difference > 1e-9:
                sys.exit(f"{name}: the forms differ by {difference:.1e} in float64; nothing is timed")
        figures[name] = measured(name, options, roof)
    write(options, where, figures)


if __name__ == "__main__":
    main()
