"""ProtoGCN's switches: which cells of the shipped grids are one network, and what the variant `paper` feeds back."""

from typing import Any

import pytest
import torch

from model.errors import UserError
from model.nets import create_model, decisive_options

SMALL = {"base_channels": 16, "num_stages": 2, "inflate_stages": [2], "down_stages": [2], "num_prototypes": 6}
BASELINE = {"inter": False, "intra": False, "prototypes": False, "contrastive_weight": 0}
MTE = {"prototypes": False, "contrastive_weight": 0}
MTE_PRN = {"contrastive_weight": 0}
NEITHER = {"inter": False, "intra": False}


def net_of(**options: Any) -> Any:
    torch.manual_seed(0)
    return create_model("protogcn", layout="coco", num_classes=4, **{**SMALL, **options})


def trained_logits(**options: Any) -> torch.Tensor:
    """Scores after three steps of a training in which every random draw follows from its step."""
    net = net_of(**options)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    x = torch.randn(6, 2, 8, 17, 3, generator=torch.Generator().manual_seed(1))
    for step in range(3):
        torch.manual_seed(step)
        optimiser.zero_grad()
        net.loss(x, torch.arange(6) % 4)[0].backward()
        optimiser.step()
    return net.eval()(x).detach()


@pytest.mark.parametrize("pair", [(MTE, MTE_PRN), (BASELINE, NEITHER), (NEITHER, {**NEITHER, "num_prototypes": 3})])
def test_released_cells_that_are_one_network_end_with_the_same_bits(pair: Any) -> None:
    one, other = pair
    assert decisive_options("protogcn", one) == decisive_options("protogcn", other)
    assert torch.equal(trained_logits(**one), trained_logits(**other))


@pytest.mark.parametrize(
    "pair", [(BASELINE, MTE), (MTE, {"prototypes": False}), (MTE, {}), (NEITHER, {"inter": False})]
)
def test_released_cells_that_differ_are_not_taken_for_one(pair: Any) -> None:
    one, other = pair
    assert decisive_options("protogcn", one) != decisive_options("protogcn", other)
    assert not torch.equal(trained_logits(**one), trained_logits(**other))


def test_under_the_papers_reading_the_memory_matters_without_the_contrast() -> None:
    one, other = {**MTE, "variant": "paper"}, {**MTE_PRN, "variant": "paper"}
    assert decisive_options("protogcn", one) != decisive_options("protogcn", other)
    assert not torch.equal(trained_logits(**one), trained_logits(**other))
    assert decisive_options("protogcn", one) == decisive_options("protogcn", MTE)
    assert torch.equal(trained_logits(**one), trained_logits(**MTE))


def moved(net: Any) -> Any:
    """The same with topologies that depend on the clip: their scales start at zero."""
    for name, parameter in net.named_parameters():
        if name.endswith((".alpha", ".beta")):
            torch.nn.init.constant_(parameter, 0.7)
    return net.eval()


def test_paper_without_memory_aggregates_with_the_plain_topology() -> None:
    released, paper = moved(net_of(prototypes=False)), moved(net_of(prototypes=False, variant="paper"))
    paper.load_state_dict(released.state_dict())
    x = torch.randn(2, 2, 8, 17, 3)
    torch.testing.assert_close(paper(x), released(x), atol=1e-5, rtol=1e-5)


def test_paper_rebuilds_the_whole_topology_of_each_person_and_aggregates_with_it() -> None:
    net = moved(net_of(variant="paper"))
    x = torch.randn(2, 2, 8, 17, 3)
    last, seen = net.gcn[-1].gcn, {}
    last.post.register_forward_pre_hook(lambda _, args: seen.update(aggregated=args[0]))
    last.pre.register_forward_hook(lambda _, args, out: seen.update(x=args[0], value=out))
    _, z = net._features_and_topologies(x)
    pooled = seen["x"].mean(2, keepdim=True)
    q, k = (conv(pooled)[:, :, 0].unflatten(1, (8, -1)) for conv in (last.conv1, last.conv2))
    inter = last.alpha[0] * torch.tanh(q[..., :, None] - k[..., None, :])
    intra = last.beta[0] * torch.einsum("nkcv,nkcw->nkvw", q, k).softmax(2)
    whole = (last.A[:, None] + inter + intra[:, :, None]).flatten(1, 2)  # (N*M, C, V, V)
    weights = torch.einsum("ncvw,pc->nvwp", whole, net.prn.query_matrix.weight).softmax(-1)
    rebuilt = torch.einsum("nvwp,cp->ncvw", weights, net.prn.memory_matrix.weight)
    torch.testing.assert_close(z, rebuilt, atol=1e-5, rtol=1e-4)
    aggregated = torch.einsum("nctv,ncvw->nctw", seen["value"], rebuilt)
    torch.testing.assert_close(seen["aggregated"], aggregated, atol=1e-5, rtol=1e-4)


def test_paper_teaches_the_prototypes_by_the_class_scores() -> None:
    net = net_of(variant="paper", contrastive_weight=0)
    total, parts = net.loss(torch.randn(2, 1, 8, 17, 3), torch.tensor([0, 1]))
    total.backward()
    assert set(parts) == {"ce"} and all(parameter.grad.abs().sum() > 0 for parameter in net.prn.parameters())


def test_unknown_variant_is_refused() -> None:
    with pytest.raises(UserError, match="variant: 'papers' is neither"):
        net_of(variant="papers")
