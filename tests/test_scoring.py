"""The folded form of networks that only score (`model.nets.scoring`) against their modules."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model import create_model
from model.nets import scoring
from model.nets.norm import by_module
from model.nets.onednn import Convolution, product

FRAMES = 19
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "protogcn": ("protogcn", {}),
    "protogcn, coco": ("protogcn", {"layout": "coco"}),
    "protogcn, paper": ("protogcn", {"variant": "paper", "inter": False, "intra": False}),
    "dgstgcn": ("dgstgcn", {}),
    "dgstgcn, shared": ("dgstgcn", {"inter": False, "intra": False}),
    "dgstgcn, inter": ("dgstgcn", {"intra": False}),
    "dgstgcn, intra": ("dgstgcn", {"inter": False}),
    "dgstgcn, branches": ("dgstgcn", {"branches": ((3, 1), "1x1", ("max", 3), "1x1")}),
    "stgcnpp": ("stgcnpp", {}),
    "stgcnpp, branches": ("stgcnpp", {"branches": (("max", 3), "1x1", (5, 2))}),
    "stgcn": ("stgcn", {}),
    "stgcn, single": ("stgcn", {"adaptive": "init", "with_residual": True}),
}


def network(case: str, dtype: torch.dtype) -> nn.Module:
    """With norms and learned parts as training might leave them."""
    torch.manual_seed(0)
    name, options = CASES[case]
    net = create_model(name, num_classes=7, **{"layout": "nturgb+d", "base_channels": 32, **options}).to(dtype)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 2)
    return net.eval()


def clips(net: Any, dtype: torch.dtype) -> Tensor:
    x = torch.randn(4, 2, FRAMES, net.num_joints, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    x[1:3, 1] = 0
    return x


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_the_modules(case: str, dtype: torch.dtype, tolerance: float, threads: int) -> None:
    net = network(case, dtype)
    x = clips(net, dtype)
    with torch.no_grad():
        assert scoring.steps(net.gcn, x) is not None
        found = net(x)
        with by_module():
            expected = net(x)
    assert float((found - expected).abs().max()) < tolerance * float(expected.std())


def test_the_input_stays() -> None:
    net = network("stgcnpp", torch.float32)
    x = clips(net, torch.float32)
    before = x.clone()
    with torch.inference_mode():
        net(x)
    assert torch.equal(x, before)


def test_changed_weights_change_the_scores() -> None:
    """Also by ways that torch does not count as changes."""
    net = network("protogcn", torch.float32)
    x = clips(net, torch.float32)
    with torch.inference_mode():
        before = net(x)
        net.gcn[3].tcn.transform.weight.data.mul_(1.5)
        found = net(x)
        with by_module():
            expected = net(x)
    assert not torch.allclose(found, before)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


def test_where_modules_are_needed() -> None:
    net = network("dgstgcn", torch.float32)
    x = clips(net, torch.float32)
    with torch.enable_grad():
        assert scoring.steps(net.gcn, x) is None
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert scoring.steps(net.gcn, x) is None
        seen = []
        hook = net.gcn[2].register_forward_hook(lambda module, inputs, y: seen.append(y.shape))
        net(x)
        assert len(seen) == 1
        hook.remove()
        net.gcn[1].gcn.bn.train()
        assert scoring.steps(net.gcn, x) is None
        net.eval()
        assert scoring.steps(net.gcn, x) is not None
        assert scoring.steps(create_model("agcn", layout="coco", num_classes=3).eval().gcn, x) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_convolutions_and_products(dtype: torch.dtype) -> None:
    """oneDNN's form, and torch's where there is none, for two shapes by one convolution."""
    draw = torch.Generator().manual_seed(2)
    weight, bias = (torch.randn(*shape, generator=draw, dtype=dtype) for shape in ((6, 5, 1, 3), (6,)))
    conv = Convolution(weight, bias, stride=(1, 2), padding=(0, 2), dilation=(1, 2))
    for height in (4, 9):
        x = torch.randn(2, height, 11, 5, generator=draw, dtype=dtype).permute(0, 3, 1, 2)
        expected = torch.nn.functional.conv2d(x, weight, bias, (1, 2), (0, 2), (1, 2))
        torch.testing.assert_close(conv(x), expected)
        torch.testing.assert_close(conv(x, relu=True), expected.relu())
        target = torch.randn(2, height, 6, 6, generator=draw, dtype=dtype).permute(0, 3, 1, 2)
        total = (target + expected).relu()
        torch.testing.assert_close(conv.onto(target, x), total)
        torch.testing.assert_close(target, total)
    a, b = (torch.randn(*shape, generator=draw, dtype=dtype) for shape in ((8, 30), (30, 12)))
    torch.testing.assert_close(product(a, b.T), a @ b)
    torch.testing.assert_close(product(a.T.contiguous().T, b.T.contiguous()), a @ b)
