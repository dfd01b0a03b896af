"""The report: its numbers against their definitions, its files, and what a wrong input is told."""

import csv
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from report_run import CLASSES, HASH, MEMBERS, SPLITS, Run, make_run

from components import analysis
from components.findings import labels_of
from components.report import write_report
from components.skeletons import decode_clip, describe_layout, encode_clip, upright_axes
from model.errors import UserError
from model.layouts import load_layout
from model.metrics import top_k
from model.scoretable import load_table, save_table
from model.store import open_store

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("run"))


def write(run: Run, out: Path, **changes: object) -> dict:
    store = open_store(run.store)
    given: dict = {
        "title": "sample xsub",
        "protocol": "development: epoch chosen on two subjects, tested on xsub_test",
        "split": "xsub_test",
        "splits": {"train": store.splits["xsub_train"], "xsub_test": store.splits["xsub_test"]},
        "lineage": {"code commit": "0" * 40, "members": {name: {"seed": 0} for name in MEMBERS}},
        "members": MEMBERS,
        "ensembles": ["two", "six"],
        "ranked_by": "baseline",
    }
    return write_report(run.runs, run.fused, run.store, out, **(given | changes))


@pytest.fixture(scope="module")
def written(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("report") / "report"
    write(run, out)
    yield out


# Numbers


def test_wilson_interval_of_eight_in_ten() -> None:
    low, high = analysis.wilson([8, 0, 0], [10, 10, 0])
    np.testing.assert_allclose(low, [0.4902, 0, 0], atol=5e-5)
    np.testing.assert_allclose(high, [0.9433, 0.2775, 1], atol=5e-5)


def test_shapley_values_equal_the_average_over_all_orders() -> None:
    random = np.random.default_rng(0)
    labels, weights = random.integers(5, size=200), [2.0, 1.0, 1.0, 0.5]
    scores = [random.random((200, 5), np.float32) + 0.4 * np.eye(5, dtype=np.float32)[labels] for _ in weights]
    found = analysis.contributions(labels, scores, weights)

    def top1(members: tuple[int, ...]) -> float:
        if not members:
            return 0.2
        return float((sum(weights[m] * scores[m] for m in members).argmax(axis=1) == labels).mean())

    orders = list(itertools.permutations(range(4)))
    for member in range(4):
        gains = [top1(o[: o.index(member) + 1]) - top1(o[: o.index(member)]) for o in orders]
        assert found["shapley"][member] == pytest.approx(np.mean(gains), abs=1e-12)
    assert sum(found["shapley"]) == pytest.approx(found["fused"] - found["chance"])
    assert found["without"][0] == pytest.approx(top1((1, 2, 3)))
    assert found["alone"][3] == pytest.approx(top1((3,)))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_hits_count_as_the_metrics_do_even_with_ties(k: int) -> None:
    random = np.random.default_rng(k)
    scores, labels = random.integers(4, size=(300, 6)).astype(np.float32), random.integers(6, size=300)
    assert analysis.top_hits(scores, labels, k).mean() == top_k(scores, labels, k)


def test_views_of_one_performance_do_not_narrow_an_interval() -> None:
    random = np.random.default_rng(1)
    labels = np.repeat(random.integers(4, size=100), 3)
    right = np.repeat(random.random(100) < 0.7, 3)  # three views agree, so there are 100 facts and not 300
    scores = np.eye(4, dtype=np.float32)[np.where(right, labels, (labels + 1) % 4)]
    width = {}
    for name, groups in (("clips", np.arange(300)), ("performances", np.repeat(np.arange(100), 3))):
        drawn = analysis.resample(labels, {"a": scores, "b": scores}, groups)
        assert (drawn["a"]["top1"] == drawn["b"]["top1"]).all()  # the same draws: differences are paired
        low, high = analysis.interval(drawn["a"]["top1"], float(right.mean()), 100)
        width[name] = high - low
    assert width["performances"] / width["clips"] == pytest.approx(3**0.5, rel=0.1)
    factors = {"subject": np.repeat(np.arange(100), 3), "camera": np.tile(np.arange(3), 100)}
    assert analysis.performances(labels, factors).max() == 99
    assert analysis.performances(labels, {}).max() == 299


def test_interval_of_a_perfect_score_has_width() -> None:
    low, high = analysis.interval(np.ones(1000), 1.0, 40)
    assert 0.9 < low < 0.95 and high == 1.0


def test_calibration_of_a_small_example() -> None:
    scores = np.array([[0.85, 0.15], [0.85, 0.15], [0.55, 0.45], [1.1, 0.9]], np.float32)  # the last sums to two
    found = analysis.reliability(np.array([0, 1, 0, 0]), scores, bins=10)
    assert found["count"] == [0, 0, 0, 0, 0, 2, 0, 0, 2, 0]
    assert found["ece"] == pytest.approx((2 * abs(1 - 0.55) + 2 * abs(0.5 - 0.85)) / 4, abs=1e-6)
    assert found["brier"] == pytest.approx((2 * 0.15**2 + 2 * 0.85**2 + 2 * 2 * 0.45**2) / 4, abs=1e-6)
    assert found["nll"] == pytest.approx(-np.log([0.85, 0.15, 0.55, 0.55]).mean(), abs=1e-6)


def test_difficulty_bands_are_those_of_the_paper() -> None:
    ranking = np.linspace(0, 1, 120)[::-1]
    bands = analysis.difficulty_bands(ranking, {"a": np.linspace(1, 0, 120)})
    assert [(band["from"], band["to"]) for band in bands] == [(1, 10), (11, 30), (31, 60), (61, 120)]
    assert bands[0]["mean"]["a"] == pytest.approx(np.linspace(0, 1, 120)[:10].mean())


def test_confused_classes_are_paired_and_ordered_side_by_side() -> None:
    matrix = np.diag([20] * 6)
    matrix[0, 5], matrix[5, 0], matrix[2, 4] = 8, 4, 3
    first, second = analysis.confused_pairs(matrix, 5)
    assert (first["a"], first["b"], first["a_as_b"], first["b_as_a"]) == (0, 5, 8, 4)
    assert (second["a"], second["b"]) == (2, 4)
    order = analysis.similar_order(matrix)
    assert sorted(order) == list(range(6))
    assert abs(order.index(0) - order.index(5)) == 1 and abs(order.index(2) - order.index(4)) == 1


def test_labels_leave_out_what_all_names_share() -> None:
    assert labels_of(MEMBERS)[MEMBERS[3]] == "joint_motion"
    assert list(labels_of(["protogcn-joint-s0", "protogcn-joint-s1"]).values()) == ["s0", "s1"]
    assert list(labels_of(["a-joint-s0", "b-joint-s0"]).values()) == ["a", "b"]
    assert list(labels_of(["only-one"]).values()) == ["only-one"]
    assert list(labels_of(["a", "a-b"]).values()) == ["a", "a-b"]


# Skeletons


@pytest.mark.parametrize("turn", [(0, 1, 2), (0, 2, 1), (1, 0, 2)])
def test_heads_are_drawn_above_feet_however_a_set_is_turned(run: Run, turn: tuple[int, int, int]) -> None:
    store = open_store(run.store)
    layout, clip = store.layout, store.clip(0)[..., list(turn)]
    if turn == (0, 2, 1):
        clip = clip * (1, -1, 1)  # y, z exchanged: a rotation about x keeps the body's handedness
    axes = upright_axes([clip], layout, ["x", "y", "z"])
    shown = decode_clip(encode_clip(clip, axes, ["x", "y", "z"]), layout.num_joints)
    height = shown[:, 0, :, 1].mean(axis=0)
    head, feet = layout.joints.index("head"), [layout.joints.index(f"{side}_ankle") for side in ("left", "right")]
    assert height[head] > height[feet].max()


def test_image_coordinates_point_down_and_unseen_joints_are_left_out() -> None:
    layout = load_layout("coco")
    random = np.random.default_rng(0)
    clip = np.concatenate([random.uniform(100, 900, (2, 150, 17, 2)), np.ones((2, 150, 17, 1))], axis=-1)
    clip[0, :, 3] = -3000, -3000, 0  # never detected
    clip[0, :, 4] = 500, 500, 0  # hidden, but placed by an annotator
    clip[1] = 0  # no second person
    encoded = encode_clip(clip, upright_axes([clip], layout, ["x", "y", "score"]), ["x", "y", "score"])
    assert (encoded["persons"], encoded["frames"], encoded["step"], encoded["dims"]) == (1, 50, 3, 2)
    shown = decode_clip(encoded, 17)
    assert np.isnan(shown[:, 0, 3]).all() and np.isfinite(np.delete(shown[:, 0], 3, axis=1)).all()
    order = np.argsort(clip[0, 0, :3, 1])
    assert (np.diff(shown[0, 0, :3, 1][order]) < 0).all()
    sides = describe_layout(layout)["sides"]
    assert sides[layout.joints.index("left_wrist")] == -1 and sides[layout.joints.index("right_wrist")] == 1


def test_encoded_clips_keep_their_shape_to_a_thousandth(run: Run) -> None:
    store = open_store(run.store)
    clip = store.clip(len(store) - 1)  # an interaction: two persons
    axes = upright_axes([clip], store.layout, ["x", "y", "z"])
    shown = decode_clip(encode_clip(clip, axes, ["x", "y", "z"], max_frames=1000), 25).transpose(1, 0, 2, 3)
    assert shown.shape == clip.shape == (2, clip.shape[1], 25, 3)
    scale = np.ptp(shown[..., 1]) / np.ptp(clip[..., 1])
    error = (shown - shown.mean(axis=(0, 1, 2))) / scale - (clip - clip.mean(axis=(0, 1, 2)))
    assert np.abs(error).max() < 1e-3


# Files


def test_all_files_are_written_and_the_page_is_small_and_self_contained(written: Path) -> None:
    names = {str(path.relative_to(written)) for path in written.rglob("*") if path.is_file()}
    figures = "accuracy confusion per_class reliability clip_lengths class_counts class_changes difficulty".split()
    figures += "contribution_two contribution_six confused_pairs curve_train_loss curve_dev_top1".split()
    assert {"report.html", "table.md", "table.csv", "table.json"} <= names
    assert {f"figures/{name}.png" for name in figures} <= names
    page = (written / "report.html").read_text()
    assert len(page) < 1_500_000
    elsewhere = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:|//|file:)[^\"')\s]*", page)
    assert not elsewhere
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))


def test_tables_hold_the_scores_of_the_run(run: Run, written: Path) -> None:
    numbers = json.loads((written / "table.json").read_text())
    metrics = json.loads((run.runs / MEMBERS[0] / "scores" / "metrics.json").read_text())
    assert [row["name"] for row in numbers["rows"]] == [*MEMBERS, "two", "six"]
    assert numbers["rows"][0]["test"] == pytest.approx(metrics["best"]["xsub_test"])
    assert numbers["headline"] == "six"
    cost = numbers["training"][MEMBERS[1]]
    assert cost["device_hours"] == pytest.approx(2 * 32.5 / 3600, abs=1e-4) and cost["macs"] == 83_000_000
    assert ">83 M<" in (written / "report.html").read_text()
    assert numbers["independent"] == len(SPLITS["xsub_test"]) * len(CLASSES)  # three views are one performance
    for row in numbers["rows"]:
        low, high = row["interval"]["top1"]
        assert low < row["test"]["top1"] < high
    six = next(part for part in numbers["contributions"] if part["name"] == "six")
    assert sum(six["shapley"]) == pytest.approx(six["fused"] - 1 / len(CLASSES))
    with open(written / "table.csv", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == len(MEMBERS) * 4 + 2 * 2  # checkpoints x splits, and ensembles x splits
    chosen = [line for line in lines if line["chosen"] == "1" and line["split"] == "xsub_test"]
    assert float(chosen[0]["top1"]) == numbers["rows"][0]["test"]["top1"] and chosen[0]["top1_low"]
    markdown = (written / "table.md").read_text()
    assert f"{100 * numbers['rows'][-1]['test']['top1']:.2f}" in markdown and "mean_class:" in markdown


def test_equal_runs_give_equal_bytes(run: Run, written: Path, tmp_path: Path) -> None:
    write(run, tmp_path / "again")
    for path in sorted(written.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(written)).read_bytes(), path.name


def test_names_cannot_inject_markup(tmp_path: Path) -> None:
    evil = "</script><b onclick=alert(1)>x"
    evil_run = make_run(tmp_path, takes=1, classes=[evil, *CLASSES[1:]])
    write(evil_run, tmp_path / "out", ensembles=[], ranked_by="", title=evil)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<b onclick" not in page and "&lt;b onclick" in page


def test_a_single_member_without_development_split_is_reported(run: Run, tmp_path: Path) -> None:
    numbers = write(run, tmp_path / "one", members=MEMBERS[:1], ensembles=[], ranked_by="")
    assert numbers["headline"] == MEMBERS[0] and numbers["contributions"] == []
    assert "difficulty" not in numbers
    assert (tmp_path / "one" / "report.html").is_file()


def test_the_command_reports_what_the_parameters_name(
    run: Run, tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from components.tracking import connect
    from pipeline.cli import main

    shutil.copyfile(database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)

    parameters = {
        "dataset": "sample",
        "protocol": "development",
        "members": {
            **{name: {"model": "protogcn", "stream": name.split("-")[1], "seed": 0} for name in MEMBERS},
            "baseline": {"model": "protogcn", "stream": "joint", "seed": 1},
        },
        "report": {"baseline": MEMBERS[2], "ranked_by": "baseline"},
        "ensembles": {"two": {"members": dict.fromkeys(MEMBERS[:2], 1)}},
        "register": {"ensemble": "two"},
        "datasets": {
            "sample": {
                "data": {"reader": "ntu_raw"},
                "split": {"name": "xsub", "train": "xsub_train", "test": ["xsub_test"]},
                "recipe": {},
            }
        },
    }
    (tmp_path / "params.yaml").write_text(json.dumps(parameters))
    options = {"params": tmp_path / "params.yaml", "data": run.store, "runs": run.runs, "ensembles": run.fused}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert main(["report", *words, "--out", str(tmp_path / "out")]) == 0
    numbers = json.loads((tmp_path / "out" / "table.json").read_text())
    assert numbers["protocol"].startswith("development: epoch chosen on")
    assert set(numbers["data"]["splits"]) == {"train", "development", "xsub_test"}
    assert [row["name"] for row in numbers["rows"]] == [*MEMBERS, "two"]  # what ranks the classes is not compared
    assert numbers["difficulty"]["ranked_by"] == "baseline" and numbers["changes"]["against"] == MEMBERS[2]
    tracker = connect(tmp_path)
    [parent] = tracker.client.search_runs([tracker.experiment_id("sample/development")])
    logged = {item.path for item in tracker.client.list_artifacts(parent.info.run_id, "report")}
    assert {"report/report.html", "report/table.csv", "report/figures"} <= logged
    pictures = {Path(item.path).name for item in tracker.client.list_artifacts(parent.info.run_id, "report/figures")}
    assert pictures == {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert main(["report", *words, "--out", str(tmp_path / "none"), "--baseline", "nobody"]) == 2
    assert main(["report", *words, "--out", str(tmp_path / "none"), "--ranked-by", MEMBERS[0]]) == 2
    assert not (tmp_path / "none").exists()


def test_reading_the_options_imports_neither_torch_nor_matplotlib() -> None:
    code = "import sys, components.report; sys.exit(bool({'torch', 'matplotlib', 'mlflow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# Mistakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": []}, "names no member"),
        ({"ensembles": ["ten"]}, "holds no ensemble 'ten'"),
        ({"members": MEMBERS[:1]}, "is not among the members reported"),
        ({"baseline": "nobody"}, "baseline 'nobody' is not reported"),
        ({"ranked_by": MEMBERS[0]}, "is itself compared"),
        ({"split": "xview_test"}, "no such score table"),
    ],
)
def test_unknown_names_are_refused_and_nothing_is_written(
    run: Run, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        write(run, tmp_path / "out", **changes)
    assert not list(tmp_path.iterdir())


def test_scores_of_other_data_or_other_metrics_are_refused(tmp_path: Path) -> None:
    stale = make_run(tmp_path, takes=1)
    metrics = stale.runs / MEMBERS[1] / "scores" / "metrics.json"
    former = metrics.read_text()
    content = json.loads(former)
    content["best"]["xsub_test"]["top1"] += 0.01
    metrics.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"{MEMBERS[1]}.*disagree; evaluate it again"):
        write(stale, tmp_path / "out")
    metrics.write_text(former)
    meta = stale.store / "store.json"
    meta.write_text(meta.read_text().replace(HASH, "f" * 32))
    with pytest.raises(UserError, match="data hash"):
        write(stale, tmp_path / "out")
    meta.write_text(meta.read_text().replace("f" * 32, HASH).replace("S001C001P009R001A001", "renamed"))
    with pytest.raises(UserError, match="has no sample 'S001C001P009R001A001'"):
        write(stale, tmp_path / "out")
    table = load_table(stale.fused / "two" / "xsub_test.npz")
    other = type(table)(**{**vars(table), "data_hash": "e" * 32})
    save_table(stale.fused / "two" / "xsub_test.npz", other)
    with pytest.raises(UserError, match="different data"):
        write(stale, tmp_path / "out")
