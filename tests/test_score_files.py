"""Result files of the originals in and out, and fused: the figures of MMAction2's demonstration."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_run import CLASSES, annotations, small_params, write_raw

from components.params import parse_params
from components.preprocess import preprocess
from components.score_files import export_scores, fuse_scores, import_scores
from model.errors import UserError
from model.metrics import summary
from model.scoretable import load_table
from pipeline.cli import main


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dumped(path: str, content: Any) -> Path:
    Path(path).write_bytes(pickle.dumps(content))
    return Path(path)


def mmaction2(scores: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"pred_score": torch.from_numpy(row.copy()), "gt_label": torch.tensor([int(label)]), "pred_label": 0}
        for row, label in zip(scores, labels, strict=True)
    ]


def demo(small_golden: Path) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, Any]]:
    case = np.load(small_golden / "scores_fuse.npz")
    return {name: case[name] for name in ("joint", "bone")}, case["labels"], json.loads(str(case["results"]))


def check(results: dict[str, Any], tables: list[str]) -> None:
    for name, expected in results.items():
        assert main(["scores", "fuse", *tables, "--weights", *name.split(":"), "--out", "fused.npz"]) == 0
        found = summary(load_table("fused.npz"))
        for ours, theirs in (("top1", "top1"), ("top5", "top5"), ("mean_class_union", "mean_class")):
            assert found[ours] == pytest.approx(expected[theirs], abs=1e-12), name


def test_demonstration_from_dumps_of_mmaction2(small_golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    streams, labels, results = demo(small_golden)
    for name, scores in streams.items():
        dumped(f"{name}.pkl", mmaction2(scores, labels))
        assert main(["scores", "import", f"{name}.pkl", "--out", f"{name}.npz"]) == 0
    assert "ids by position" in capsys.readouterr().out
    check(results, ["joint.npz", "bone.npz"])


def test_demonstration_from_lists_of_pyskl(small_golden: Path) -> None:
    streams, labels, results = demo(small_golden)
    samples = [{"frame_dir": f"S{row:03d}", "label": int(label)} for row, label in enumerate(labels)]
    # The split's list is in another order than the file, which is the one that counts.
    dumped("ntu.pkl", {"split": {"val": [s["frame_dir"] for s in samples[::-1]]}, "annotations": samples})
    for name, scores in streams.items():
        dumped(f"{name}.pkl", list(scores))
        options = ["--annotations", "ntu.pkl", "--split", "val", "--member", name.upper()]
        assert main(["scores", "import", f"{name}.pkl", "--out", f"{name}.npz", *options]) == 0
    assert load_table("bone.npz").ids[3] == "S003" and load_table("bone.npz").member == "BONE"
    check(results, ["joint.npz", "bone.npz"])


@pytest.fixture()
def packed(place: Path) -> tuple[dict[str, Any], Path]:
    """The small dataset, one test clip of it empty, and its store."""
    content = annotations()
    empty = next(s for s in content["annotations"] if s["frame_dir"] == content["split"]["a_test"][2])
    empty["keypoint"] = empty["keypoint"] * 0
    raw = write_raw(place / "raw", content)
    preprocess(parse_params(small_params(), "here"), raw, place / "packed")
    return content, raw / "small.pkl"


def test_imported_scores_join_those_of_our_members(
    packed: tuple[dict[str, Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    content, pickled = packed
    test = [s for s in content["annotations"] if s["frame_dir"] in content["split"]["a_test"]]
    labels = np.array([sample["label"] for sample in test])
    scores = np.random.default_rng(0).dirichlet(np.ones(3), len(test)).astype(np.float32)
    for name, file in (("list", list(scores)), ("dump", mmaction2(scores, labels))):
        path = dumped(f"{name}.pkl", file)
        table = import_scores(path, out=Path(f"{name}.npz"), annotations=pickled, split="a_test", data=Path("packed"))
    assert "1 samples are left out" in capsys.readouterr().out
    first, second = load_table("list.npz"), load_table("dump.npz")
    assert first.classes == CLASSES and len(first) == len(test) - 1 and test[2]["frame_dir"] not in first.ids
    assert first.ids == second.ids and np.array_equal(first.scores, second.scores)
    kept = [row for row in range(len(test)) if row != 2]
    assert np.array_equal(table.scores, scores[kept]) and np.array_equal(table.labels, labels[kept])
    fused = fuse_scores([Path("list.npz"), Path("dump.npz")], weights=[1, 2])
    np.testing.assert_allclose(fused.scores, 3 * scores[kept], rtol=1e-6)


def test_there_and_back(packed: tuple[dict[str, Any], Path]) -> None:
    content, pickled = packed
    count = len(content["split"]["a_train"])
    scores = np.random.default_rng(1).dirichlet(np.ones(3), count).astype(np.float32)
    path = dumped("theirs.pkl", list(scores))
    import_scores(path, out=Path("ours.npz"), annotations=pickled, split="a_train")
    for form in ("pyskl", "mmaction2"):
        export_scores(Path("ours.npz"), Path(f"{form}.pkl"), form=form, annotations=pickled)
        import_scores(
            Path(f"{form}.pkl"), out=Path(f"{form}.npz"), annotations=pickled, split="a_train", member="theirs"
        )
        assert Path(f"{form}.npz").read_bytes() == Path("ours.npz").read_bytes()
    back = pickle.loads(Path("pyskl.pkl").read_bytes())
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(back, scores, strict=True))
    sample = pickle.loads(Path("mmaction2.pkl").read_bytes())[4]
    assert sample["pred_label"].item() == scores[4].argmax() and sample["gt_label"].shape == (1,)


def test_scores_before_the_softmax(small_golden: Path) -> None:
    streams, labels, _ = demo(small_golden)
    logits = np.log(streams["joint"]) + 3
    table = import_scores(dumped("x.pkl", mmaction2(logits, labels)), out=Path("x.npz"), softmax=True)
    np.testing.assert_allclose(table.scores, streams["joint"], atol=1e-6)


ROW = np.array([0.2, 0.8], np.float32)


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ([ROW, ROW], [], "give --annotations and --split"),
        ([ROW], ["--annotations", "ann.pkl"], "holds 1 samples, split 'test' of ann.pkl has 2"),
        ([ROW, ROW], ["--annotations", "ann.pkl", "--split", "val"], "no split 'val'; it has test"),
        (mmaction2(np.stack([ROW, ROW]), np.array([0, 0])), ["--annotations", "ann.pkl"], "row 1 has the label 0"),
        ([ROW, ROW[:1]], ["--annotations", "ann.pkl"], "one row of class scores"),
        ([ROW, np.eye(2, dtype=np.float32)], ["--annotations", "ann.pkl"], "one row of class scores"),
        ([{"pred_score": ROW}], [], "no 'gt_label'"),
        ([{"pred_score": ROW, "gt_label": torch.tensor([0, 1])}], [], "one whole number"),
        ({"a": ROW}, [], "no list of samples"),
        ([], [], "no list of samples"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    content: Any, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = [{"frame_dir": "a", "label": 0}, {"frame_dir": "b", "label": 1}]
    dumped("ann.pkl", {"split": {"test": ["a", "b"]}, "annotations": samples})
    dumped("x.pkl", content)
    assert main(["scores", "import", "x.pkl", "--out", "x.npz", *options]) == 2
    assert words in capsys.readouterr().err and not Path("x.npz").exists()


def test_exports_that_cannot_be_are_refused(packed: tuple[dict[str, Any], Path]) -> None:
    content, pickled = packed
    scores = np.tile(np.array([[0.2, 0.3, 0.5]], np.float32), (12, 1))
    path = dumped("x.pkl", list(scores))
    import_scores(path, out=Path("x.npz"), annotations=pickled, split="a_test", data=Path("packed"))
    with pytest.raises(UserError, match="x.npz: lacks 1 samples of .*small.pkl, first 'clip"):
        export_scores(Path("x.npz"), Path("y.pkl"), annotations=pickled)
    with pytest.raises(UserError, match="--form csv"):
        export_scores(Path("x.npz"), Path("y.pkl"), form="csv")
    content["annotations"][12]["label"] = 1 - content["annotations"][12]["label"]
    other = dumped("other.pkl", content)
    with pytest.raises(UserError, match="packed: holds other samples or labels of 'a_test' than other.pkl"):
        import_scores(path, out=Path("z.npz"), annotations=other, split="a_test", data=Path("packed"))
