"""UmURL against numbers recorded from the released code: views, modalities, network, loss, optimiser, evaluation.

A choice of cases is committed, with every eighth frame of the longer results; SIXSTREAM_GOLDEN adds all of them.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_report import close, same
from torch import Tensor

from model import create_model, load_reference, ntu
from model.layouts import load_layout
from model.nets.umurl import MODALITIES, UmURL, modality_tokens
from model.reference import to_original
from model.settings import TrainSettings, learning_rate
from model.umurl_loss import VARIANCE, variance_covariance
from model.umurl_probe import linear_classifier, linear_evaluation, retrieve
from model.umurl_views import ViewDraws, distort, pre_normalise, random_crop, resampling, whole_clip

NTU = load_layout("nturgb+d")


class Golden:
    """The cases of the golden folder, or those in the committed file."""

    def __init__(self, source: Path) -> None:
        self.folder = source if source.is_dir() else None
        self.files: dict[str, Any] = {}
        if self.folder:
            index = json.loads((source / "index.json").read_text())["cases"]
        else:
            self.files[""] = np.load(source)
            index = json.loads(str(self.files[""]["index"]))
        self.cases = {case["id"]: case for case in index if case["variant"] == "UmURL" or "umurl" in case["id"]}

    def array(self, case: str, key: str) -> np.ndarray:
        name = self.cases[case]["file"] if self.folder else ""
        if name not in self.files:
            assert self.folder
            self.files[name] = np.load(self.folder / name)
        return self.files[name][key]

    def tensors(self, case: str, kind: str) -> dict[str, Tensor]:
        return {name: torch.from_numpy(self.array(case, key)) for name, key in self.cases[case][kind].items()}

    def draws(self, case: str) -> list[tuple[str, np.ndarray]]:
        return [(call, self.array(case, key)) for _, call, key in self.cases[case]["draws"]]

    def check(self, case: str, name: str, found: Tensor) -> None:
        """`found` lies within the case's tolerance of the output `name`, of which the file may hold every 8th frame."""
        expected = self.tensors(case, "outputs")[name].double()
        if found.dim() == 4:
            found = found[:, :: found.shape[1] // expected.shape[1]]
        close(case, name, found, expected, **self.cases[case]["tol"])


@pytest.fixture(scope="module", params=["committed", pytest.param("all", marks=pytest.mark.golden)])
def golden(request: pytest.FixtureRequest, small_golden: Path) -> Golden:
    if request.param == "committed":
        return Golden(small_golden / "umurl.npz")
    return Golden(request.getfixturevalue("golden_dir") / "pipeline")


def need(golden: Golden, case: str) -> None:
    if case not in golden.cases:
        pytest.skip(f"{case} is not committed")


def cut(golden: Golden, index: int, start: Tensor, length: Tensor) -> Tensor:
    """64 frames (3, 64, 25, 2) of a part of the recorded clip `index`."""
    before, after, weight = resampling(start, length, 64)
    x = golden.tensors("umurl/data", "inputs")["data"][index]
    return torch.lerp(x[:, before[0]], x[:, after[0]], weight[0, None, :, None, None])


def frames_of(golden: Golden, index: int) -> Tensor:
    return golden.tensors("umurl/data", "inputs")["num_frame"][index : index + 1]


def whole(golden: Golden, index: int) -> Tensor:
    return cut(golden, index, *whole_clip(frames_of(golden, index)))


def recorded(calls: list[tuple[str, np.ndarray]], kind: str) -> ViewDraws:
    """Recorded draws of a view's distortion ("corrupt" or "shear") in our form."""
    joints = torch.ones(1, 25)
    numbers = [float(value) for call, value in calls if call == "py.uniform"]
    matrix, shear = torch.zeros(1, 3, 3, dtype=torch.float64), torch.zeros(1, 3, 3, dtype=torch.float64)
    zeroes = 1.0
    if kind == "corrupt":
        zeroes = float(calls[0][1])
        joints[0, calls[1][1]] = 0
        if numbers:
            matrix[0] = torch.tensor(numbers).view(3, 3)
    else:
        shear[0][~torch.eye(3, dtype=torch.bool)] = torch.tensor(numbers, dtype=torch.float64)
    corrupts = torch.tensor([0.0 if kind == "corrupt" else 1.0])
    nothing = torch.zeros(1, dtype=torch.float64)
    return ViewDraws(nothing, nothing, corrupts, torch.tensor([zeroes]), joints, matrix, shear)


def cropped(golden: Golden, index: int, scale: np.ndarray, start: np.ndarray) -> Tensor:
    draws = ViewDraws(torch.from_numpy(scale).view(1), torch.zeros(1), *[torch.zeros(1)] * 5)
    _, length = random_crop(frames_of(golden, index), draws, 64)
    return cut(golden, index, torch.from_numpy(np.asarray(start)).view(1), length)


def test_crops(golden: Golden) -> None:
    names = [name for name in golden.cases if name.startswith(("umurl/cropresize/", "umurl/center"))]
    assert len(names) >= (12 if golden.folder else 2)
    for name in names:
        index = golden.cases[name]["fields"]["index"]
        if "cropresize" in name:
            found = cropped(golden, index, *(value for _, value in golden.draws(name)))
        else:
            share = golden.cases[name]["fields"]["l_ratio"][0]
            found = cut(golden, index, *whole_clip(frames_of(golden, index), share))
        golden.check(name, "out", found)


def test_distortions(golden: Golden) -> None:
    names = [name for name in golden.cases if name.startswith(("umurl/corrupt/", "umurl/shear/"))]
    assert len(names) >= 2
    for name in names:
        draws = recorded(golden.draws(name), name.split("/")[1])
        golden.check(name, "out", distort(whole(golden, 0)[None], draws)[0])


def test_four_views_of_a_clip(golden: Golden) -> None:
    calls = golden.draws("umurl/pretrain_item/s10")
    starts = [i for i, (call, _) in enumerate(calls) if call == "np.rand"]
    assert len(starts) == 4
    for number, (first, end) in enumerate(zip(starts, [*starts[1:], len(calls)], strict=True), 1):
        (_, scale), (_, start), (_, choice) = calls[first : first + 3]
        kind = "corrupt" if choice < 0.5 else "shear"
        view = cropped(golden, 0, scale, start)
        found = distort(view[None], recorded(calls[first + 3 : end], kind))[0]
        golden.check("umurl/pretrain_item/s10", f"view{number}", found)


def test_downstream_tokens(golden: Golden) -> None:
    names = [name for name in golden.cases if name.startswith("umurl/downstream_item/")]
    assert names
    for name in names:
        x = whole(golden, golden.cases[name]["fields"]["index"])[None]
        for modality in MODALITIES:
            tokens = modality_tokens(x, modality, NTU.bones)
            for axis, found in zip("ts", tokens, strict=True):
                if f"{modality[0]}{axis}" in golden.cases[name]["outputs"]:
                    golden.check(name, f"{modality[0]}{axis}", found[0])


def test_gendata(golden: Golden) -> None:
    need(golden, "umurl_gendata/xsub/train")
    assert golden.folder
    for part in ("train", "val"):
        case = f"umurl_gendata/xsub/{part}"
        names = [str(name).removesuffix(".skeleton") for name in golden.array(case, f"{case}/out/name")]
        raw = [ntu.read_skeleton(golden.folder / "raw_skeleton" / f"{name}.skeleton") for name in names]
        x = torch.zeros(len(names), 2, 300, 25, 3)
        for i, clip in enumerate(raw):
            joints = torch.from_numpy(ntu.convert_umurl(clip)).permute(3, 1, 2, 0)
            x[i, :, : joints.shape[1]] = joints
            assert joints.shape[1] == golden.array(case, f"{case}/out/num_frame")[i]
            assert ntu.parse_name(names[i])["action"] - 1 == golden.array(case, f"{case}/out/label")[i]
        found = pre_normalise(x, NTU).permute(0, 4, 2, 3, 1).double()
        close(case, "joint", found[:, :, :60], golden.array(case, f"{case}/out/joint"), atol=2e-5, rtol=1e-4)
        sums = torch.stack([found.sum((1, 2, 3, 4)), found.square().sum((1, 2, 3, 4))])
        # Sums over 45,000 numbers, each within 2e-5.
        close(case, "sums", sums, golden.array(case, f"{case}/out/joint_checksum"), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("benchmark", ["xsub", "xview", "xsetup"])
def test_gendata_chooses_the_clips_of_a_split(golden: Golden, benchmark: str) -> None:
    need(golden, f"umurl_gendata/{benchmark}/train")
    for part in ("train", "val"):
        case = f"umurl_gendata/{benchmark}/{part}"
        fields = golden.cases[case]["fields"]
        actions = 120 if benchmark == "xsetup" else 60
        names = [name for name in fields["files"] if name not in fields["missing"]]
        # The original takes actions above 60 into NTU60 where it finds them.
        names = [name for name in names if ntu.parse_name(name)["action"] <= actions]
        splits = ntu.ntu_splits(names, actions)
        found = splits[f"{benchmark.removesuffix('up')}_{part.replace('val', 'test')}"]
        wanted = [str(name).removesuffix(".skeleton") for name in golden.array(case, f"{case}/out/name")]
        same(
            case,
            "clips",
            [names.index(name) for name in found],
            [names.index(name) for name in wanted if name in names],
        )


def released(golden: Golden) -> tuple[Any, Tensor]:
    """The recorded network and its four views (N, 4, C, T, V, M)."""
    state = golden.tensors("umurl/state", "inputs")
    config = {"type": "UmURL", **golden.cases["umurl/state"]["fields"]}
    net = load_reference({f"module.{name}": value for name, value in state.items()}, config)
    assert net.load_report == {"missing": [], "unused": [], "shape": []}
    back = to_original(net, net.state_dict())
    assert set(back) == set(state) and all(torch.equal(back[name], value) for name, value in state.items())
    return net, torch.stack(list(golden.tensors("umurl/views", "inputs").values()), 1)


@torch.no_grad()
def test_network(golden: Golden) -> None:
    need(golden, "umurl/state")
    net, views = released(golden)
    for modality in MODALITIES:
        for name, tokens in zip(("xt", "xs"), modality_tokens(views[:2, 0], modality, NTU.bones), strict=True):
            golden.check(f"umurl/modality/{modality}", name, tokens)
    for number, letter in enumerate("jbm"):
        for axis, found in zip("ts", net.backbone.embed(views[:1, number])[number], strict=True):
            golden.check("umurl/embed", f"{letter}{axis}", found)
    for name, found in zip(("y_j", "y_b", "y_m", "y_u"), net.backbone.single_and_fused(views.unbind(1)), strict=True):
        golden.check("umurl/encoder_eval", name, found)
    golden.check("umurl/encoder_eval", "y_u", net(views[:, 3]))
    own, parts = net.project(views)
    for letter, z, zu in zip("jbm", own, parts, strict=True):
        golden.check("umurl/project_eval", f"z_{letter}", z[:, :512])
        golden.check("umurl/project_eval", f"z_u{letter}", zu[:, :512])


def test_loss_and_gradients(golden: Golden) -> None:
    need(golden, "umurl/loss_train")
    case = golden.cases["umurl/loss_train"]
    expected = case["out_fields"]

    def check(what: str, found: Any, wanted: float) -> None:
        close("umurl/loss_train", what, found, wanted, **case["tol"])

    net, views = released(golden)
    total, parts = net.train().loss(views, torch.zeros(8))
    total.backward()
    check("total", total, expected["total"])
    check("intra", parts["intra"], sum(expected["intra"]))
    check("inter", parts["inter"], sum(expected["inter"]))
    check("reg", VARIANCE * parts["variance"] + parts["covariance"], sum(expected["reg"]))
    for name, norm in expected["grad_norm"].items():
        gradient = net.get_parameter(name).grad
        check(f"norm of {name}", gradient.norm(), norm)
        if f"grad/{name}" in case["outputs"]:
            golden.check("umurl/loss_train", f"grad/{name}", gradient)
    buffers = dict(net.named_buffers())
    for name, figure in expected["bn_running"].items():
        check(name, buffers[name].abs().sum(), figure)
    net, _ = released(golden)
    own, fused = net.train().project(views)
    width = golden.tensors("umurl/loss_train", "outputs")["z_j"].shape[1]
    golden.check("umurl/loss_train", "z_j", own[0][:, :width])
    golden.check("umurl/loss_train", "z_um", fused[2][:, :width])


def test_optimiser_steps(golden: Golden) -> None:
    need(golden, "umurl/adam_steps")
    fields = golden.cases["umurl/adam_steps"]["fields"]
    net, views = released(golden)
    optimiser = torch.optim.Adam(net.train().parameters(), lr=fields["lr"], weight_decay=fields["weight_decay"])
    losses = []
    for _ in golden.cases["umurl/adam_steps"]["out_fields"]["loss_before_each_step"]:
        optimiser.zero_grad()
        total, _ = net.loss(views, torch.zeros(8))
        total.backward()
        optimiser.step()
        losses.append(total.item())
    expected = golden.cases["umurl/adam_steps"]["out_fields"]["loss_before_each_step"]
    close("umurl/adam_steps", "losses", losses, expected, **golden.cases["umurl/adam_steps"]["tol"])
    for name in golden.cases["umurl/adam_steps"]["outputs"]:
        # A bias in front of a batch norm has no gradient but rounding, which Adam makes steps of full size.
        if name != "b_projector.0.bias":
            golden.check("umurl/adam_steps", name, net.get_parameter(name))


def test_variance_and_covariance(golden: Golden) -> None:
    names = [name for name in golden.cases if name.startswith("umurl/vc_reg/")]
    assert names
    for name in names:
        spread, together = variance_covariance(golden.tensors(name, "inputs")["z"])
        expected = golden.cases[name]["out_fields"]
        found = [spread, together, VARIANCE * spread + together]
        for what, value in zip(("std_term", "cov_term", "vc_reg"), found, strict=True):
            close(name, what, value, expected[what], **golden.cases[name]["tol"])


def test_schedule(golden: Golden) -> None:
    released_script = TrainSettings(451, 512, 5e-4, 0, schedule="step", milestones=(351,))
    defaults = TrainSettings(451, 512, 1e-3, 0, schedule="step", milestones=(100, 160))
    for epoch, *rates in golden.cases["umurl/schedule"]["out_fields"]["rows"]:
        found = [learning_rate(settings, epoch * 78, 78) for settings in (released_script, defaults)]
        close("umurl/schedule", f"epoch {epoch}", found, rates, rtol=1e-9, atol=0)


def test_linear_evaluation(golden: Golden) -> None:
    case = golden.cases["umurl/linear_eval"]
    fields, given = case["fields"], golden.tensors("umurl/linear_eval", "inputs")
    settings = TrainSettings(
        fields["epochs"], fields["batch"], fields["lr"], 0,
        nesterov=False, weight_decay=0, schedule="step", milestones=tuple(fields["drops"]),
    )  # fmt: skip
    layer = linear_classifier(given["train_x"].shape[1], len(given["fc_weight0"]), seed=0)
    with torch.no_grad():
        layer.weight.copy_(given["fc_weight0"])
    train, test = (given["train_x"], given["train_y"]), (given["test_x"], given["test_y"])
    probe = linear_evaluation(layer, train, test, settings, shuffle=False)
    golden.check("umurl/linear_eval", "fc_weight", layer.weight)
    golden.check("umurl/linear_eval", "fc_bias", layer.bias)
    found = [value for look in probe.history for value in (look["lr"], 100 * look["top1"])]
    expected = [value for row in case["out_fields"]["lr_and_top1"] for value in row]
    close("umurl/linear_eval", "rates and top-1", found, expected, rtol=1e-6, atol=0)
    assert probe.best_epoch == 4  # the first of those with the highest top-1


@pytest.mark.parametrize("name", ["umurl/knn1", "umurl/knn9"])
def test_retrieval(golden: Golden, name: str) -> None:
    given, expected = golden.tensors("umurl/linear_eval", "inputs"), golden.tensors(name, "outputs")
    found, near = retrieve(given["train_x"], given["train_y"], given["test_x"], golden.cases[name]["fields"]["k"])
    same(name, "pred", found, expected["pred"])
    same(name, "nearest", near, expected["nearest"])
    right = (found == given["test_y"]).double().mean()
    same(name, "accuracy", right, golden.cases[name]["out_fields"]["accuracy"])


@torch.no_grad()
def test_downstream(golden: Golden) -> None:
    need(golden, "umurl/downstream_forward")
    state = golden.tensors("umurl/state", "inputs")
    state["fc.weight"] = golden.tensors("umurl/downstream_forward", "inputs")["fc_weight"]
    state["fc.bias"] = torch.zeros(len(state["fc.weight"]))
    net = load_reference(state, {"type": "UmURL", **golden.cases["umurl/state"]["fields"]})
    assert net.load_report["missing"] == [] and net.head == "classifier"
    features = net(torch.stack([whole(golden, index) for index in range(3)]))
    golden.check("umurl/downstream_forward", "feature", features)
    golden.check("umurl/downstream_forward", "logits", net.fc(features))


@torch.no_grad()
def test_full_size(golden: Golden) -> None:
    """The released size with weights from a formula."""
    fields = golden.cases["umurl/full_size"]["fields"]
    net = create_model("umurl", layout=NTU, num_classes=60, head="classifier")
    state = net.state_dict()
    if "shapes" in fields:
        assert {name: list(value.shape) for name, value in state.items()} == fields["shapes"]
    for number, (name, value) in enumerate(state.items()):
        if name.endswith("pe.pe"):
            continue
        flat = np.arange(value.numel(), dtype=np.float64)
        v = torch.from_numpy(np.sin(0.37 * flat + 1.3 * number + fields["phase"])).view(value.shape)
        if value.dim() == 2:
            v = v * np.sqrt(3 / value.shape[1])
        elif any(part in name for part in ("norm", ".1.", ".4.")):
            v = 1 + 0.1 * v if name.endswith("weight") else 0.1 * v
        else:
            v = 0.05 * v
        value.copy_(v)
        if name in fields["checks"]:
            close("umurl/full_size", f"sum of {name}", value.double().sum(), fields["checks"][name][0], atol=1e-4)
    clips = len(golden.tensors("umurl/full_size", "outputs")["feature"])
    features = net.eval()(torch.stack([whole(golden, index) for index in range(clips)]))
    golden.check("umurl/full_size", "feature", features)
    golden.check("umurl/full_size", "logits", net.fc(features))


def test_parameters_and_names_of_the_released_networks(golden: Golden) -> None:
    def count(net: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in net.parameters())

    with torch.device("meta"):
        net: Any = create_model("umurl", layout=NTU, num_classes=60)
        downstream = UmURL(NTU, 60, head="classifier")
    assert (count(net), count(net.backbone), count(downstream)) == (72_448_000, 22_067_200, 22_190_140)
    names = golden.cases["umurl/full_names"]["out_fields"]["shapes"]
    assert {f"module.{name}": list(value.shape) for name, value in net.state_dict().items()} == names
