"""Score tables, fusion and metrics, against the original evaluation and against each other.

The files `golden/scores_*` hold numbers of the original implementations; the full set is read when
SIXSTREAM_GOLDEN names it.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_report import close
from hypothesis import given, settings
from hypothesis import strategies as st

from model.ensemble import fuse, leave_one_out
from model.errors import UserError
from model.metrics import (
    average_clip,
    confusion_matrix,
    mean_average_precision,
    mean_class_accuracy,
    mean_class_accuracy_union,
    paired_bootstrap,
    summary,
    top_k,
)
from model.scoretable import ScoreTable, load_table, save_table


def table(scores: np.ndarray, labels: np.ndarray, member: str = "joint", **changes: Any) -> ScoreTable:
    made = ScoreTable(
        ids=[f"clip{row:04d}" for row in range(len(labels))],
        labels=np.asarray(labels, np.int64),
        scores=np.asarray(scores, np.float32),
        split="test",
        member=member,
        data_hash="0" * 32,
        classes=[f"class {k}" for k in range(np.shape(scores)[1])],
    )
    return replace(made, **changes)


def random_table(seed: int = 0, clips: int = 50, classes: int = 6, member: str = "joint") -> ScoreTable:
    generator = np.random.default_rng(seed)
    scores = generator.dirichlet(np.ones(classes), clips)
    return table(scores, np.arange(clips) % classes, member)


def shuffled(original: ScoreTable, seed: int) -> ScoreTable:
    order = np.random.default_rng(seed).permutation(len(original))
    return replace(
        original,
        ids=[original.ids[row] for row in order],
        labels=original.labels[order],
        scores=original.scores[order],
    )


# --- parity with the originals -------------------------------------------------------------------------------


def test_fuse_demo_of_mmaction2(small_golden: Path) -> None:
    case = np.load(small_golden / "scores_fuse.npz")
    check_fuse_demo(case["joint"], case["bone"], case["labels"], json.loads(str(case["results"])))


def check_fuse_demo(joint: np.ndarray, bone: np.ndarray, labels: np.ndarray, results: dict[str, Any]) -> None:
    members = [table(joint, labels, "joint"), table(bone, labels, "bone")]
    for name, expected in results.items():
        figures = summary(fuse(members, [float(weight) for weight in name.split(":")], name))
        for ours, theirs in {"top1": "top1", "top5": "top5", "mean_class_union": "mean_class"}.items():
            close(f"fuse_demo {name}", ours, figures[ours], expected[theirs], rtol=0, atol=1e-12)


def test_streams_and_ensembles_of_protogcn(small_golden: Path) -> None:
    case = np.load(small_golden / "scores_metrics.npz")
    expected = json.loads(str(case["expected"]))
    members = {name: table(case[name], case["labels"], name) for name in expected["per_stream"]}
    check_streams(members, expected)


def check_streams(members: dict[str, ScoreTable], expected: dict[str, Any]) -> None:
    names = {"top1": "top1", "top5": "top5", "mean_class_union": "mean_class", "mean_class": "mean_class_labels_only"}
    for name, figures in expected["per_stream"].items():
        found = summary(members[name])
        for ours, theirs in names.items():
            close(f"metrics_1 {name}", ours, found[ours], figures[theirs], rtol=0, atol=1e-12)
    for title, case in expected["ensemble"].items():
        fused = fuse([members[name] for name in case["streams"]], case["weights"], "fused")
        top1 = top_k(fused.scores, fused.labels)
        close(f"metrics_1 {title}", "top1", top1, case["top1"], rtol=0, atol=1e-12)
        if "fused" in case:
            close(f"metrics_1 {title}", "fused scores", fused.scores, case["fused"])


def test_confusion_average_precision_and_clip_averages(small_golden: Path) -> None:
    stored = np.load(small_golden / "scores_small.npz")
    check_small_cases({name.replace(".", "/"): stored[name] for name in stored.files}, 0.4946215789413051)


def check_small_cases(case: Any, precision: float) -> None:
    for normalise in (None, "true", "pred", "all"):
        where = f"confusion/{normalise}"
        found = confusion_matrix(case[f"{where}/in/y_pred"], case[f"{where}/in/y_real"], normalise=normalise)
        close(where, "matrix", found, case[f"{where}/out/matrix"])
    for how in ("prob", "score"):
        found = average_clip(case[f"average_clips/{how}/in/cls_score"], how)
        close(f"average_clips/{how}", "score", found, case[f"average_clips/{how}/out/score"])
    found = mean_average_precision(case["map/in/scores"], case["map/in/labels"])
    close("map", "mean average precision", found, precision, rtol=0)


def test_every_golden_ensemble_case(golden_dir: Path) -> None:
    arrays = np.load(golden_dir / "pipeline" / "ensemble.npz")
    cases = {
        case["id"]: case
        for case in json.loads((golden_dir / "pipeline" / "index.json").read_text())["cases"]
        if case.get("file") == "ensemble.npz" or case["id"] == "six_streams/script_output"
    }
    check_small_cases(arrays, cases["map"]["out_fields"]["mAP"])
    six = {
        name: table(arrays[f"six_streams/data/in/{name}"], arrays["six_streams/data/in/label"], name)
        for name in ("j", "b", "k", "jm", "bm", "km")
    }
    demo = [
        table(arrays[f"demo_fuse/data/in/{name}"], arrays["demo_fuse/data/in/label"], name)
        for name in ("joint", "bone")
    ]
    fused_cases = 0
    for name, case in cases.items():
        fields, expected = case["fields"], case["out_fields"]
        if case["op"] == "report_accuracy":
            found = fuse(demo, fields["coefficients"], name)
            figures = {"mean_class_union": "mean_class"}
        elif case["op"] == "ensemble":
            found = fuse([six[stream] for stream in fields["streams"]], fields["weights"], name)
            figures = {"mean_class": "mean_acc_smp", "mean_class_union": "mean_class_accuracy"}
        else:
            continue
        fused_cases += 1
        close(name, "fused scores", found.scores, arrays[case["outputs"]["fused"]])
        for ours, theirs in {"top1": "top1", "top5": "top5", **figures}.items():
            close(name, ours, summary(found)[ours], expected[theirs], rtol=0, atol=1e-12)
    assert fused_cases == 10

    printed = cases["six_streams/script_output"]["out_fields"]["printed"]
    scripts = {"J+B": ("j b", [1, 1]), "4M": ("j b jm bm", [2, 2, 1, 1]), "6M": ("j b k jm bm km", [2, 2, 2, 1, 1, 1])}
    for title, (streams, weights) in scripts.items():
        found = fuse([six[stream] for stream in streams.split()], weights, title)
        line = printed[printed.index(title) + 1]
        close(title, "printed top-1", top_k(found.scores, found.labels), float(line.split()[-1]), rtol=0, atol=5e-5)


def test_full_golden_metrics(golden_dir: Path) -> None:
    torch = pytest.importorskip("torch")
    case = torch.load(golden_dir / "models" / "metrics_1.pt", weights_only=True)
    labels = case["labels"].numpy()
    check_streams({name: table(scores.numpy(), labels, name) for name, scores in case["scores"].items()}, case)
    demo = torch.load(golden_dir / "models" / "fuse_demo.pt", weights_only=True)
    check_fuse_demo(demo["joint"].numpy(), demo["bone"].numpy(), demo["labels"].numpy(), demo["results"])


# --- metrics ---------------------------------------------------------------------------------------------------


def test_two_definitions_of_mean_class() -> None:
    scores = np.eye(4)[[0, 0, 1, 3]]  # predictions; class 3 is only predicted
    labels = np.array([0, 0, 1, 1])
    assert mean_class_accuracy(scores, labels) == pytest.approx((1 + 0.5) / 2)
    assert mean_class_accuracy_union(scores, labels) == pytest.approx((1 + 0.5 + 0) / 3)


def test_top_k_counts_more_classes_than_there_are_as_all() -> None:
    made = random_table(classes=3)
    assert top_k(made.scores, made.labels, 5) == 1.0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 8))
def test_confusion_matrix_agrees_with_accuracy(seed: int, classes: int) -> None:
    made = random_table(seed, clips=30, classes=classes)
    matrix = confusion_matrix(made.scores.argmax(1), made.labels, classes=classes)
    assert matrix.sum() == 30
    assert np.trace(matrix) / 30 == pytest.approx(top_k(made.scores, made.labels))
    present = matrix.sum(1) > 0
    shares = confusion_matrix(made.scores.argmax(1), made.labels, classes=classes, normalise="true")
    assert np.diag(shares)[present].mean() == pytest.approx(mean_class_accuracy(made.scores, made.labels))


def test_average_precision_of_a_perfect_and_of_a_constant_ranking() -> None:
    labels = np.array([[1, 0], [1, 0], [0, 1], [0, 0]])
    assert mean_average_precision(labels.astype(float), labels) == 1.0
    # All scores equal: one threshold, precision is the share of positives.
    assert mean_average_precision(np.zeros((4, 2)), labels) == pytest.approx((2 / 4 + 1 / 4) / 2)


def test_bootstrap_sees_a_clear_gain_and_no_gain() -> None:
    worse = random_table(1, clips=200)
    better = replace(worse, scores=(worse.scores + np.eye(6)[worse.labels]).astype(np.float32))
    clear = paired_bootstrap(worse.labels, worse.scores, better.scores, seed=0)
    assert clear["low"] > 0 and clear["low"] < clear["gain"] < clear["high"]
    none = paired_bootstrap(worse.labels, worse.scores, worse.scores, seed=0)
    assert none == {"gain": 0.0, "low": 0.0, "high": 0.0}
    assert paired_bootstrap(worse.labels, worse.scores, better.scores, seed=0) == clear


def test_bootstrap_by_groups_is_less_sure() -> None:
    labels = np.zeros(300, np.int64)
    groups = np.repeat(np.arange(10), 30)  # whole performances are right or wrong
    right = np.eye(2)[(groups % 3 == 0).astype(int)]
    wrong = np.eye(2)[np.ones(300, int)]
    single = paired_bootstrap(labels, wrong, right, seed=0)
    grouped = paired_bootstrap(labels, wrong, right, seed=0, groups=[f"performance {g}" for g in groups])
    assert grouped["gain"] == single["gain"]
    assert grouped["high"] - grouped["low"] > 2 * (single["high"] - single["low"])


def test_bootstrap_refuses_different_lengths() -> None:
    made = random_table()
    with pytest.raises(UserError, match="49"):
        paired_bootstrap(made.labels, made.scores, made.scores[:-1], seed=0)
    with pytest.raises(UserError, match="groups"):
        paired_bootstrap(made.labels, made.scores, made.scores, seed=0, groups=["a"])


# --- fusion ----------------------------------------------------------------------------------------------------


def test_fusion_joins_by_id_not_by_position() -> None:
    one, two = random_table(1, member="joint"), random_table(2, member="bone")
    straight = fuse([one, two], [2, 1], "both")
    mixed = fuse([one, shuffled(two, seed=5)], [2, 1], "both")
    np.testing.assert_array_equal(straight.scores, mixed.scores)
    np.testing.assert_allclose(straight.scores, 2 * one.scores + two.scores, rtol=1e-6)
    assert straight.member == "both" and mixed.ids == one.ids


def relabelled(made: ScoreTable) -> ScoreTable:
    labels = made.labels.copy()
    labels[7] = (labels[7] + 1) % len(made.classes)
    return replace(made, labels=labels)


def shortened(made: ScoreTable, rows: slice) -> ScoreTable:
    return replace(made, ids=made.ids[rows], labels=made.labels[rows], scores=made.scores[rows])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda made: shortened(made, slice(0, 48)), "'bone' lacks 2 samples .'clip0048', 'clip0049'"),
        (lambda made: replace(made, ids=["other", *made.ids[1:]]), "'bone' lacks 1 samples .'clip0000'"),
        (relabelled, "sample 'clip0007' the labels 2 and 1"),
        (lambda made: replace(made, classes=["jump", *made.classes[1:]]), "class 0 is 'jump' against 'class 0'"),
        (lambda made: replace(made, data_hash="1" * 32), "different data"),
        (lambda made: replace(made, split="dev"), "different splits: 'dev' against 'test'"),
    ],
)
def test_fusion_refuses_tables_that_do_not_match(change: Any, message: str) -> None:
    one, two = random_table(1, member="joint"), random_table(2, member="bone")
    with pytest.raises(UserError, match=message):
        fuse([one, change(two)], [1, 1], "both")


def test_fusion_refuses_a_first_table_that_lacks_samples() -> None:
    one, two = random_table(1, member="joint"), random_table(2, member="bone")
    with pytest.raises(UserError, match="'joint' lacks 50 samples|'joint' lacks 49 samples"):
        fuse([shortened(one, slice(0, 1)), two], [1, 1], "both")


@pytest.mark.parametrize("weights", [[1], [1, float("nan")], [0, 0]])
def test_fusion_refuses_senseless_weights(weights: list[float]) -> None:
    with pytest.raises(UserError, match="weights"):
        fuse([random_table(1), random_table(2)], weights, "both")


def test_leave_one_out_credits_the_member_that_knows() -> None:
    labels = np.arange(60) % 6
    good = table(np.eye(6)[labels] + 0.1, labels, "good")
    noise = [random_table(seed, 60, 6, f"noise{seed}") for seed in (3, 4)]
    gains = leave_one_out([good, *noise], [1, 1, 1])
    assert set(gains) == {"good", "noise3", "noise4"}
    assert gains["good"]["top1"] > 0.3 > gains["noise3"]["top1"]
    assert leave_one_out([good], [1]) == {}
    with pytest.raises(UserError, match="twice"):
        leave_one_out([good, good], [1, 1])


# --- score tables ----------------------------------------------------------------------------------------------


def test_table_round_trip_and_equal_bytes(tmp_path: Path) -> None:
    made = random_table()
    first, second = save_table(tmp_path / "a.npz", made), save_table(tmp_path / "deep" / "b.npz", made)
    assert first.read_bytes() == second.read_bytes()
    back = load_table(first)
    np.testing.assert_array_equal(back.scores, made.scores)
    np.testing.assert_array_equal(back.labels, made.labels)
    assert replace(back, scores=made.scores, labels=made.labels) == made
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "deep"]
    save_table(first, shuffled(made, 1))
    assert first.read_bytes() != second.read_bytes()


def test_table_keeps_any_text(tmp_path: Path) -> None:
    made = replace(random_table(clips=2, classes=2), ids=["Zähler/1", "日本 2"], classes=["a\nb", '"quoted"'])
    back = load_table(save_table(tmp_path / "t.npz", made))
    assert back.ids == made.ids and back.classes == made.classes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": np.zeros((50, 6))}, "float64"),
        ({"scores": np.zeros((49, 6), np.float32)}, r"\(49, 6\)"),
        ({"scores": np.full((50, 6), np.nan, np.float32)}, "'clip0000' is NaN"),
        ({"labels": np.zeros(50, np.int32)}, "int32"),
        ({"labels": np.full(50, 6)}, "label 6 of sample 'clip0000'"),
        ({"ids": ["same"] * 50}, "'same' occurs more than once"),
        ({"ids": [], "labels": np.zeros(0, np.int64), "scores": np.zeros((0, 6), np.float32)}, "no clip"),
    ],
)
def test_table_refuses_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(random_table(), **changes)


def test_damaged_tables_are_refused_by_name(tmp_path: Path) -> None:
    path = save_table(tmp_path / "t.npz", random_table())
    data = path.read_bytes()
    with pytest.raises(UserError, match="no such score table"):
        load_table(tmp_path / "missing.npz")
    for cut in (0, 1, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(UserError, match=r"t\.npz"):
            load_table(path)
    path.write_bytes(b"not an archive")
    with pytest.raises(UserError, match=r"t\.npz"):
        load_table(path)


def test_flipped_bits_never_pass_as_other_scores(tmp_path: Path) -> None:
    made = random_table(clips=8, classes=3)
    path = save_table(tmp_path / "t.npz", made)
    data = path.read_bytes()
    for place in np.random.default_rng(0).integers(len(data), size=300):
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(place % 8)
        path.write_bytes(flipped)
        try:
            back = load_table(path)
        except UserError:
            continue
        np.testing.assert_array_equal(back.scores, made.scores)
        assert back.ids == made.ids


def test_foreign_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, scores=np.zeros(3))
    with pytest.raises(UserError, match="not a score table"):
        load_table(path)
    good = {"ids": np.array(["a"]), "labels": np.zeros(1, np.int64), "scores": np.zeros((1, 1), np.float32)}
    np.savez(path, header=np.array("{}"), **good)
    with pytest.raises(UserError, match="header"):
        load_table(path)
    np.savez(path, header=np.array([object()], dtype=object), **good)
    with pytest.raises(UserError, match=r"t\.npz"):
        load_table(path)
