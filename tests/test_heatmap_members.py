"""Key-point and limb members of posec3d through the components: packed, trained, scored, fused and served."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, find_chromium
from matplotlib.image import imread
from small_run import annotations, small_params, write_params, write_raw

from components.files import read_json
from components.params import load_params, parse_params
from components.predict import predict
from components.tracked import member_bundle
from components.volumes import heatmap_volumes
from model.checkpoint import build_network, load_checkpoint
from model.complexity import complexity
from model.errors import UserError
from model.feeding import validation_clips
from model.scoretable import load_table
from model.store import open_store
from pipeline.cli import main

RECIPE = {
    "clip_length": 8,
    "test_clips": 2,
    "sampler": "mmaction2",
    "normalise_2d": "pyskl",
    "augment": [{"name": "rotate", "theta": 0.2}],
    "heatmap": {"resize": 18, "train_size": 16, "test_size": 16},
    "network": {
        "posec3d": {"base_channels": 4, "stage_blocks": [1, 1, 1]},
        "protogcn": {"base_channels": 16, "num_stages": 2, "inflate_stages": [2], "down_stages": [2]},
    },
    "streams": {"joint": {"network": {"num_prototypes": 4}}, "keypoint": {"change": {"lr": 0.1}}},
    "epochs": 2,
    "batch_size": 6,
    "lr": 0.02,
}
MEMBERS = {
    "points": {"model": "posec3d", "stream": "keypoint", "seed": 0},
    "limbs": {"model": "posec3d", "stream": "limb", "seed": 0},
    "joint": {"model": "protogcn", "stream": "joint", "seed": 0},
}


def planar(content: dict[str, Any]) -> dict[str, Any]:
    """The small data set as an image sees it: pixels of 240 x 320 and a score."""
    for sample in content["annotations"]:
        x = sample["keypoint"]
        sample["keypoint"] = np.stack([160 + 80 * x[..., 0], 120 - 80 * x[..., 1]], axis=-1).astype(np.float32)
        sample["keypoint_score"] = np.full(x.shape[:-1], 0.9, np.float32)
        sample["img_shape"] = (240, 320)
    return content


def planar_params(**recipe: Any) -> dict[str, Any]:
    content = small_params(members=MEMBERS, ensembles={"all": {"members": dict.fromkeys(MEMBERS, 1)}})
    content["register"] = {"ensemble": "all"}
    content["datasets"]["small"] |= {"data": {"reader": "annotations"}, "recipe": {**RECIPE, **recipe}}
    return content


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("heat")
    write_raw(place / "raw", planar(annotations()))
    write_params(place, planar_params())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(["preprocess", "--raw", "raw", "--out", "packed"]) == 0
        for member in MEMBERS:
            assert main(["train", "--member", member, "--data", "packed", "--out", f"runs/{member}/train"]) == 0
            trained = ["--trained", f"runs/{member}/train", "--out", f"runs/{member}/scores"]
            assert main(["evaluate", "--member", member, "--data", "packed", *trained]) == 0
        assert main(["ensemble", "--runs", "runs", "--out", "ensembles"]) == 0
        folders = ["--data", "packed", "--runs", "runs", "--ensembles", "ensembles"]
        assert main(["report", *folders, "--out", "report"]) == 0
    return place


def test_the_report_shows_what_heat_map_members_see_and_what_they_cost(place: Path) -> None:
    store = open_store(place / "packed")
    [found] = heatmap_volumes(store, [4], {"limbs": "limbs"}, place / "runs")
    recipe = load_checkpoint(place / "runs/limbs/train/best.pt")["recipe"]
    maps = validation_clips(store, np.array([4]), recipe).batch([0])[0].numpy()
    [shown] = found["clips"]
    picture = imread(io.BytesIO(base64.b64decode(shown["data"])))[..., :3]
    assert shown["id"] == store.ids[4] and found["frames"] == list(range(8))
    assert picture.shape == (16, 8 * 16, 3)
    strongest = np.concatenate(list(maps.max(0)), axis=1)  # squares side by side
    np.testing.assert_allclose(picture.max(-1), strongest, atol=1 / 255)
    joints = store.layout.joints
    left = [i for i, limb in enumerate(store.layout.limbs) if any("left" in joints[v] for v in limb)]
    np.testing.assert_allclose(picture[..., 0], np.concatenate(list(maps[left].max(0)), axis=1), atol=1 / 255)
    cost = read_json(place / "report/table.json")["training"]["points"]
    counted = complexity(build_network(load_checkpoint(place / "runs/points/train/best.pt")), (1, 6, 8, 16, 16))
    assert (cost["macs"], cost["parameters"]) == (counted.published, counted.parameters)
    assert cost["device_hours"] >= 0 and cost["samples_per_s"] > 0 and "CPU" in cost["device"]


def test_heat_maps_play_in_a_browser(place: Path) -> None:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium found: install the package chromium to test the page")
    browser = Browser(program)
    try:
        browser.open(place / "report/report.html", 1280, 860)
        browser.wait("sixstream.volumes.state().ready")
        picture_of = "document.querySelector('#volume-single').toDataURL()"
        before = browser.run(picture_of)
        browser.click("#volume-frame", dx=0.9)
        assert browser.run("sixstream.volumes.state().frame") > 3 and browser.run(picture_of) != before
        browser.choose("#volume-member", "1")
        browser.wait("document.querySelector('#volume-text').textContent.includes('limbs of 16')")
        browser.click("#volume-play")
        browser.wait("sixstream.volumes.state().frame === 2")
        browser.click("#theme")
        assert browser.problems == []
    finally:
        browser.close()


def test_networks_have_a_channel_per_joint_or_limb(place: Path) -> None:
    cards = {member: load_checkpoint(place / f"runs/{member}/train/best.pt") for member in MEMBERS}
    layout = open_store(place / "packed").layout
    assert cards["points"]["in_channels"] == layout.num_joints == 6
    assert cards["limbs"]["in_channels"] == len(layout.limbs) == 5
    assert cards["points"]["recipe"]["heatmap"]["train_size"] == 16
    assert cards["points"]["recipe"]["augment"] == []
    assert "heatmap" not in cards["joint"]["recipe"]


def test_heat_maps_and_joints_are_fused(place: Path) -> None:
    fused = load_table(place / "ensembles/all/a_test.npz")
    single = [load_table(place / f"runs/{member}/scores/best-a_test.npz") for member in MEMBERS]
    assert all(table.ids == fused.ids for table in single)
    np.testing.assert_allclose(fused.scores, sum(table.scores for table in single), rtol=1e-6)
    assert not np.allclose(single[0].scores, single[1].scores)


@pytest.mark.parametrize("member", ["points", "limbs"])
def test_a_served_member_scores_raw_clips_as_evaluate_does(place: Path, tmp_path: Path, member: str) -> None:
    store, params = open_store(place / "packed"), load_params(place / "params.yaml")
    bundle = member_bundle(tmp_path / "bundle", params, member, store, place / f"runs/{member}/train/best.pt")
    answers = {answer["id"]: answer["scores"] for answer in predict(str(bundle), [place / "raw" / "small.pkl"])}
    table = load_table(place / f"runs/{member}/scores/best-a_test.npz")
    np.testing.assert_allclose([answers[id] for id in table.ids], table.scores, atol=1e-6)


def test_a_raw_clip_without_its_image_size_is_refused(place: Path, tmp_path: Path) -> None:
    store, params = open_store(place / "packed"), load_params(place / "params.yaml")
    bundle = member_bundle(tmp_path / "bundle", params, "points", store, place / "runs/points/train/best.pt")
    np.save(tmp_path / "clip.npy", store.clip(0))
    with pytest.raises(UserError, match="give every clip its own"):
        predict(str(bundle), [tmp_path / "clip.npy"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"members": {"points": {"model": "protogcn", "stream": "keypoint"}}}, "protogcn takes no stream 'keypoint'"),
        ({"members": {"points": {"model": "posec3d", "stream": "bone"}}}, "choose one of keypoint, limb"),
        ({"data": {"reader": "annotations", "prepare": [{"name": "normalise_2d"}]}}, "set recipe.normalise_2d instead"),
    ],
)
def test_members_that_cannot_be_fed_are_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    content = planar_params()
    content["datasets"]["small"] |= {key: value for key, value in change.items() if key == "data"}
    content["members"] = {**content["members"], **change.get("members", {})}
    params = write_params(tmp_path, content)
    line = ["train", "--params", str(params), "--member", "points", "--data", str(place / "packed")]
    assert main([*line, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_what_a_stream_changes_is_checked() -> None:
    streams = {"keypoint": {"change": {"epoch": 3}}}
    with pytest.raises(UserError, match="streams.keypoint.change.epoch: Extra inputs"):
        parse_params(planar_params(streams=streams), "params.yaml")
    params = parse_params(planar_params(), "params.yaml")
    assert (params.recipe("points").lr, params.recipe("limbs").lr) == (0.1, 0.02)
