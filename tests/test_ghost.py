"""Batch norm by groups of clips: what a network computes for a group is what it computes for that group alone."""

from pathlib import Path

import pytest
import torch
from small_nets import clips, scores, small
from torch import Tensor, nn
from training_kit import TinyNet, run, small_store

from model.distributed import share
from model.errors import UserError
from model.ghost import GroupedBatchNorm, group_norms
from model.losses import ClassContrast, commit_banks, defer_banks
from model.nets import NETWORKS
from model.settings import TrainSettings


@pytest.mark.parametrize("name", NETWORKS)
def test_a_group_sees_nothing_of_the_others(name: str) -> None:
    plain, grouped = (small(name, "nturgb+d").double().train() for _ in range(2))
    for net in (plain, grouped):
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    x = clips(plain, number=5).double()
    groups = group_norms(grouped, 2, 1)
    groups.begin(0, 5)
    assert groups.bounds == [0, 2, 5]
    alone = torch.cat([scores(plain, x[:2]), scores(plain, x[2:])])
    torch.testing.assert_close(scores(grouped, x), alone, rtol=1e-9, atol=1e-9)
    assert grouped.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(scores(grouped.eval(), x), scores(grouped.eval(), x))


@pytest.mark.parametrize(("total", "passes"), [(4, 1), (2, 2), (1, 4)])
def test_running_statistics_move_once_by_the_mean_of_the_groups(total: int, passes: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 5, dtype=torch.float64) * 2 + 1
    net = nn.Sequential(nn.BatchNorm1d(3, momentum=0.3)).double()
    groups = group_norms(net, total, passes)
    for part in range(passes):
        groups.begin(part, len(x))
        net(x[share(len(x), part, passes)])
    norm = net[0]
    assert isinstance(norm, GroupedBatchNorm) and norm.running_mean is not None and norm.running_var is not None
    assert norm.num_batches_tracked == 1
    mean = x.view(4, 2, 3, 5).transpose(1, 2).flatten(2).mean(2).mean(0)
    variance = x.view(4, 2, 3, 5).transpose(1, 2).flatten(2).var(2).mean(0)
    torch.testing.assert_close(norm.running_mean, 0.3 * mean)
    torch.testing.assert_close(norm.running_var, 0.7 + 0.3 * variance)


class Bankless(TinyNet):
    """Its loss has nothing that depends on clips of other passes."""

    def loss(self, x: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return nn.functional.cross_entropy(self(x), labels), {}


def test_accumulated_passes_equal_one_pass_when_norms_have_groups(tmp_path: Path) -> None:
    """Two groups of four clips: in one pass, or in a pass each."""
    store = small_store(tmp_path / "store")
    states = []
    for accumulate in (1, 2):
        torch.manual_seed(1)
        net = Bankless()
        run(net, store, tmp_path / str(accumulate), accumulate=accumulate, bn_batch=4)
        states.append(net.state_dict())
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-3, atol=1e-5)


def test_the_bank_moves_once_per_step_by_the_clips_of_all_passes() -> None:
    torch.manual_seed(0)
    whole = ClassContrast(9, 3, size=4)
    passes = ClassContrast(9, 3, size=4)
    passes.load_state_dict(whole.state_dict())
    graph, labels = torch.randn(8, 9), torch.arange(8) % 3
    logits = nn.functional.one_hot(labels, 3).float()
    logits[3] = logits[3].flip(0)  # wrong or not, by its class
    net = nn.ModuleList([passes])
    defer_banks(net, 2)
    before = passes.bank.clone()
    for rows in (slice(0, 5), slice(5, 8)):
        passes(graph[rows], logits[rows], labels[rows])
        assert torch.equal(passes.bank, before)
    commit_banks(net)
    whole(graph, logits, labels)
    torch.testing.assert_close(passes.bank, whole.bank)
    assert not torch.equal(passes.bank, before)
    commit_banks(net)
    torch.testing.assert_close(passes.bank, whole.bank)


def test_groups_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="bn_batch: 6 does not divide the batch of 16"):
        TrainSettings(epochs=1, batch_size=16, lr=0.1, seed=0, bn_batch=6)
    with pytest.raises(UserError, match="bn_batch: 1 leaves"):
        TrainSettings(epochs=1, batch_size=16, lr=0.1, seed=0, bn_batch=1)
    with pytest.raises(UserError, match="accumulate: 4 passes cannot share the 2 groups"):
        TrainSettings(epochs=1, batch_size=16, lr=0.1, seed=0, bn_batch=8, accumulate=4)
    assert TrainSettings(epochs=1, batch_size=6, lr=0.1, seed=0, bn_batch=16).groups == 1
