"""Training under bfloat16 autocast: what stays in single precision, and that it learns as well.

Stated tolerance: the mean loss of every five steps lies within 10 % (and 0.03) of that in single precision, and as many
clips are right in the end, give or take one.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from training_kit import PROTOGCN, run, small_store

from model import create_model

TINY = {"base_channels": 16, "num_stages": 2, "inflate_stages": [2], "down_stages": [2]}
STEPS = 20


def problem() -> tuple[Tensor, Tensor]:
    """Three postures, shaken."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(18) % 3
    postures = torch.randn(3, 1, 1, 25, 3, generator=generator)
    return postures[labels] + torch.randn(18, 1, 8, 25, 3, generator=generator), labels


def learnt(name: str, options: dict, amp: bool) -> tuple[Tensor, int]:
    """Mean losses of every five steps, and how many clips are right afterwards."""
    torch.manual_seed(3)
    net = create_model(name, layout="nturgb+d", num_classes=3, **options)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    x, labels = problem()
    losses = []
    for step in range(STEPS):
        torch.manual_seed(step)
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            loss, _ = net.loss(x, labels)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(tensor.dtype != torch.bfloat16 for tensor in net.state_dict().values())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
        right = int((net(x).argmax(1) == labels).sum())
    return torch.tensor(losses).view(-1, 5).mean(1), right


@pytest.mark.parametrize(("name", "options"), [("protogcn", PROTOGCN), ("stgcnpp", TINY)])
def test_the_learning_curve_is_that_of_single_precision(name: str, options: dict) -> None:
    (single, right), (half, right_half) = (learnt(name, options, amp) for amp in (False, True))
    assert not torch.equal(single, half)  # it did make a difference
    assert single[-1] < 0.9 * single[0] and right >= 15
    torch.testing.assert_close(half, single, rtol=0.1, atol=0.03)
    assert abs(right_half - right) <= 1


def test_a_cpu_trains_in_single_precision(tmp_path: Path) -> None:
    """`amp` is for GPUs: what a CPU learns is the same to the bit with and without."""
    store = small_store(tmp_path / "store")
    weights = []
    for amp in (False, True):
        torch.manual_seed(0)
        net = create_model("protogcn", layout="nturgb+d", num_classes=3, **PROTOGCN)
        run(net, store, tmp_path / str(amp), amp=amp)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in net.parameters()]))
    assert torch.equal(*weights)


def test_losses_gradients_and_statistics_stay_in_single_precision() -> None:
    torch.manual_seed(0)
    net = create_model("protogcn", layout="nturgb+d", num_classes=3, **PROTOGCN)
    x, labels = problem()
    with torch.autocast("cpu", torch.bfloat16):
        total, parts = net.loss(x, labels)
        assert net(x).dtype == torch.bfloat16
    total.backward()
    assert {total.dtype, *(part.dtype for part in parts.values())} == {torch.float32}
    assert {p.grad.dtype for p in net.parameters() if p.grad is not None} == {torch.float32}
    assert net.contrast.bank.dtype == net.gcn[0].tcn.bn.running_var.dtype == torch.float32
