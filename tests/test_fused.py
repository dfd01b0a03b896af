"""What makes networks fast changes no value: each way against the modules that it replaces, in double precision."""

from contextlib import nullcontext

import pytest
import torch
from small_nets import clips, small
from torch import nn

from model.nets import NETWORKS, fused
from model.nets.empty import distinct_persons
from model.nets.moments import statistics, weighted
from model.nets.norm import BatchNorm, by_module, norm_relu

GRAPH_NETWORKS = [name for name in NETWORKS if name not in ("posec3d", "umurl")]
LABELS = torch.tensor([0, 4, 4, 1, 2])


def warmed(name, **options):
    """A network in double precision of which no part is still at its initial zero."""
    net = small(name, "coco", **options).double()
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.2 * torch.rand(tensor.shape, dtype=torch.float64))
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return net


def step(net, x):
    """Loss, gradients and buffers after a training step, and then the scores, all flat."""
    net.train().zero_grad()
    loss, _ = net.loss(x, LABELS)
    loss.backward()
    found = [loss.detach(), *(p.grad for p in net.parameters()), *(b.double() for b in net.buffers())]
    with torch.no_grad():
        return torch.cat([tensor.flatten() for tensor in [*found, net.eval()(x)]])


def some_empty(net):
    """Five clips; the second person is missing in three, the first and the only one each once."""
    x = clips(net, number=5).double()
    x[[0, 2, 3], 1] = 0
    x[[1, 3], 0] = 0
    return x


OPTIONS = [(name, {}) for name in GRAPH_NETWORKS] + [
    ("protogcn", {"inter": False}),
    ("protogcn", {"intra": False}),
    ("protogcn", {"inter": False, "intra": False}),
    ("stgcn", {"branches": ((3, 2), "1x1", "1x1", ("max", 3)), "temporal": "multi_scale"}),
    ("stgcnpp", {"branches": ((3, 1), ("max", 3))}),
]


@pytest.mark.parametrize("portion", [1, 7000, fused.PORTION])  # one clip at a time, a few, all
@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_fused_units_equal_their_modules(name, options, portion, monkeypatch):
    monkeypatch.setattr(fused, "PORTION", portion)
    x = clips(warmed(name), number=5).double()
    x[:, :, 1::3] = x[:, :, ::3][:, :, : x[:, :, 1::3].shape[2]]  # equal frames, of which a maximum takes the first
    found = step(warmed(name, **options), x)
    with by_module():
        expected = step(warmed(name, **options), x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("portion", [1, fused.PORTION])
@pytest.mark.parametrize("name", GRAPH_NETWORKS)
def test_empty_persons_are_computed_once_and_count_all(name, portion, monkeypatch):
    monkeypatch.setattr(fused, "PORTION", portion)
    net = warmed(name)
    x = some_empty(net)
    distinct = distinct_persons(x, net.gcn)
    assert distinct is not None and len(distinct.rows) == 7 and distinct.counts.sum() == 10
    found = step(net, x)
    with by_module():
        net = warmed(name)
        assert distinct_persons(x, net.train().gcn) is None
        expected = step(net, x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", GRAPH_NETWORKS)
def test_frozen_norms_leave_biases_their_gradients(name):
    """A norm in eval mode does not take away what the bias before it adds."""
    found = []
    for way in (nullcontext(), by_module()):
        net = warmed(name).train()
        x = clips(net, number=5).double()
        for module in net.modules():
            if isinstance(module, BatchNorm):
                module.eval()
        with way:
            net.loss(x, LABELS)[0].backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in net.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9 * float(found[1].abs().max()))


def test_persons_are_kept_apart_where_dropout_would_tell_them_apart():
    net = small("stgcnpp", "coco", temporal_dropout=0.5)
    x = some_empty(net).float()
    assert distinct_persons(x, net.train().gcn) is None
    assert distinct_persons(x, net.eval().gcn) is not None
    assert distinct_persons(x[:1], net.gcn) is None  # one of a kind in every slot
    assert distinct_persons(x.requires_grad_(), net.gcn) is None


def test_statistics_of_weighted_rows_are_those_of_repeated_ones():
    rows, counts = torch.randn(3, 7, 4, dtype=torch.float64), torch.tensor([1, 3, 2])
    with weighted(counts):
        found = statistics(rows, 1e-5)
    every = rows.repeat_interleave(counts, 0)
    torch.testing.assert_close(found.mean, every.mean((0, 1)))
    torch.testing.assert_close(found.variance, every.var((0, 1), unbiased=False))
    assert found.rows == 42


def test_norm_relu_in_every_mode_equals_its_parts():
    torch.manual_seed(0)
    ours, plain = (BatchNorm(6).double() for _ in range(2))
    for norm in (ours, plain):
        norm.weight.data = torch.linspace(-1, 2, 6, dtype=torch.float64)
    x, residual = (torch.randn(4, 6, 5, 3).double() for _ in range(2))
    for training in (True, False):
        inputs = [tensor.clone().requires_grad_() for tensor in (x, residual, x, residual)]
        found = norm_relu(ours.train(training), inputs[0] * 1, inputs[1])
        with by_module():
            expected = torch.relu(plain.train(training)(inputs[2]) + inputs[3])
        for y in (found, expected):
            (y * torch.arange(5)[:, None]).sum().backward()
        pairs = [(found, expected), *((inputs[i].grad, inputs[i + 2].grad) for i in (0, 1))]
        pairs += [(ours.running_var, plain.running_var), (ours.weight.grad, plain.weight.grad)]
        for ours_value, expected_value in pairs:
            torch.testing.assert_close(ours_value, expected_value, rtol=1e-11, atol=1e-12)
    with torch.no_grad():
        scored = norm_relu(ours, x.clone())
    torch.testing.assert_close(scored, torch.relu(plain(x)), rtol=1e-11, atol=1e-12)
