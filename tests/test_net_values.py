"""Values that the networks gave when they equalled the originals (test_golden_nets), so that everybody can check.

After a change that is meant to alter them: `python tests/test_net_values.py` writes the file anew.
"""

import json
from pathlib import Path

import pytest
import torch
from small_nets import clips, scores, small
from torch import nn

from model.nets import NETWORKS

FILE = Path(__file__).parent / "golden" / "net_values.json"
LAYOUTS = ("nturgb+d", "coco")


def values(name, layout):
    net = small(name, layout).double()
    for i, tensor in enumerate(net.state_dict().values()):
        if tensor.is_floating_point():
            wave = torch.sin(0.7 * torch.arange(tensor.numel(), dtype=torch.float64) + i).reshape(tensor.shape)
            tensor.copy_(0.3 * wave + (1 if tensor.dim() == 1 else 0))
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x = clips(net)
    x = torch.cos(torch.arange(x.numel(), dtype=torch.float64) * 1.3).reshape(x.shape)
    logits = scores(net.eval(), x)
    loss, _ = net.train().loss(x, torch.tensor([0, 4, 4]))
    loss.backward()
    gradient = torch.stack([p.grad.norm() for p in net.parameters()]).norm()
    state = torch.stack([t.norm() for t in net.state_dict().values() if t.is_floating_point()]).norm()
    return {
        "logits": logits.flatten().tolist(),
        "loss": loss.item(),
        "gradient": gradient.item(),
        "state": state.item(),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_values_have_not_moved(name, layout):
    expected = json.loads(FILE.read_text())[f"{name} {layout}"]
    found = values(name, layout)
    for key, reference in expected.items():
        assert found[key] == pytest.approx(reference, rel=1e-8), key


if __name__ == "__main__":
    everything = {f"{name} {layout}": values(name, layout) for name in NETWORKS for layout in LAYOUTS}
    FILE.write_text(json.dumps(everything, indent=1) + "\n")
