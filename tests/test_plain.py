"""Our networks against their plain forms, written a second time straight from the equations."""

import pytest
import torch

from benchmarks.train_step import PLAIN, data, largest_difference, pair


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_loss_and_gradients_equal_the_plain_form(name: str) -> None:
    assert largest_difference(name, base=24, frames=8) < 1e-11


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_scores_equal_the_plain_form(name: str) -> None:
    nets = pair(name, base=24)
    x, _ = data(3, 9)
    scores = [net.double().eval()(x.double()) for net in nets.values()]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-11, atol=1e-13)


def test_the_bank_moves_as_in_the_plain_form() -> None:
    nets = {form: net.double() for form, net in pair("protogcn", base=24).items()}
    x, _ = data(6, 8)
    # The network's own answers as labels: with wrong answers alone no column would move.
    for net in nets.values():
        net.train()
    labels = nets["ours"](x.double()).argmax(1)
    former = nets["ours"].contrast.bank.clone()
    for net in nets.values():
        net.loss(x.double(), labels)
    ours, plain = nets["ours"].contrast.bank, nets["plain"].cls_head.csc_loss.bank
    assert not torch.equal(ours, former)
    torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-13)
