"""Every network on every layout, and what the networks promise beyond shapes."""

import pytest
import torch
import torch.nn.functional as F
from small_nets import CLASSES, clips, scores, small

from model import create_model
from model.complexity import complexity, usual_input
from model.errors import UserError
from model.layouts import LAYOUTS, layout_from_dict, load_layout
from model.losses import ClassContrast
from model.nets import NETWORKS, network_options
from model.nets.norm import BatchNorm
from model.nets.protogcn import PAPER, STREAM_DEFAULTS
from model.streams import STREAMS

everywhere = pytest.mark.parametrize(("name", "layout"), [(name, layout) for name in NETWORKS for layout in LAYOUTS])


@everywhere
def test_forward_backward_and_a_missing_joint(name, layout):
    net = small(name, layout)
    x, labels = clips(net), torch.tensor([0, 4, 4])
    # Joints are channels of heat maps, and next to last of all the others' axes.
    (x[:, 3] if name == "posec3d" else x[..., 3, :]).zero_()
    total, parts = net.loss(x, labels)
    total.backward()
    assert total.isfinite() and parts["ce"].isfinite() and not parts["ce"].requires_grad
    for parameter_name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
    net.eval()
    logits = scores(net, x)
    assert logits.shape == (3, CLASSES) and logits.isfinite().all()
    torch.testing.assert_close(net.fc(net.features(x)), logits)
    # A clip's scores do not depend on its neighbours in the batch.
    torch.testing.assert_close(scores(net, x[1:2]), logits[1:2], rtol=1e-4, atol=1e-5)


@everywhere
def test_state_round_trip(name, layout):
    net = small(name, layout)
    net.loss(clips(net), torch.tensor([0, 4, 4]))
    copy = small(name, layout)
    for parameter in copy.parameters():
        torch.nn.init.normal_(parameter)
    copy.load_state_dict(net.state_dict())
    x = clips(net, seed=1)
    assert torch.equal(net.eval()(x), copy.eval()(x))
    assert torch.equal(net.loss(x, torch.tensor([1, 2, 3]))[0], copy.loss(x, torch.tensor([1, 2, 3]))[0])


@everywhere
def test_bfloat16_autocast(name, layout):
    net = small(name, layout)
    x = clips(net)
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = net.loss(x, torch.tensor([0, 4, 4]))
    total.backward()
    assert total.dtype == torch.float32 and total.isfinite()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    net.eval()
    with torch.no_grad():
        exact = net(x)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = net(x)
    torch.testing.assert_close(rounded.float(), exact, rtol=0.1, atol=0.05 * exact.abs().max().item())


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "posec3d"])
@pytest.mark.parametrize(("persons", "channels", "frames"), [(1, 2, 9), (3, 4, 7)])
def test_persons_channels_and_frames_are_free(name, persons, channels, frames):
    length = {"frames": frames} if name == "umurl" else {}
    net = small(name, "handmp", in_channels=channels, persons=persons, **length)
    x = torch.randn(2, persons, frames, 21, channels)
    assert scores(net, x.permute(0, 4, 2, 3, 1) if name == "umurl" else x).shape == (2, CLASSES)


def test_heat_maps_of_limbs_have_their_own_count():
    net = create_model("posec3d", layout="coco", num_classes=CLASSES, in_channels=12, base_channels=4)
    assert net(torch.rand(1, 12, 4, 12, 12)).shape == (1, CLASSES)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="'resnet'.*protogcn"):
        create_model("resnet", layout="coco", num_classes=2)
    with pytest.raises(UserError, match="'widht'.*base_channels"):
        create_model("protogcn", layout="coco", num_classes=2, widht=3)
    with pytest.raises(UserError, match="num_classes is 0"):
        create_model("protogcn", layout="coco", num_classes=0)
    with pytest.raises(UserError, match=r"\(1, 2, 8, 25, 3\).*17 joints"):
        small("protogcn", "coco")(torch.zeros(1, 2, 8, 25, 3))
    with pytest.raises(UserError, match="clips hold 1 persons"):
        small("agcn", "coco")(torch.zeros(1, 1, 8, 17, 3))
    with pytest.raises(UserError, match="17 key points"):
        small("posec3d", "coco")(torch.zeros(1, 3, 8, 8, 8))
    with pytest.raises(UserError, match="17 joints, 2 persons"):
        small("umurl", "coco")(torch.zeros(1, 3, 11, 25, 2))
    with pytest.raises(UserError, match="'mlp'.*fused_projector"):
        small("umurl", "coco", head="mlp")
    assert "down_stages" in network_options("stgcnpp") and "num_prototypes" in network_options("protogcn")


# --- ProtoGCN's branch -------------------------------------------------------------------------------------


def test_prototype_branch_never_reaches_the_scores():
    net = small("protogcn", "coco").eval()
    x = clips(net)
    before = net(x)
    for part in (net.prn, net.post, net.bn, net.contrast):
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter)
    assert torch.equal(net(x), before)


def test_ablations():
    x, labels = torch.randn(2, 1, 8, 17, 3), torch.tensor([0, 1])
    baseline = small("protogcn", "coco", inter=False, intra=False)
    total, parts = baseline.loss(x, labels)
    assert set(parts) == {"ce"} and not any("conv1" in name for name, _ in baseline.named_parameters())
    for options in ({"inter": False}, {"intra": False}, {"prototypes": False}):
        net = small("protogcn", "coco", **options)
        assert set(net.loss(x, labels)[1]) == {"ce", "contrast"}
    assert set(small("protogcn", "coco", contrastive_weight=0.0).loss(x, labels)[1]) == {"ce"}


def test_contrast_is_added_with_its_weight():
    net = small("protogcn", "coco", contrastive_weight=0.3, dropout=0.0).eval()
    total, parts = net.loss(clips(net), torch.tensor([0, 4, 4]))
    torch.testing.assert_close(total.detach(), parts["ce"] + 0.3 * parts["contrast"])


def test_settings_of_streams():
    assert set(STREAM_DEFAULTS) == set(STREAMS)
    for settings in (*STREAM_DEFAULTS.values(), PAPER):
        assert set(settings) <= set(network_options("protogcn"))


def test_global_joint_weights_cover_large_layouts():
    names = [f"joint{v}" for v in range(30)]
    layout = {"layout": "chain", "joints": names, "parents": [-1, *range(29)]}
    net = small("protogcn", layout_from_dict(layout, "chain"))
    assert net.gcn[0].tcn.add_coeff.shape == (30,)
    assert small("protogcn", "coco").gcn[0].tcn.add_coeff.shape == (25,)
    assert net(clips(net)).shape == (3, CLASSES)


def test_all_blocks_start_from_one_draw():
    net = small("protogcn", "nturgb+d")
    first = net.gcn[0].gcn.A
    assert all(torch.equal(block.gcn.A, first) for block in net.gcn)
    assert abs(first.mean().item() - 0.04) < 0.002 and abs(first.std().item() - 0.02) < 0.002


def contrast_spelled_out(loss, graph, logits, labels):
    """The class-specific contrast sample by sample and class by class."""
    features = [loss.cl_fc(vector) for vector in graph]
    columns = []
    for k in range(loss.bank.shape[1]):
        chosen = [f for f, scores, y in zip(features, logits, labels, strict=True) if y == k and scores.argmax() == k]
        old = loss.bank[:, k].clone()
        columns.append(0.9 * old + 0.1 * sum(chosen) / len(chosen) if chosen else old)
    losses = []
    for f, y in zip(features, labels, strict=True):
        cosines = torch.stack([f @ b / (f.norm() * b.norm()) for b in columns])
        losses.append(F.cross_entropy(cosines[None] / 0.125, y[None]))
    return torch.stack(losses).mean(), torch.stack(columns, 1)


def test_contrast_equals_its_definition():
    torch.manual_seed(0)
    loss = ClassContrast(9, 4).double()
    graph, labels = torch.randn(6, 9).double(), torch.tensor([0, 0, 1, 1, 2, 2])
    logits = torch.eye(4).double()[[0, 0, 1, 3, 0, 1]]  # right: two of class 0, one of class 1, none of class 2
    expected, bank = contrast_spelled_out(loss, graph, logits, labels)
    expected_gradient = torch.autograd.grad(expected, loss.cl_fc.weight)[0]
    former = loss.bank.clone()
    value = loss(graph, logits, labels)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, loss.cl_fc.weight)[0], expected_gradient)
    torch.testing.assert_close(loss.bank, bank.detach())
    assert torch.equal(loss.bank[:, 2:], former[:, 2:]) and "bank" in loss.state_dict()
    loss.eval()(graph, logits, labels)
    torch.testing.assert_close(loss.bank, bank.detach())  # evaluation leaves the bank alone


# --- Batch norm --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_norm_with_channels_last_is_exact(dtype):
    torch.manual_seed(0)
    x = (3 + torch.randn(8, 6, 40, 17)).to(dtype).to(memory_format=torch.channels_last).requires_grad_()
    ours, plain = BatchNorm(6).to(dtype), torch.nn.BatchNorm2d(6).double()
    with torch.no_grad():
        ours.weight.uniform_(0.5, 2)
        plain.weight.copy_(ours.weight)
    exact = x.detach().double().contiguous().requires_grad_()
    weights = torch.randn(x.shape).double()
    y, expected = ours(x), plain(exact)
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    assert y.is_contiguous(memory_format=torch.channels_last) and ours.num_batches_tracked == 1
    tolerance = {"rtol": 1e-5, "atol": 2e-6} if dtype == torch.float32 else {"rtol": 1e-11, "atol": 1e-12}
    pairs = [(y, expected), (x.grad, exact.grad), (ours.bias.grad, plain.bias.grad)]
    pairs += [(ours.weight.grad, plain.weight.grad), (ours.running_mean, plain.running_mean)]
    pairs += [(ours.running_var, plain.running_var), (ours.eval()(x), plain.eval()(exact))]
    for ours_value, expected_value in pairs:
        torch.testing.assert_close(ours_value.double(), expected_value, **tolerance)


# --- Published complexity ----------------------------------------------------------------------------------

PUBLISHED = [
    # network, layout, classes, options, parameters, G multiply-accumulates
    ("stgcn", "nturgb+d", 60, {}, 3_098_832, 5.713),
    ("stgcn", "coco", 60, {}, 3_088_704, 3.822),
    ("stgcn", "nturgb+d", 120, {}, 3_114_252, 5.713),
    ("stgcnpp", "nturgb+d", 60, {}, 1_403_144, 2.957),
    ("stgcnpp", "coco", 60, {}, 1_393_016, 1.948),
    ("agcn", "nturgb+d", 60, {}, 3_469_520, 6.488),
    ("agcn", "coco", 60, {}, 3_459_344, 4.349),
    ("ctrgcn", "nturgb+d", 60, {}, 1_446_672, 2.996),
    ("ctrgcn", "coco", 60, {}, 1_436_496, 1.952),
    ("dgstgcn", "nturgb+d", 60, {}, 1_701_172, 2.538),
    ("dgstgcn", "coco", 60, {}, 1_674_244, 1.713),
    ("protogcn", "nturgb+d", 60, {}, 4_344_860, 7.481),
    ("protogcn", "nturgb+d", 60, {"num_prototypes": 100}, 4_114_460, 7.481),
    ("protogcn", "nturgb+d", 120, {}, 4_367_960, 7.481),
    ("protogcn", "nturgb+d", 120, {"num_prototypes": 100}, 4_137_560, 7.481),
    ("protogcn", "coco_new", 99, {}, 4_284_245, 5.974),
    ("protogcn", "coco_new", 99, {"num_prototypes": 100}, 4_053_845, 5.974),
    ("protogcn", "coco_new", 400, {}, 4_400_130, 5.974),
    ("protogcn", "coco_new", 400, {"num_prototypes": 100}, 4_169_730, 5.974),
    ("posec3d", "coco", 99, {}, 2_044_867, 20.605),
    ("posec3d", "coco", 60, {}, 2_024_860, 20.605),
    ("posec3d", "coco", 400, {"stage_blocks": (3, 4, 6)}, 3_208_560, 19.090),
]


@pytest.mark.parametrize(("name", "layout", "classes", "options", "parameters", "macs"), PUBLISHED)
def test_published_parameters_and_macs(name, layout, classes, options, parameters, macs):
    net = create_model(name, layout=layout, num_classes=classes, **options)
    found = complexity(net, usual_input(net))
    assert found.parameters == parameters
    assert round(found.published / 1e9, 3) == macs
    assert found.executed < found.published


@pytest.mark.parametrize(("classes", "parameters"), [(101, 3_055_173), (51, 3_029_523)])
def test_published_pose_on_small_heat_maps(classes, parameters):
    net = create_model("posec3d", layout="coco", num_classes=classes, stage_blocks=(3, 4, 6))
    found = complexity(net, usual_input(net, size=56))
    assert (found.parameters, round(found.published / 1e9, 3)) == (parameters, 14.615)


@pytest.mark.parametrize(("prototypes", "macs"), [(400, 7.766), (100, 7.622)])
def test_published_macs_with_the_prototype_branch(prototypes, macs):
    net = create_model("protogcn", layout="nturgb+d", num_classes=60, num_prototypes=prototypes)
    found = complexity(net, usual_input(net), with_loss=True)
    assert round(found.published / 1e9, 3) == macs
    # Of the published 7.481 G, projections of all frames are 1.9 G that the mean over frames saves.
    assert complexity(net, usual_input(net)).executed < 5.6e9


def test_layouts_give_their_joint_count():
    for layout in LAYOUTS:
        assert small("stgcn", layout).num_joints == load_layout(layout).num_joints
