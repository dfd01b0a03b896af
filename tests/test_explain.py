"""What is said of a network's topologies, prototypes and evidence is what the network computes."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_nets import clips, scores, small
from torch import Tensor, nn

from model.explain import Observed, observe, occlusion
from model.layouts import load_layout
from model.nets import NETWORKS, create_model


class Given:
    """Inputs that stand for clips of a store."""

    num_clips = 1

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, rows: Any, generator: Any = None, labels: Any = None) -> Tensor:
        return self.x[rows]


def lively(name: str, layout: str = "nturgb+d", **options: Any) -> nn.Module:
    """A small network whose topologies, which start equal to A_0, have moved away from it."""
    net = small(name, layout, **options)
    with torch.no_grad():
        for key, value in net.named_parameters():
            if key.rsplit(".", 1)[-1] in ("alpha", "beta", "PA"):
                value.normal_(0, 0.7)
    return net.eval()


def look(net: nn.Module, x: Tensor) -> Observed:
    return observe(net, Given(x), batch_size=2)  # type: ignore[arg-type]


def block_inputs(net: Any, x: Tensor) -> list[Tensor]:
    inputs, y = [], net.enter(x)
    for block in net.gcn:
        inputs.append(y)
        y = block(y)
    return inputs


def of_persons(topology: Tensor, there: Tensor) -> Tensor:
    """(N*M, ..., V, V) averaged over subsets and channels, then over the persons who are there: a plain loop."""
    mean = topology.flatten(1, -3).mean(1).unflatten(0, there.shape)
    return torch.stack([mean[n][there[n]].mean(0) for n in range(len(there))])


def by_hand(net: Any, unit: Any, x: Tensor) -> Tensor:
    """The topologies a unit aggregates x (N, C, T, V) with, from its weights and its paper's formula."""
    name = type(unit).__name__
    if name == "TopologyConv":
        q, k = (conv(x).mean(2).unflatten(1, (unit.subsets, -1)) for conv in (unit.conv1, unit.conv2))
        inter = unit.alpha[0] * torch.tanh(q[..., :, None] - k[..., None, :])
        intra = unit.beta[0] * torch.einsum("nkcv,nkcw->nkvw", q, k).softmax(2)
        return unit.A[:, None] + inter + intra[:, :, None]
    if name == "AdaptiveGraphConv":
        a, b = (conv(x).unflatten(1, (unit.subsets, -1)) for conv in (unit.conv_a, unit.conv_b))
        compared = torch.einsum("nkctv,nkctw->nkvw", a, b) / (a.shape[2] * a.shape[3])
        return unit.A + unit.alpha * torch.tanh(compared)
    if name == "RefinedGraphConv":
        q, k = unit.query(x).mean(2), unit.key(x).mean(2)
        refined = unit.mix(torch.tanh(q[..., :, None] - k[..., None, :])).unflatten(1, (unit.subsets, -1))
        return unit.A[:, None] + unit.alpha * refined
    return (unit.A * unit.PA).expand(len(x), -1, -1, -1)


@pytest.mark.parametrize("name", ["protogcn", "dgstgcn", "agcn", "ctrgcn", "stgcn"])
def test_topologies_are_those_that_the_network_aggregates_with(name: str) -> None:
    net = lively(name)
    x = clips(net)
    x[1, 1] = 0  # nobody there
    there = torch.ones(3, 2, dtype=torch.bool)
    there[1, 1] = False
    seen = look(net, x)
    assert len(seen.base) == 3
    with torch.no_grad():
        for block, (unit, y) in enumerate(zip([b.gcn for b in net.gcn], block_inputs(net, x), strict=True)):
            torch.testing.assert_close(seen.base[block], unit.A.mean(0))
            expected = of_persons(by_hand(net, unit, y), there)
            torch.testing.assert_close(seen.shown["enhanced"][block], expected, rtol=1e-4, atol=1e-6)
            assert not torch.allclose(expected, unit.A.mean(0).expand_as(expected), atol=1e-3)
    if name == "protogcn":
        parts = [seen.base[2] + seen.shown["inter"][2] + seen.shown["intra"][2], seen.shown["enhanced"][2]]
        torch.testing.assert_close(*parts)


def test_rebuilt_topologies_and_responses_are_those_of_the_prototypes() -> None:
    net: Any = lively("protogcn", num_prototypes=7)
    x = clips(net)
    seen = look(net, x)
    with torch.no_grad():
        last = net.gcn[-1].gcn
        graph = by_hand(net, last, block_inputs(net, x)[-1]) - last.A[:, None]
        pairs = graph.flatten(1, 2).unflatten(0, (3, 2)).mean(1).flatten(2).transpose(1, 2)  # (N, V*V, C)
        response = (pairs @ net.prn.query_matrix.weight.T).softmax(-1)
        rebuilt = (response @ net.prn.memory_matrix.weight.T).mean(-1).unflatten(1, (25, 25))
    assert seen.reconstructed is not None and seen.responses is not None and seen.entropy is not None
    torch.testing.assert_close(seen.reconstructed, rebuilt, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(seen.responses, response.mean(1), rtol=1e-4, atol=1e-6)
    entropy = -(response * response.log()).sum(-1).mean(1) / math.log(7)
    torch.testing.assert_close(seen.entropy, entropy, rtol=1e-4, atol=1e-6)


def test_entropy_says_one_when_all_prototypes_answer_and_zero_when_one_does() -> None:
    net: Any = lively("protogcn", num_prototypes=5)
    x = clips(net)
    with torch.no_grad():
        net.prn.query_matrix.weight.zero_()
    even = look(net, x)
    assert even.entropy is not None and even.responses is not None
    torch.testing.assert_close(even.entropy, torch.ones(3))
    torch.testing.assert_close(even.responses, torch.full((3, 5), 0.2))
    with torch.no_grad():
        net.prn.query_matrix.weight.normal_(0, 1e6)
    single = look(net, x)
    assert single.entropy is not None and float(single.entropy.max()) < 0.01


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_can_be_looked_at_and_stays_as_it_was(name: str) -> None:
    net = small(name, "coco").eval()
    x = clips(net)
    before = scores(net, x)
    seen = look(net, x)
    assert seen.features.shape[0] == 3 and seen.scores.sum(1).tolist() == pytest.approx([1, 1, 1])
    torch.testing.assert_close(seen.scores, before.softmax(-1).detach())
    kinds = {
        "stgcn": {"enhanced"},
        "stgcnpp": set(),  # A itself is learned
        "agcn": {"enhanced"},
        "ctrgcn": {"enhanced"},
        "dgstgcn": {"enhanced", "inter", "intra"},
        "protogcn": {"enhanced", "inter", "intra"},
    }
    assert set(seen.shown) == kinds.get(name, set())
    assert len(seen.base) == (3 if name in kinds else 0)
    assert (seen.reconstructed is not None) == (name == "protogcn")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    if name == "umurl":  # pre-trained without labels: there is no answer to explain
        return
    parts, frames = occlusion(net, x, torch.tensor([0, 1, 2]))
    assert parts.shape == (3, net.in_channels if name == "posec3d" else 17)
    assert frames.shape == (3, 6 if name == "posec3d" else 11)
    assert torch.isfinite(parts).all() and float(parts.abs().max()) > 0


def test_the_papers_variant_shows_the_topology_that_it_aggregates_with() -> None:
    net: Any = lively("protogcn", variant="paper", contrastive_weight=0.0, num_prototypes=7)
    x = clips(net)
    x[1, 1] = 0  # nobody there
    there = torch.ones(3, 2, dtype=torch.bool)
    there[1, 1] = False
    seen = look(net, x)
    with torch.no_grad():
        whole = by_hand(net, net.gcn[-1].gcn, block_inputs(net, x)[-1])
        rebuilt = net.prn(whole.flatten(1, 2).flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (25, 25))
    assert seen.reconstructed is not None and seen.responses is not None
    torch.testing.assert_close(seen.reconstructed, of_persons(rebuilt, there), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(seen.responses.sum(1), torch.ones(3))
    torch.testing.assert_close(seen.scores, net(x).softmax(-1).detach())


def test_a_protogcn_without_contrast_has_no_prototypes_to_show() -> None:
    net = lively("protogcn", contrastive_weight=0.0)
    seen = look(net, clips(net))
    assert seen.reconstructed is None and seen.responses is None and "enhanced" in seen.shown


def test_occlusion_finds_the_joint_that_a_network_learned_to_look_at() -> None:
    torch.manual_seed(0)
    layout, joint = load_layout("coco"), 9
    x = 0.3 * torch.randn(32, 1, 12, 17, 3)
    labels = torch.arange(32) % 2
    x[:, 0, :, joint, 1] += torch.where(labels == 1, 1.0, -1.0)[:, None]
    net = create_model("stgcnpp", layout=layout, num_classes=2, base_channels=12, num_stages=2, persons=1)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(30):
        optimiser.zero_grad()
        F.cross_entropy(net(x), labels).backward()
        optimiser.step()
    net.eval()
    assert (net(x).argmax(1) == labels).all()
    parts, _ = occlusion(net, x, labels)
    assert parts.mean(0).argmax() == joint
    others = torch.cat([parts[:, :joint], parts[:, joint + 1 :]], 1).mean(0)
    assert float(parts.mean(0)[joint]) > 3 * float(others.max())


class Watcher(nn.Module):
    """Looks at one joint in one third of the frames, of the persons together."""

    def forward(self, x: Tensor) -> Tensor:
        seen = x[:, :, 4:8, 2].sum((1, 2, 3))
        return torch.stack([seen, torch.zeros_like(seen)], 1)


def test_occlusion_is_the_fall_of_the_log_probability() -> None:
    x = torch.zeros(2, 2, 12, 5, 3)
    x[0, 0] = 1.0  # one person; the second clip has the same person elsewhere
    x[1, 0] = 3.0
    parts, frames = occlusion(Watcher(), x, torch.tensor([0, 0]), stretches=3)
    log = F.logsigmoid(torch.tensor([12.0, 36.0, 24.0]))  # 4 frames of 3 coordinates; the average position is 2
    expected = torch.stack([log[0] - log[2], log[1] - log[2]])
    torch.testing.assert_close(parts[:, 2], expected)
    assert parts[:, [0, 1, 3, 4]].abs().max() == 0
    torch.testing.assert_close(frames[:, 4:8], expected[:, None].expand(2, 4))
    assert frames[:, :4].abs().max() == 0 and frames[:, 8:].abs().max() == 0
