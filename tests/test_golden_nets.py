"""The networks against numbers of the original implementations (see SIXSTREAM_GOLDEN).

Double precision decides: there a wrong operation shows and rounding does not. In single precision the first step is
compared at the stated tolerances; later ones amplify the rounding of activations next to zero.
"""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from model import create_model, load_reference
from model.graph import adjacency
from model.layouts import load_layout
from model.reference import model_options, to_original

EVAL = [
    "protogcn_ntu_1",
    "protogcn_ntu_2_full",
    "stgcn_ntu_1",
    "stgcnpp_ntu_1",
    "stgcnpp_pyskl_ntu_1",
    "agcn_ntu_1",
    "ctrgcn_ntu_1",
    "dgstgcn_ntu_1",
    "posec3d_kp_1",
    "posec3d_kp_2_full",
]
TRAIN = [
    "protogcn_ntu_train_1",
    "stgcn_ntu_train_1",
    "stgcnpp_ntu_train_1",
    "agcn_ntu_train_1",
    "posec3d_kp_train_1",
]
INITIAL = ["protogcn_ntu", "stgcn_ntu", "stgcnpp_ntu", "agcn_ntu", "posec3d"]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def read_case(folder, name):
    case = torch.load(folder / "models" / f"{name}.pt", weights_only=True)
    case["state_dict"] = {k: v.float() if v.is_floating_point() else v for k, v in case["state_dict"].items()}
    packed = case["input"]
    if isinstance(packed, dict):
        case["input"] = torch.zeros(math.prod(packed["shape"]))
        case["input"][packed["index"].long()] = packed["value"]
        case["input"] = case["input"].reshape(packed["shape"])
    return case


def classifier(case):
    return "fc" if "cls_head.fc.weight" in case["state_dict"] else "fc_cls"


def load(case):
    net = load_reference(case["state_dict"], case["config"])
    assert net.load_report == {"missing": [], "unused": [], "shape": []}
    assert sum(p.numel() for p in net.parameters()) == case["params"]
    return net


@pytest.mark.parametrize("name", EVAL)
@torch.no_grad()
def test_scores(golden_dir, name):
    case = read_case(golden_dir, name)
    extras, net = case["extras"], load(case)
    difference = (net(case["input"]) - case["logits"]).abs().max().item()
    assert difference <= extras["tolerance"]["fp32_logits_maxabs"]
    torch.testing.assert_close(
        net.features(case["input"]).flatten(), extras["pooled_feature"].flatten(), rtol=1e-3, atol=1e-4
    )
    net.double()
    exact = net(case["input"].double())
    assert ((exact - extras["logits_fp64"]).norm() / extras["logits_fp64"].norm()).item() < 1e-9
    if name.startswith("protogcn"):
        _, graph = net.features_and_graph(case["input"].double())
        torch.testing.assert_close(graph, extras["graph_feature_fp64"], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(net.contrast.cl_fc(graph).float(), extras["csc_embedding"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", EVAL)
def test_round_trip_of_weights_is_the_identity(golden_dir, name):
    case = read_case(golden_dir, name)
    back = to_original(load(case), load(case).state_dict(), classifier(case))
    assert set(back) == set(case["state_dict"])
    assert all(torch.equal(back[key], value) for key, value in case["state_dict"].items())


def train(case, steps, dtype):
    """Repeats the original's steps; yields what each of them left."""
    net = load(case).to(dtype).train()
    extras = case["extras"]
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if "bank_initial" in extras:
        net.contrast.bank.copy_(extras["bank_initial"])
    settings = {k: v for k, v in extras["optimizer"].items() if k != "type"}
    optimizer = torch.optim.SGD(net.parameters(), **settings)
    for expected in steps:
        optimizer.zero_grad()
        total, parts = net.loss(case["input"].to(dtype), extras["labels"])
        total.backward()
        gradients = to_original(net, {n: p.grad for n, p in net.named_parameters()}, classifier(case))
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), extras["clip_grad_norm"] or math.inf).item()
        optimizer.step()
        yield expected, net, total.item(), parts, gradients, norm


@pytest.mark.parametrize("name", TRAIN)
def test_training_steps_in_double_precision(golden_dir, name):
    case = read_case(golden_dir, name)
    for expected, net, loss, parts, gradients, norm in train(case, case["extras"]["steps_fp64"], torch.float64):
        assert loss == pytest.approx(expected["loss"], rel=1e-9)
        assert norm == pytest.approx(expected["grad_total_norm"], rel=1e-9)
        assert parts["ce"].item() == pytest.approx(expected["loss_ce"], rel=1e-9)
        if "loss_csc" in expected:
            assert parts["contrast"].item() == pytest.approx(expected["loss_csc"], rel=1e-9)
            torch.testing.assert_close(net.contrast.bank, expected["bank_after"].double(), rtol=1e-9, atol=1e-9)
        parameters = [p.detach() for p in net.parameters()]
        total_norm = torch.stack([p.norm() for p in parameters]).norm().item()
        assert total_norm == pytest.approx(expected["param_norm_after"], rel=1e-12)
        assert sum(p.sum().item() for p in parameters) == pytest.approx(expected["param_sum_after"], rel=1e-11)
        for key, reference in expected.get("grad_norm", {}).items():
            assert gradients[key].norm().item() == pytest.approx(reference, rel=1e-7, abs=1e-9 * norm), key
        for key, reference in expected.get("grad_sample", {}).items():
            sample = gradients[key].flatten()[: len(reference)]
            torch.testing.assert_close(sample, reference, rtol=1e-7, atol=1e-9 * norm)
        buffers = to_original(net, net.state_dict(), classifier(case))
        for key, reference in expected.get("bn_after", {}).items():
            torch.testing.assert_close(buffers[key].flatten()[: len(reference["first"])], reference["first"])
            assert buffers[key].mean().item() == pytest.approx(reference["mean"], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", TRAIN)
def test_first_training_step_in_single_precision(golden_dir, name):
    case = read_case(golden_dir, name)
    expected, _, loss, _, gradients, norm = next(train(case, case["extras"]["steps"][:1], torch.float32))
    assert loss == pytest.approx(expected["loss"], rel=case["extras"]["tolerance"]["fp32_loss_step1"])
    assert norm == pytest.approx(expected["grad_total_norm"], rel=1e-3)
    assert set(gradients) == set(expected["grad_norm"])


@pytest.mark.parametrize("name", INITIAL)
def test_initialisation_statistics(golden_dir, name):
    golden = json.loads((golden_dir / "models" / f"{name}_init.json").read_text())
    torch.manual_seed(0)
    net = create_model(**model_options(golden["config"]))
    assert sum(p.numel() for p in net.parameters()) == golden["params"]
    head = "fc" if "cls_head.fc.weight" in golden["entries"] else "fc_cls"
    state = to_original(net, net.state_dict(), head)
    assert set(state) == set(golden["entries"])
    for key, entry in golden["entries"].items():
        ours = state[key].double()
        assert list(ours.shape) == entry["shape"], key
        if ours.numel() == 1 or not any(entry["std"]):
            assert ours.mean().item() == pytest.approx(entry["mean"][0], abs=1e-12), key
            continue
        # A mean and a spread over n draws are known to about 1/sqrt(n); five times that never fails by chance.
        spread = np.mean(entry["std"])
        noise = 5 * spread / math.sqrt(ours.numel())
        assert ours.std().item() == pytest.approx(spread, abs=noise), key
        assert ours.mean().item() == pytest.approx(np.mean(entry["mean"]), abs=2 * noise), key
        assert ours.abs().max().item() < 1.5 * max(np.abs(entry["min"]).max(), np.abs(entry["max"]).max()), key


def test_graphs(golden_dir):
    golden = torch.load(golden_dir / "models" / "graphs_ntu.pt", weights_only=True)["graphs"]["nturgb+d"]
    layout = load_layout("nturgb+d")
    for mode in ("spatial", "stgcn_spatial", "binary_adj"):
        np.testing.assert_allclose(adjacency(layout, mode), golden[mode].numpy(), atol=1e-15)
    assert [list(edge) for edge in layout.edges] == [list(edge) for edge in golden["inward"]]
    assert layout.centre == golden["center"]
