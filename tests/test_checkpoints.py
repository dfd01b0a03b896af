"""Original checkpoints in and out: every network, golden state dicts, what does not fit, the registry."""

import collections
import itertools
import pprint
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_report import at_most
from small_nets import clips, small
from test_golden_nets import EVAL, read_case
from test_reference import CONFIGS

from components.bundle import read_bundle
from components.checkpoints import class_names, export_checkpoint, import_checkpoint
from components.predict import predict
from components.tracking import connect
from components.weights import bundle_folder
from model import ntu
from model.checkpoint import build_network, load_checkpoint
from model.errors import UserError
from model.layouts import load_layout
from model.reference import to_original
from pipeline.cli import main


@pytest.fixture(autouse=True)
def place(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with an empty tracking database."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(database, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(config: dict[str, Any], name: str = "config.py", more: str = "") -> Path:
    path = Path(name)
    path.write_text(f"model = {pprint.pformat(config)}\n{more}")
    return path


def saved(name: str, classifier: str = "fc_cls", prefix: str = "", **around: Any) -> tuple[Any, Path]:
    """A small network and a file of its weights as the originals save it."""
    net = small(name, "coco").eval()
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 1.0)
    state = {prefix + key: value for key, value in to_original(net, net.state_dict(), classifier).items()}
    torch.save({"state_dict": collections.OrderedDict(state), **around} if around else state, f"{name}.pth")
    return net, Path(f"{name}.pth")


STYLES = itertools.cycle([("fc", ""), ("fc_cls", "module."), ("fc_cls", "")])


@pytest.mark.parametrize(("name", "classifier", "prefix"), [(n, *s) for n, s in zip(CONFIGS, STYLES, strict=False)])
def test_there_and_back_is_the_identity(name: str, classifier: str, prefix: str) -> None:
    net, file = saved(name, classifier, prefix, meta={"epoch": 24})
    layout = "" if "backbone" in CONFIGS[name] else "coco"  # UmURL's configuration names none
    found = import_checkpoint(file, config=written(CONFIGS[name]), layout=layout)
    assert found["placeholders"] == found["not_loaded"] == []
    content = load_checkpoint(found["checkpoint"])
    assert content["epoch"] == 24 and content["model"] == name and content["num_classes"] == 5
    x = clips(net)
    with torch.no_grad():
        assert torch.equal(build_network(content)(x), net(x))
    export_checkpoint(found["uri"], Path("back.pth"))
    before, after = (torch.load(path, weights_only=True)["state_dict"] for path in (file, "back.pth"))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", EVAL)
def test_golden_state_dicts_come_back(golden_dir: Path, name: str) -> None:
    case = read_case(golden_dir, name)
    torch.save({"state_dict": case["state_dict"], "meta": {}}, "original.pth")
    found = import_checkpoint(Path("original.pth"), config=written(case["config"]), out=Path("ours.pt"))
    with torch.no_grad():
        logits = build_network(load_checkpoint(found["checkpoint"]))(case["input"])
    error = (logits - case["logits"]).abs().max().item()
    at_most(name, "logits after import", error, case["extras"]["tolerance"]["fp32_logits_maxabs"])
    export_checkpoint("ours.pt", Path("back.pth"))
    after = torch.load("back.pth", weights_only=True)["state_dict"]
    assert after.keys() == case["state_dict"].keys()
    assert all(torch.equal(after[key], value) for key, value in case["state_dict"].items())


def test_without_a_configuration_the_network_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    _, file = saved("stgcnpp")
    small_options = ["base_channels=12", "num_stages=3", "inflate_stages=[2]", "down_stages=[3]"]
    arguments = ["--model", "stgcnpp", "--layout", "coco", "--classes", "5", "--options", *small_options]
    assert main(["checkpoint", "import", str(file), *arguments, "--stream", "bone", "--name", "mine"]) == 0
    shown = capsys.readouterr().out
    assert "stgcnpp.pth → weights/mine.pt: stgcnpp, coco, 5 classes" in shown and "models:/mine/1" in shown
    content = load_checkpoint("weights/mine.pt")
    assert content["recipe"]["stream"] == "bone" and content["classes"] == [f"class {k}" for k in range(5)]
    assert main(["checkpoint", "export", "weights/mine.pt", "out.pth", "--classifier", "fc"]) == 0
    assert "cls_head.fc.weight" in torch.load("out.pth", weights_only=True)["state_dict"]


def test_unknown_classes_are_listed_and_not_imported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = types.ModuleType("mmengine_like")
    package.HistoryBuffer = type("HistoryBuffer", (), {"__module__": "mmengine_like"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mmengine_like", package)
    hub = {"log_scalars": {"train/loss": package.HistoryBuffer()}}
    _, file = saved("agcn", "fc", meta={"epoch": 3, "dataset_meta": {"classes": list("abcde")}}, message_hub=hub)
    monkeypatch.delitem(sys.modules, "mmengine_like")
    found = import_checkpoint(file, config=written(CONFIGS["agcn"]))
    assert found["placeholders"] == ["mmengine_like.HistoryBuffer"] and "mmengine_like" not in sys.modules
    assert "not imported, inert placeholders: mmengine_like.HistoryBuffer" in capsys.readouterr().out
    assert load_checkpoint(found["checkpoint"])["classes"] == list("abcde")


def test_what_does_not_fit_is_listed_and_refused() -> None:
    net, _ = saved("stgcnpp")
    state = to_original(net, net.state_dict())
    del state["backbone.gcn.1.tcn.branches.2.0.bias"]
    state["backbone.extra"] = torch.zeros(1)
    state["cls_head.fc_cls.weight"] = torch.zeros(7, 24)
    torch.save(state, "bad.pth")
    config = written(CONFIGS["stgcnpp"])
    with pytest.raises(UserError) as error:
        import_checkpoint(Path("bad.pth"), config=config)
    for words in (
        "bad.pth: does not fit",
        "1 tensors missing in the file: backbone.gcn.1.tcn.branches.2.0.bias",
        "1 tensors left over: backbone.extra",
        "1 tensors of another shape: cls_head.fc_cls.weight (5, 24) here",
        "--new-head",
    ):
        assert words in str(error.value)
    with pytest.raises(UserError, match="backbone.extra") as error:  # a new head excuses the head alone
        import_checkpoint(Path("bad.pth"), config=config, new_head=True)
    assert "cls_head" not in str(error.value)
    assert not Path("weights").exists()


@pytest.mark.parametrize("name", ["ctrgcn", "protogcn"])
def test_a_new_head_says_what_was_not_loaded(name: str) -> None:
    net, file = saved(name)
    found = import_checkpoint(file, config=written(CONFIGS[name]), classes=3, new_head=True)
    replaced = [f"cls_head.fc_cls.{part}: replaced by a new head" for part in ("weight", "bias")]
    assert sorted(found["not_loaded"]) == sorted(replaced)
    copy = build_network(load_checkpoint(found["checkpoint"]))
    assert copy.fc.out_features == 3
    x = clips(net)
    with torch.no_grad():
        assert torch.equal(copy.features(x), net.features(x))
    again = import_checkpoint(file, config=written(CONFIGS[name]), classes=3, new_head=True, out=Path("again.pt"))
    other = build_network(load_checkpoint(again["checkpoint"]))
    assert torch.equal(copy.fc.weight, other.fc.weight)  # a new head is the same every time


def test_registry_tells_where_it_came_from() -> None:
    _, file = saved("stgcn", meta={"epoch": 7})
    config = written(CONFIGS["stgcn"])
    uris = [import_checkpoint(file, config=config, name="zoo-stgcn")["uri"] for _ in range(2)]
    assert uris == ["models:/zoo-stgcn/1"] * 2  # the same content is registered once
    version = connect(Path.cwd()).client.get_model_version("zoo-stgcn", "1")
    assert version.tags["origin.file"] == "stgcn.pth" and version.tags["origin.config"] == "config.py"
    assert len(version.tags["origin.md5"]) == 32


PIPELINE_3D = """
test_pipeline = [
    dict(type='PreNormalize3D', align_spine=False),
    dict(type='GenSkeFeat', feats=['bm']),
    dict(type='UniformSampleDecode', clip_len=64, num_clips=5),
    dict(type='FormatGCNInput', num_person=1),
    dict(type='Collect', keys=['keypoint', 'label'], meta_keys=[]),
    dict(type='ToTensor', keys=['keypoint'])]
"""
PIPELINE_MAPS = """
test_pipeline = [
    dict(type='UniformSampleFrames', clip_len=48, num_clips=10),
    dict(type='PoseDecode'),
    dict(type='PoseCompact', hw_ratio=1., allow_imgpad=True),
    dict(type='Resize', scale=(-1, 56)),
    dict(type='CenterCrop', crop_size=56),
    dict(type='GeneratePoseTarget', sigma=0.7, use_score=True, with_kp=False, with_limb=True, double=True,
         left_limb=(0, 2), right_limb=(1, 4)),
    dict(type='FormatShape', input_format='NCTHW_Heatmap'),
    dict(type='PackActionInputs')]
"""
PIPELINE_2D = """
default_scope = 'mmaction'
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='UniformSampleFrames', clip_len=100, num_clips=10),
    dict(type='PreNormalize2D'),
    dict(type='PoseDecode'),
    dict(type='Strange'),
    dict(type='Kinetics_Transform'),
    dict(type='GenSkeFeat', dataset='coco_new', feats=['k']),
    dict(type='FormatGCNInput', num_person=2),
    dict(type='PackActionInputs')]))
"""


def test_the_test_pipeline_becomes_recipe_and_preparation(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, file = saved("protogcn")
    found = import_checkpoint(file, config=written(CONFIGS["protogcn"], more=PIPELINE_3D))
    recipe = load_checkpoint(found["checkpoint"])["recipe"]
    assert recipe == {
        "stream": "bone_motion",
        "clip_length": 64,
        "test_clips": 5,
        "sampler": "protogcn",
        "difference": "before",
        "persons": 1,
        "finish": None,
        "normalise_2d": None,
        "augment": [],
    }
    bundle = read_bundle(bundle_folder(found["uri"], place / "first"))
    assert bundle["channels"] == ["x", "y", "z"] and bundle["persons"] == 1
    assert bundle["preparation"]["prepare"] == [{"name": "normalise_3d", "align_spine": False, "align_shoulder": False}]
    _, file = saved("stgcnpp")
    found = import_checkpoint(file, config=written(CONFIGS["stgcnpp"], more=PIPELINE_2D))
    assert read_bundle(bundle_folder(found["uri"], place / "second"))["channels"] == ["x", "y", "score"]
    recipe = load_checkpoint(found["checkpoint"])["recipe"]
    assert [recipe[k] for k in ("stream", "sampler", "difference")] == ["kbone", "mmaction2", "after"]
    assert recipe["finish"] == "coco_new" and recipe["normalise_2d"] == "mmaction2"
    assert "note: Strange of the test pipeline is not carried over" in capsys.readouterr().out


def test_heat_maps_become_a_recipe_that_predicts() -> None:
    _, file = saved("posec3d")
    square = PIPELINE_MAPS.replace("(-1, 56)", "(64, 64), keep_ratio=False")
    square = square.replace("with_kp=False, with_limb=True, double=True,", "")
    square = "".join(line for line in square.splitlines(True) if "CenterCrop" not in line)
    for more, stream, size, crop, double in (
        (PIPELINE_MAPS, "limb", 56, True, True),
        (square, "keypoint", 64, False, False),
    ):
        found = import_checkpoint(file, config=written(CONFIGS["posec3d"], more=more), name=stream)
        recipe = load_checkpoint(found["checkpoint"])["recipe"]
        assert (recipe["stream"], recipe["clip_length"], recipe["test_clips"]) == (stream, 48, 10)
        maps = recipe["heatmap"]
        assert (maps["test_size"], maps["test_crop"], maps["double"], maps["sigma"]) == (size, crop, double, 0.7)
    joints = np.random.default_rng(0).random((1, 30, 17, 3), np.float32) * [300, 200, 1]
    np.savez("clip.npz", joints=joints.astype(np.float32), image_size=[240, 320])
    assert sum(predict(found["uri"], [Path("clip.npz")])[0]["scores"]) == pytest.approx(1, abs=1e-5)


def test_an_imported_model_predicts_from_raw_joints() -> None:
    _, file = saved("stgcnpp")
    uri = import_checkpoint(file, config=written(CONFIGS["stgcnpp"]))["uri"]
    np.save("clip.npy", np.random.default_rng(0).random((1, 30, 17, 3), np.float32))
    answers = predict(uri, [Path("clip.npy")])
    assert answers[0]["class"].startswith("class ") and sum(answers[0]["scores"]) == pytest.approx(1, abs=1e-5)


def test_names_of_ntu_are_known() -> None:
    assert class_names({}, 60, load_layout("nturgb+d")) == list(ntu.action_names()[:60])
    assert class_names({"meta": {"CLASSES": ("a", "a")}}, 2, load_layout("coco")) == ["class 0", "class 1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gone.pth", "--config", "config.py"], "gone.pth: cannot be read"),
        (["ctrgcn.pth"], "--config, or with --model, --layout and --classes"),
        (["ctrgcn.pth", "--config", "config.py", "--model", "ctrgcn"], "leave --model"),
        (["ctrgcn.pth", "--config", "empty.py"], "empty.py: assigns no dictionary `model`"),
        (["ctrgcn.pth", "--config", "code.py"], "code.py, line 1"),
        (["ctrgcn.pth", "--config", "config.py", "--layout", "nturgb+d"], "does not fit the network"),
        (["list.pth", "--config", "config.py"], "list.pth: holds no state dict"),
        (["values.pth", "--config", "config.py"], "values.pth: 'a' in its state dict is 1"),
    ],
)
def test_mistakes_are_named(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    saved("ctrgcn")
    written(CONFIGS["ctrgcn"])
    written({}, "empty.py")
    Path("empty.py").write_text("models = dict()")
    Path("code.py").write_text("import os")
    torch.save([1], "list.pth")
    torch.save({"a": 1}, "values.pth")
    assert main(["checkpoint-import", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_exports_that_cannot_be_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "export", "gone.pt", "out.pth"]) == 2
    assert "gone.pt: no such checkpoint" in capsys.readouterr().err
    assert main(["checkpoint", "export", "gone.pt", "out.pth", "--classifier", "head"]) == 2
    assert "--classifier head" in capsys.readouterr().err
