"""`sixstream explain`: page, figures and arrays of trained members, and what it says where there is nothing to show."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, find_chromium
from small_run import annotations, small_params, write_params, write_raw
from test_heatmap_members import RECIPE, planar

from components.tracking import connect
from model.checkpoint import build_network, load_checkpoint
from pipeline.cli import main

SMALL = {"base_channels": 12, "num_stages": 2, "inflate_stages": [2], "down_stages": [2]}
MEMBERS: dict[str, Any] = {
    "proto": {"model": "protogcn", "stream": "joint"},
    "plain": {"model": "protogcn", "stream": "bone", "network": {"inter": False, "intra": False}},
    "adaptive": {"model": "agcn", "stream": "kbone", "network": SMALL},
    "fixed": {"model": "stgcnpp", "stream": "joint_motion", "network": SMALL},
    "limbs": {"model": "posec3d", "stream": "limb"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Path:
    place = tmp_path_factory.mktemp("explain")
    write_raw(place / "raw", planar(annotations()))
    content = small_params(members=MEMBERS, ensembles={"all": {"members": dict.fromkeys(MEMBERS, 1)}})
    content["register"] = {"ensemble": "all"}
    content["datasets"]["small"] |= {"data": {"reader": "annotations"}, "recipe": {**RECIPE, "epochs": 1}}
    write_params(place, content)
    (place / "mlflow.db").write_bytes(database.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(["preprocess", "--raw", "raw", "--out", "data/packed/small"]) == 0
        for member in MEMBERS:
            out = f"runs/small/development/{member}/train"
            assert main(["train", "--member", member, "--data", "data/packed/small", "--out", out]) == 0
        assert main(["explain", "proto", "--baseline", "plain"]) == 0
        for member in ("adaptive", "fixed", "limbs"):
            assert main(["explain", member, "--classes", "wave", "2", "--clips", "3", "--out", f"out/{member}"]) == 0
    return place


def test_arrays_are_the_networks_own_and_everything_is_logged_with_the_member(place: Path) -> None:
    out = place / "explained/small/development/proto"
    arrays = np.load(out / "explain.npz")
    net: Any = build_network(load_checkpoint(place / "runs/small/development/proto/train/best.pt"))
    first = np.stack([block.gcn.A.detach().mean(0).numpy() for block in net.gcn])
    np.testing.assert_allclose(arrays["proto/A0"], first, atol=1e-7)
    assert arrays["classes"].tolist() == ["still", "wave", "kick"]
    assert arrays["proto/enhanced"].shape == (3, 2, 6, 6) and arrays["proto/Z"].shape == (3, 6, 6)
    np.testing.assert_allclose(arrays["proto/prototype_use"].sum(1), 1, rtol=1e-5)
    assert "plain/enhanced" not in arrays and "plain/Z" not in arrays and arrays["plain/A0"].shape == (2, 6, 6)
    assert arrays["evidence/parts"].shape[1] == 6 and arrays["proto/map"].shape == (len(arrays["labels"]), 2)
    names = {path.stem for path in (out / "figures").glob("*.png")}
    assert names == {"blocks_proto", "blocks_plain", "last_block", "prototypes", "evidence", "features"}
    tracker = connect(place)
    [run] = tracker.client.search_runs(
        [tracker.experiment_id("small/development")], "tags.member = 'proto' and tags.model = 'protogcn'"
    )
    logged = {item.path for item in tracker.client.list_artifacts(run.info.run_id, "explain")}
    assert {"explain/explain.html", "explain/explain.npz", "explain/figures"} <= logged


def test_the_same_member_is_explained_by_the_same_bytes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert main(["explain", "proto", "--baseline", "plain", "--out", "again"]) == 0
    first = place / "explained/small/development/proto"
    for path in sorted(path for path in first.rglob("*") if path.is_file()):
        assert path.read_bytes() == (place / "again" / path.relative_to(first)).read_bytes(), path.name


def test_a_plain_sentence_stands_where_a_network_has_nothing_to_show(place: Path) -> None:
    pages = {member: (place / f"out/{member}/explain.html").read_text() for member in ("adaptive", "fixed", "limbs")}
    assert "posec3d has no topology over joints" in pages["limbs"] and "limb" in pages["limbs"]
    assert "stgcnpp learns one topology per block" in pages["fixed"]
    assert all("has no prototypes" in page for page in pages.values())
    assert not (place / "out/limbs/figures/last_block.png").exists()
    assert np.load(place / "out/limbs/explain.npz")["evidence/parts"].shape[1] == 5
    assert np.load(place / "out/adaptive/explain.npz")["shown"].tolist() == ["wave", "kick"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nobody"], "no member 'nobody'"),
        (["proto", "--classes", "wafe"], "no test clip of 'wafe'; did you mean 'wave'"),
        (["proto", "--classes", "7"], "no test clip of '7'"),
        (["proto", "--baseline", "proto"], "is the member itself"),
        (["proto", "--runs", "elsewhere"], "no such checkpoint; train the member first"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(
    place: Path, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert main(["explain", *words, "--out", "none"]) == 2
    assert message in capsys.readouterr().err
    assert not (place / "none").exists()


def test_topologies_are_read_joint_by_joint_in_a_browser(place: Path) -> None:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium found: install the package chromium to test the page")
    browser = Browser(program)
    try:
        browser.open(place / "explained/small/development/proto/explain.html", 390, 844, dark=True, phone=True)
        assert browser.run("document.documentElement.scrollWidth") == 390
        browser.open(place / "explained/small/development/proto/explain.html", 1280, 860)
        browser.click("#topology-panels figure:nth-child(2) canvas", dx=0.99, dy=0.01)
        shown = np.load(place / "explained/small/development/proto/explain.npz")["proto/enhanced"]
        for block in (2, 1):  # the last is shown first
            said = browser.run("document.querySelector('#topology-text').textContent")
            assert said.startswith("hip → right foot: proto A₀ ")
            told = float(said.split("proto enhanced ")[1].split(",")[0])
            assert told == pytest.approx(float(shown[0, block - 1, 0, 5]), abs=2e-4)
            caption = "document.querySelector('#topology-panels figure:nth-child(2) figcaption').textContent"
            assert browser.run(caption).endswith(f"(block {block}, still)")
            browser.choose("#topology-block", "1")
        browser.click("#theme")
        browser.open(place / "out/limbs/explain.html", 1280, 860)
        browser.click("#theme")
        assert browser.problems == []
    finally:
        browser.close()
