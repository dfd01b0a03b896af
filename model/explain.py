"""What a trained network has learned and what its answers rest on: topologies, prototypes, occlusion.

Graph convolutions describe themselves by `topologies(x)` (model.nets.blocks). Forward hooks call it with the input that
a unit really gets, so every network is looked at as it is; one without such units simply has no topologies.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.feeding import Feed


@dataclass(frozen=True)
class Observed:
    """What a network made of N clips; everything on the CPU.

    scores (N, K) probabilities, features (N, F). base: (V, V) of every block, A_0 averaged over subsets. shown: kind
    ("enhanced", "inter", "intra", as far as the network has them) -> (N, V, V) of every block, averaged over subsets,
    channels and the persons who are there. ProtoGCN's last block only: reconstructed (N, V, V), Z of Eq. 7 averaged
    over channels; responses (N, P), the mean over joint pairs of how strongly each prototype answers (Eq. 6); entropy
    (N,), the mean over joint pairs of the response's entropy as a share of log P: 0 one prototype, 1 all alike.
    """

    scores: Tensor
    features: Tensor
    base: list[Tensor]
    shown: dict[str, list[Tensor]]
    reconstructed: Tensor | None
    responses: Tensor | None
    entropy: Tensor | None


def observe(net: nn.Module, clips: Feed, batch_size: int = 16, device: str | torch.device = "cpu") -> Observed:
    """Run `net`, in eval mode on `device`, over all clips (one network input per sample) and note what it learned."""
    seen = []
    with torch.inference_mode():
        for rows in torch.arange(len(clips)).split(batch_size):
            seen.append(_observed(net, clips.batch(rows).to(device)))
    base = seen[0].base
    shown = {
        kind: [torch.cat([part.shown[kind][block] for part in seen]) for block in range(len(base))]
        for kind in seen[0].shown
    }

    def joined(name: str) -> Any:
        parts = [getattr(part, name) for part in seen]
        return None if parts[0] is None else torch.cat(parts)

    names = ("scores", "features", "reconstructed", "responses", "entropy")
    return Observed(base=base, shown=shown, **{name: joined(name) for name in names})


def _observed(net: Any, x: Tensor) -> Observed:
    memory = getattr(net, "prn", None)
    with _listening(net, memory) as heard:
        # Class scores of the released ProtoGCN do not need its prototypes; only its loss's path passes them.
        aside = memory is not None and not net.feeds_back
        features = net.features_and_graph(x)[0] if aside else net.features(x)
        scores = net.fc(features).float().softmax(-1)
    present = (x != 0).flatten(2).any(2).float()  # (N, M): an absent person's topology means nothing
    weight = present / present.sum(1, keepdim=True).clamp(min=1)

    def of_clips(values: Tensor) -> Tensor:
        """(N*M, …) averaged over the persons who are there, on the CPU; (N, …) as it is."""
        persons = values.float().unflatten(0, (len(x), -1))
        if persons.shape[1] == 1:
            return persons[:, 0].cpu()
        return (persons * weight[(...,) + (None,) * (persons.dim() - 2)]).sum(1).cpu()

    base: list[Tensor] = []
    shown: dict[str, list[Tensor]] = {}
    for found in heard["units"]:
        base.append(found.pop("base").mean(0).cpu())
        for kind, topology in found.items():
            shown.setdefault(kind, []).append(of_clips(topology.flatten(1, -3).mean(1)))
    if memory is None:
        return Observed(scores.cpu(), features.float().cpu(), base, shown, None, None, None)
    response = heard["queries"].float().softmax(-1)  # (N or N*M, V*V, P)
    entropy = torch.special.entr(response).sum(-1).mean(1) / torch.tensor(response.shape[-1]).log()
    rebuilt = heard["rebuilt"].mean(-1).unflatten(1, (net.num_joints, net.num_joints))
    found_of_memory = of_clips(rebuilt), of_clips(response.mean(1)), of_clips(entropy)
    return Observed(scores.cpu(), features.float().cpu(), base, shown, *found_of_memory)


@contextmanager
def _listening(net: nn.Module, memory: Any) -> Iterator[dict[str, Any]]:
    """Meanwhile: "units", what each graph convolution says of its input, in order; the prototypes' answers."""
    heard: dict[str, Any] = {"units": []}
    hooks = [
        module.register_forward_pre_hook(lambda unit, inputs: heard["units"].append(unit.topologies(inputs[0])))
        for module in net.modules()
        if hasattr(module, "topologies")
    ]
    if memory is not None:
        hooks.append(memory.query_matrix.register_forward_hook(lambda _, inputs, out: heard.update(queries=out)))
        hooks.append(memory.register_forward_hook(lambda _, inputs, out: heard.update(rebuilt=out)))
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def occlusion(net: nn.Module, x: Tensor, labels: Tensor, stretches: int = 16) -> tuple[Tensor, Tensor]:
    """What the answer `labels` (N,) rests on: the fall of its log probability when something is hidden.

    x: a network's inputs, clips (N, M, T, V, C) or heat maps (N, V, T, H, W). Returns joints (N, V), one joint (a limb
    of limb maps) hidden in all frames and persons, and frames (N, T), all joints hidden in one of `stretches` parts of
    the clip; natural logarithm, positive where the hidden part spoke for the answer. A hidden joint stands where it is
    on average over the clips given, which takes its motion and its person's posture away but makes no strange body;
    in heat maps it is missing. (Occlusion: Zeiler & Fergus 2014, section 4.2.)
    """
    maps = bool(getattr(net, "takes_heatmaps", False))
    x = x.transpose(1, 3) if maps else x  # (N, H, T, V, W) of maps: time and joints lie alike in both
    frames, joints = x.shape[2], x.shape[3]
    if maps:
        there, neutral = torch.ones((), dtype=torch.bool, device=x.device), x.new_zeros(())
    else:
        there = (x != 0).flatten(2).any(2)[..., None, None, None]
        count = (there.sum() * frames).clamp(min=1)
        neutral = (x * there).sum((0, 1, 2)) / count  # (V, C)
    part = (torch.arange(frames, device=x.device) * stretches).div(frames, rounding_mode="floor")

    def sure(hidden: Tensor) -> Tensor:
        y = torch.where(hidden & there, neutral, x)
        scores = net(y.transpose(1, 3) if maps else y).float().log_softmax(-1)
        return scores.gather(1, labels[:, None])[:, 0]

    with torch.inference_mode():
        whole = sure(torch.zeros((), dtype=torch.bool, device=x.device))
        places = torch.arange(joints, device=x.device)
        by_joint = [whole - sure((places == joint)[:, None]) for joint in range(joints)]
        parts = part.unique().tolist()
        by_part = [whole - sure((part == number)[:, None, None]) for number in parts]
    found = torch.stack(by_part, 1)[:, torch.searchsorted(part.unique(), part)]
    return torch.stack(by_joint, 1).cpu(), found.cpu()
