"""Original checkpoints without the originals: names, spellings of options, refusals."""

import pytest
import torch
from small_nets import small

from model import load_reference
from model.errors import UserError
from model.nets import NETWORKS
from model.reference import load_original, model_options, to_original


def graph_config(kind, mode="spatial", *, head=None, **backbone):
    """An original model dictionary for the 17 joints of COCO."""
    graph = {"layout": "coco", "mode": mode, **({"num_filter": 8} if mode == "random" else {})}
    return {
        "type": "RecognizerGCN",
        "backbone": {
            "type": kind,
            "graph_cfg": graph,
            "base_channels": 12,
            "num_stages": 3,
            "inflate_stages": [2],
            "down_stages": [3],
            **backbone,
        },
        "cls_head": {"type": "GCNHead", "num_classes": 5, "in_channels": 24, **(head or {})},
    }


PLUS_PLUS = {"gcn_adaptive": "init", "gcn_with_res": True, "tcn_type": "mstcn"}
CONFIGS = {
    "stgcn": graph_config("STGCN", "stgcn_spatial"),
    "stgcnpp": graph_config("STGCN", **PLUS_PLUS),
    "agcn": graph_config("AAGCN", gcn_attention=False),
    "ctrgcn": graph_config("CTRGCN"),
    "dgstgcn": graph_config("DGSTGCN", "random", gcn_ratio=0.125, gcn_ctr="T", gcn_ada="T"),
    "protogcn": graph_config("ProtoGCN", "random", num_prototype=400, head={"type": "SimpleHead", "weight": 0.2}),
    "posec3d": {
        "type": "Recognizer3D",
        "backbone": {
            "type": "ResNet3dSlowOnly",
            "in_channels": 17,
            "base_channels": 4,
            "num_stages": 3,
            "out_indices": (2,),
            "stage_blocks": (1, 1, 1),
            "conv1_stride": (1, 1),
            "pool1_stride": (1, 1),
            "inflate": (0, 1, 1),
            "spatial_strides": (2, 2, 2),
            "temporal_strides": (1, 1, 2),
        },
        "cls_head": {"type": "I3DHead", "in_channels": 64, "num_classes": 5, "dropout": 0.5},
        "test_cfg": {"average_clips": "prob"},
    },
    "umurl": {"type": "UmURL", "t_input_size": 2 * 17 * 3, "s_input_size": 11 * 3, "hidden_size": 8},
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("classifier", ["fc", "fc_cls"])
def test_export_and_import_are_inverse(name, classifier):
    net = small(name, "coco")
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_()
    state = to_original(net, net.state_dict(), classifier)
    heads = ("fc.",) if name == "umurl" else (f"cls_head.{classifier}.", "cls_head.csc_loss.")
    assert all(key.startswith(("backbone.", *heads)) for key in state)
    layout = "coco" if name == "umurl" else None  # the others' configurations name it
    copy = load_reference({f"module.{key}": value for key, value in state.items()}, CONFIGS[name], layout)
    assert copy.load_report == {"missing": [], "unused": [], "shape": []} and not copy.training
    for key, value in net.state_dict().items():
        if key != "contrast.bank":  # the originals never save it
            assert torch.equal(copy.state_dict()[key], value), key


def test_report_lists_what_did_not_fit():
    net = small("stgcnpp", "coco")
    state = to_original(net, net.state_dict())
    state["cls_head.fc_cls.weight"] = torch.zeros(7, 24)
    state["backbone.extra"] = torch.zeros(1)
    del state["backbone.gcn.1.tcn.branches.2.0.bias"]
    before = net.fc.weight.clone()
    report = load_original(net, state)
    assert report == {
        "missing": ["backbone.gcn.1.tcn.branches.2.0.bias"],
        "unused": ["backbone.extra"],
        "shape": ["cls_head.fc_cls.weight"],
    }
    assert torch.equal(net.fc.weight, before)


def test_both_spellings_of_slow_only():
    pyskl = CONFIGS["posec3d"]
    backbone = {k: v for k, v in pyskl["backbone"].items() if k not in ("conv1_stride", "pool1_stride")}
    mmaction = {
        "type": "Recognizer3D",
        "backbone": {
            **backbone,
            "depth": 50,
            "pretrained": None,
            "conv1_stride_s": 1,
            "pool1_stride_s": 1,
            "dilations": (1, 1, 1),
        },
        "cls_head": {
            "type": "I3DHead",
            "in_channels": 64,
            "num_classes": 5,
            "spatial_type": "avg",
            "dropout_ratio": 0.5,
            "average_clips": "prob",
        },
    }
    assert model_options(mmaction) == model_options(pyskl)


def test_options_are_translated():
    options = model_options(graph_config("STGCN", "spatial", tcn_dropout=0.5, num_person=1, **PLUS_PLUS))
    assert (options["name"], options["temporal_dropout"], options["persons"]) == ("stgcnpp", 0.5, 1)
    assert options["inflate_stages"] == (2,) and options["layout"].name == "coco"
    assert not options["norm_per_person"]
    assert model_options(CONFIGS["agcn"])["norm_per_person"]
    assert model_options(CONFIGS["agcn"], "penn13")["layout"].num_joints == 13
    random = graph_config("DGSTGCN", "random", gcn_ratio=0.125)
    random["backbone"]["graph_cfg"].update(num_filter=4, init_off=0.1, init_std=0.2)
    options = model_options(random)
    assert [options[k] for k in ("num_subsets", "init_off", "init_std", "subset_ratio")] == [4, 0.1, 0.2, 0.125]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (graph_config("STGCN", gcn_adaptive="offset"), "gcn_adaptive = 'offset'"),
        (graph_config("STGCN", tcn_type="other"), "tcn_type = 'other'"),
        (graph_config("STGCN", tcn_dropout=(0, 0.5, 0.5)), "tcn_dropout"),
        (graph_config("STGCN", data_bn_type="none"), "data_bn_type = 'none'"),
        (graph_config("STGCN", shiny=1), "'shiny'"),
        (graph_config("AAGCN"), "gcn_attention = True"),
        (graph_config("DGSTGCN", "random", gcn_ratio=0.125, gcn_ctr="NA"), "gcn_ctr = 'NA'"),
        (graph_config("DGSTGCN", "random"), "gcn_ratio is missing"),
        (graph_config("ProtoGCN", "random"), "num_prototype is missing"),
        (graph_config("MSG3D"), "'MSG3D'.*ProtoGCN"),
        (graph_config("STGCN", head={"loss_scale": 3}), "'loss_scale'"),
        (graph_config("STGCN", head={"in_channels": 99}), "in_channels = 99.*24"),
        (
            graph_config("ProtoGCN", "random", num_prototype=9, head={"joint_cfg": "nturgb+d"}),
            "joint_cfg = 'nturgb\\+d'",
        ),
        ({"type": "RecognizerGCN", "backbone": {"type": "STGCN"}}, "cls_head is missing"),
        ({**CONFIGS["posec3d"], "neck": {}}, "'neck'"),
    ],
)
def test_what_we_do_not_have_is_refused_by_name(config, message):
    with pytest.raises(UserError, match=message):
        load_reference({}, config)


def test_files(tmp_path):
    net = small("ctrgcn", "coco")
    state = to_original(net, net.state_dict())
    torch.save({"meta": {"epoch": 3}, "state_dict": state}, tmp_path / "whole.pth")
    torch.save(state, tmp_path / "bare.pth")
    x = torch.randn(1, 2, 8, 17, 3)
    for file in ("whole.pth", "bare.pth"):
        torch.testing.assert_close(load_reference(tmp_path / file, CONFIGS["ctrgcn"])(x), net.eval()(x))
    (tmp_path / "broken.pth").write_bytes(b"PK\x03\x04 not a checkpoint")
    torch.save([1, 2], tmp_path / "list.pth")
    for file, message in (("broken.pth", "broken.pth.*plain tensors"), ("list.pth", "list.pth.*no state dict")):
        with pytest.raises(UserError, match=message):
            load_reference(tmp_path / file, CONFIGS["ctrgcn"])
    with pytest.raises(UserError, match="nowhere.pth"):
        load_reference(tmp_path / "nowhere.pth", CONFIGS["ctrgcn"])


def test_sizes_of_umurl_that_do_not_fit_are_named():
    state = {"backbone.mm_fusion.t_fusion.0.weight": torch.zeros(8, 8)}
    with pytest.raises(UserError, match="25 joints of layout 'nturgb"):
        load_reference(state, CONFIGS["umurl"])
    with pytest.raises(UserError, match="'dropout' is not supported"):
        load_reference(state, {**CONFIGS["umurl"], "dropout": 0.1}, "coco")
    with pytest.raises(UserError, match="model.hidden_size is missing"):
        load_reference(state, {"type": "UmURL", "t_input_size": 150, "s_input_size": 192})
    report = load_reference(state, CONFIGS["umurl"], "coco").load_report
    assert "j_projector.0.weight" in report["missing"] and report["unused"] == []
