"""Comparing runs: the paired test, its units, Holm, verdicts, tables and the verb."""

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from small_run import small_params

from components.compare import compare
from components.comparison import Entry, compare_entries, holm, independent_units, paired_test
from components.comparison_tables import write_comparison
from components.params import parse_params
from model.errors import UserError
from model.scoretable import ScoreTable, save_table

SUBJECTS, ACTIONS, CAMERAS = 8, 4, 3
IDS = [
    f"S001C{c + 1:03d}P{p + 1:03d}R001A{a + 1:03d}"
    for p in range(SUBJECTS)
    for a in range(ACTIONS)
    for c in range(CAMERAS)
]
LABELS = np.array([int(name[-3:]) - 1 for name in IDS])


def table_of(right: np.ndarray, member: str = "m") -> ScoreTable:
    """A score table whose clip n is right or takes the next class."""
    said = np.where(right, LABELS, (LABELS + 1) % ACTIONS)
    scores = np.eye(ACTIONS, dtype=np.float32)[said]
    return ScoreTable(IDS, LABELS, scores, "test", member, "hash", ["a", "b", "c", "d"])


def random_entry(title: str, share: float, seeds: int, seed: int = 0) -> Entry:
    rng = np.random.default_rng(seed)
    return Entry(title, {s: table_of(rng.random(len(IDS)) < share, title) for s in range(seeds)})


UNITS = independent_units(IDS, LABELS, {})


def test_one_seed_and_equal_units_give_the_paired_t_test_over_subjects() -> None:
    gain = np.random.default_rng(0).normal(0.1, 1, (1, len(IDS)))
    found = paired_test(gain, UNITS.of)
    by_subject = gain[0].reshape(SUBJECTS, -1).mean(axis=1)
    assert found["p"] == pytest.approx(stats.ttest_1samp(by_subject, 0).pvalue)
    assert found["gain"] == pytest.approx(by_subject.mean())
    low, high = stats.t.interval(0.95, SUBJECTS - 1, by_subject.mean(), stats.sem(by_subject))
    assert (found["low"], found["high"]) == pytest.approx((low, high))


@pytest.mark.parametrize(("by_seed", "by_subject"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.4, 0.4)])
def test_false_alarms_stay_rare_whatever_varies(by_seed: float, by_subject: float) -> None:
    """Where nothing is better, p < 0.05 comes in about one of twenty trials; single clips would cry wolf."""
    rng = np.random.default_rng(1)
    alarms, naive = 0, 0
    for _ in range(400):
        gain = rng.normal(0, 1, (5, len(IDS))) + by_seed * rng.normal(0, 1, (5, 1))
        gain += by_subject * rng.normal(0, 1, SUBJECTS)[UNITS.of]
        alarms += paired_test(gain, UNITS.of)["p"] < 0.05  # type: ignore[operator]
        naive += stats.ttest_1samp(gain.mean(axis=0), 0).pvalue < 0.05
    assert alarms / 400 < 0.075
    assert naive / 400 > 0.2 or not (by_seed or by_subject)


def test_a_real_gain_is_found() -> None:
    found = paired_test(np.random.default_rng(2).normal(0.2, 0.5, (5, len(IDS))), UNITS.of)
    assert found["p"] is not None and found["p"] < 0.01


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, None, 0.03, 0.005]) == pytest.approx([0.03, 0.06, None, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_views_of_a_subject_are_one_unit() -> None:
    assert UNITS.kind == "subject" and UNITS.notice == ""
    assert (UNITS.of.reshape(SUBJECTS, -1) == np.arange(SUBJECTS)[:, None]).all()


def test_few_subjects_fall_back_to_performances_with_a_notice() -> None:
    some = slice(0, 2 * ACTIONS * CAMERAS)
    units = independent_units(IDS[some], LABELS[some], {})
    assert units.kind == "performance" and "only 2 subjects" in units.notice
    views = units.of.reshape(-1, CAMERAS)
    assert (views == views[:, :1]).all() and len(np.unique(views)) == 2 * ACTIONS


def test_clips_of_unknown_performers_count_alone_with_a_notice() -> None:
    units = independent_units(["x", "y", "z"], np.array([0, 1, 1]), {})
    assert units.kind == "clip" and len(np.unique(units.of)) == 3 and "not known" in units.notice
    known = independent_units(["x", "y"] * 5, np.zeros(10, int), {"subject": np.arange(10) // 2})
    assert known.kind == "subject" and known.of.max() == 4


def test_a_verdict_takes_five_seeds() -> None:
    base = random_entry("base", 0.3, 5)
    few = compare_entries([base, random_entry("few", 0.95, 4, 1)], UNITS)["rows"][1]
    assert few["p"] < 0.001 and few["verdict"] == "undecided" and "over 4 seeds" in few["sentence"]
    rows = compare_entries(
        [base, random_entry("good", 0.95, 5, 1), random_entry("alike", 0.31, 5, 2), random_entry("bad", 0.02, 5, 3)],
        UNITS,
    )["rows"]
    assert [row.get("verdict") for row in rows] == [None, "better", "not shown", "worse"]
    assert "Is good better than base? Yes: +" in rows[1]["sentence"] and "Holm over 3" in rows[1]["sentence"]
    assert rows[1]["p_holm"] >= rows[1]["p"]


def test_rows_are_paired_by_id_and_seed() -> None:
    base, other = random_entry("base", 0.5, 2), random_entry("other", 0.6, 3, 1)
    order = np.random.default_rng(3).permutation(len(IDS))
    shuffled = {
        seed: replace(t, ids=[IDS[i] for i in order], labels=t.labels[order], scores=t.scores[order])
        for seed, t in other.tables.items()
    }
    straight = compare_entries([base, other], UNITS)["rows"][1]
    assert compare_entries([base, Entry("other", shuffled)], UNITS)["rows"][1] == straight
    assert straight["common_seeds"] == 2 and straight["seeds"] == [0, 1, 2]
    right = {s: t.scores.argmax(1) == LABELS for s, t in other.tables.items()}
    gain = np.mean([right[s].mean() - (base.tables[s].scores.argmax(1) == LABELS).mean() for s in (0, 1)])
    assert straight["gain"] == pytest.approx(gain)
    with pytest.raises(UserError, match="share no seed"):
        compare_entries([base, Entry("other", {7: other.tables[0]})], UNITS)


def test_class_changes_are_those_over_one_point() -> None:
    base, better = np.ones(len(IDS), bool), np.ones(len(IDS), bool)
    base[LABELS == 1], better[np.flatnonzero(LABELS == 2)[:6]] = False, False
    row = compare_entries([Entry("x", {0: table_of(base)}), Entry("y", {0: table_of(better)})], UNITS)["rows"][1]
    assert row["changes"] == [["b", 1.0], ["c", -0.25]]


def test_equal_scores_are_said_to_be_so() -> None:
    one = random_entry("one", 0.5, 5)
    row = compare_entries([one, Entry("two", one.tables)], UNITS)["rows"][1]
    assert row["verdict"] == "same" and "to the bit" in row["sentence"]


def test_tables_say_the_same_in_every_form(tmp_path: Path) -> None:
    entries = [random_entry("base", 0.3, 5), replace(random_entry("good", 0.9, 5, 1), published=88.5)]
    numbers: dict[str, Any] = {"title": "T", "published": "a paper", **compare_entries(entries, UNITS)}
    numbers["rows"].append({"title": "<also>", "same_as": "good", "published": 89.0})
    text = write_comparison(tmp_path, numbers)
    top1 = numbers["rows"][1]["top1"]
    shown = f"{100 * top1['mean']:.2f} ± {100 * np.std(top1['values'], ddof=1):.2f}"
    page = (tmp_path / "table.html").read_text()
    assert shown in text and shown in page and text == (tmp_path / "table.md").read_text()
    assert "| <also> | = good, by construction |" in text and "&lt;also&gt;" in page
    assert "| 88.5 |" in text and "a paper" in page
    assert not re.search(r"(?:src|href)=\"?https?:", page) and "<svg" in page
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [row["seed"] for row in rows] == ["mean", *"01234", "mean", *"01234", ""]
    assert float(rows[6]["top1"]) == pytest.approx(top1["mean"]) and rows[6]["verdict"] == "better"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two seeds of two members' scores, on the split of the small parameters."""
    monkeypatch.chdir(tmp_path)
    for name, share in (("joint", 0.5), ("bone", 0.8)):
        for seed in (0, 1):
            folder = tmp_path / "runs" / "small" / "development" / f"{name}-s{seed}" / "scores"
            folder.mkdir(parents=True)
            (folder / "metrics.json").write_text('{"chosen": "best"}')
            table = random_entry(name, share, 1, seed + len(name)).tables[0]
            save_table(folder / "best-a_test.npz", replace(table, split="a_test", member=f"{name}-s{seed}"))
    return tmp_path


def test_verb_finds_members_folders_and_files(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = small_params()
    content["members"] = {
        f"{name}-s{seed}": {"model": "protogcn", "stream": name, "seed": seed}
        for name in ("joint", "bone")
        for seed in (0, 1)
    }
    content["ensembles"] = {"two": {"members": {"joint-s0": 1, "bone-s0": 1}}}
    params = parse_params(content, "params")
    by_name = compare(["joint", "bone"], params)
    assert [row["seeds"] for row in by_name["rows"]] == [[0, 1], [0, 1]] and by_name["unit"] == "subject"
    assert "Is bone better than joint? Undecided" in capsys.readouterr().out
    runs = "runs/small/development"
    by_folder = compare([f"joint={runs}/joint-s0,{runs}/joint-s1", f"bone={runs}/bone-s0/scores,bone-s1"], params)
    assert by_folder["rows"] == by_name["rows"]
    file = compare(["joint-s0", f"{runs}/bone-s0/scores/best-a_test.npz"], params, out=place / "elsewhere")
    assert (place / "elsewhere" / "table.html").is_file() and file["rows"][1]["common_seeds"] == 1
    with pytest.raises(UserError, match="nothing: no such member, ensemble, folder or file; there are joint-s0"):
        compare(["joint", "nothing"], params)
    with pytest.raises(UserError, match="name at least two"):
        compare(["joint"], params)
    with pytest.raises(UserError, match="called alike"):
        compare(["joint", "joint"], params)
