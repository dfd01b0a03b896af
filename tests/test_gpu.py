"""On a GPU the networks give what they give on CPU. Imports `model` alone, so that it runs on a bare machine."""

import pytest
import torch
from small_nets import clips, scores, small
from torch import nn

from model.nets import NETWORKS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
LABELS = torch.tensor([0, 4, 4])


def figures(name, device, dtype, amp=False):
    """Loss, gradients and buffers of a training step, and then the scores; the second person is missing twice."""
    net = small(name, "coco").to(device, dtype)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x = clips(small(name, "coco")).to(device, dtype)
    if hasattr(net, "gcn"):
        x[:2, 1] = 0
    with torch.autocast(device, torch.bfloat16, enabled=amp):
        loss, _ = net.train().loss(x, LABELS.to(device))
    loss.backward()
    found = [loss.detach(), *(p.grad for p in net.parameters()), *net.buffers()]
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=amp):
        found.append(scores(net.eval(), x))
    return [tensor.double().cpu() for tensor in found]


@pytest.mark.parametrize("name", NETWORKS)
def test_double_precision(name):
    for found, expected in zip(figures(name, "cuda", torch.float64), figures(name, "cpu", torch.float64), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_autocast(name):
    found, expected = (figures(name, "cuda", torch.float32, amp)[-1] for amp in (True, False))
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.05 * expected.abs().max().item())
