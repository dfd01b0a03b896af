"""The networks against numbers of the original implementations (see SIXSTREAM_GOLDEN).

Double precision decides: there a wrong operation shows and rounding does not. In single precision the first step is
compared at the stated tolerances; later ones amplify the rounding of activations next to zero.
"""

import json
import math

import numpy as np
import pytest
import torch
from golden_report import at_most, close
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
    difference = (net(case["input"]) - case["logits"]).abs().max()
    at_most(name, "logits, float32", difference, extras["tolerance"]["fp32_logits_maxabs"])
    features = net.features(case["input"]).flatten()
    close(name, "features, float32", features, extras["pooled_feature"].flatten(), rtol=1e-3, atol=1e-4)
    net.double()
    exact = net(case["input"].double())
    relative = (exact - extras["logits_fp64"]).norm() / extras["logits_fp64"].norm()
    at_most(name, "logits, float64, relative", relative, 1e-9)
    if name.startswith("protogcn"):
        _, graph = net.features_and_graph(case["input"].double())
        close(name, "graph vector, float64", graph, extras["graph_feature_fp64"], rtol=1e-9, atol=1e-12)
        close(name, "embedding", net.contrast.cl_fc(graph), extras["csc_embedding"], atol=1e-4, rtol=1e-4)


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
    steps = train(case, case["extras"]["steps_fp64"], torch.float64)
    for number, (expected, net, loss, parts, gradients, norm) in enumerate(steps, 1):
        step = f"step {number}, float64"
        close(name, f"{step}: loss", loss, expected["loss"], rtol=1e-9, atol=0)
        close(name, f"{step}: gradient norm", norm, expected["grad_total_norm"], rtol=1e-9, atol=0)
        close(name, f"{step}: cross entropy", parts["ce"], expected["loss_ce"], rtol=1e-9, atol=0)
        if "loss_csc" in expected:
            close(name, f"{step}: contrast", parts["contrast"], expected["loss_csc"], rtol=1e-9, atol=0)
            close(name, f"{step}: bank", net.contrast.bank, expected["bank_after"], rtol=1e-9, atol=1e-9)
        parameters = [p.detach() for p in net.parameters()]
        total_norm = torch.stack([p.norm() for p in parameters]).norm()
        close(name, f"{step}: weights' norm", total_norm, expected["param_norm_after"], rtol=1e-12, atol=0)
        total = sum(p.sum() for p in parameters)
        close(name, f"{step}: weights' sum", total, expected["param_sum_after"], rtol=1e-11, atol=0)
        if norms := expected.get("grad_norm"):
            found = [gradients[key].norm() for key in norms]
            close(name, f"{step}: every gradient's norm", found, list(norms.values()), rtol=1e-7, atol=1e-9 * norm)
        if samples := expected.get("grad_sample"):
            found = torch.cat([gradients[key].flatten()[: len(value)] for key, value in samples.items()])
            wanted = torch.cat([value.double() for value in samples.values()])
            close(name, f"{step}: gradient samples", found, wanted, rtol=1e-7, atol=1e-9 * norm)
        buffers = to_original(net, net.state_dict(), classifier(case))
        if norms := expected.get("bn_after"):
            found = torch.cat([buffers[key].flatten()[: len(value["first"])] for key, value in norms.items()])
            wanted = torch.cat([value["first"].double() for value in norms.values()])
            close(name, f"{step}: norm statistics", found, wanted, rtol=1e-7, atol=1e-7)
            means = [buffers[key].mean() for key in norms]
            wanted = [value["mean"] for value in norms.values()]
            close(name, f"{step}: their means", means, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", TRAIN)
def test_first_training_step_in_single_precision(golden_dir, name):
    case = read_case(golden_dir, name)
    expected, _, loss, _, gradients, norm = next(train(case, case["extras"]["steps"][:1], torch.float32))
    tolerance = case["extras"]["tolerance"]["fp32_loss_step1"]
    close(name, "step 1, float32: loss", loss, expected["loss"], rtol=tolerance, atol=0)
    close(name, "step 1, float32: gradient norm", norm, expected["grad_total_norm"], rtol=1e-3, atol=0)
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
    excess = 0.0
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
        excess = max(excess, abs(ours.std().item() - spread) / noise)
        assert ours.abs().max().item() < 1.5 * max(np.abs(entry["min"]).max(), np.abs(entry["max"]).max()), key
    at_most(f"{name}_init", "spread of every tensor, in 5 sigma", excess, 1)


def test_graphs(golden_dir):
    golden = torch.load(golden_dir / "models" / "graphs_ntu.pt", weights_only=True)["graphs"]["nturgb+d"]
    layout = load_layout("nturgb+d")
    for mode in ("spatial", "stgcn_spatial", "binary_adj"):
        close("graphs_ntu", mode, adjacency(layout, mode), golden[mode], rtol=1e-7, atol=1e-15)
    assert [list(edge) for edge in layout.edges] == [list(edge) for edge in golden["inward"]]
    assert layout.centre == golden["center"]
