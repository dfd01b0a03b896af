"""Result files of the original systems ↔ score tables: `sixstream scores import`, `scores export`, `scores fuse`.

ProtoGCN and PYSKL write a pickled list of class probabilities per sample, MMAction2 a list of dictionaries with
`pred_score` and `gt_label`. Neither says which sample a row is of: rows are in the order of the annotation file, by
which they get their ids here.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from components.annotations import open_annotations
from components.files import write_bytes
from components.storage import dvc_md5
from model.ensemble import fuse
from model.errors import UserError
from model.metrics import summary
from model.scoretable import ScoreTable, load_table, save_table
from model.store import open_store

FORMATS = ("pyskl", "mmaction2")
BY_POSITION = "by position"  # data hash of a table whose ids only number its rows


def import_scores(
    file: Path,
    /,
    *,
    out: Path,
    annotations: Path | None = None,
    split: str = "test",
    data: Path | None = None,
    member: str = "",
    softmax: bool = False,
) -> ScoreTable:
    """Read a result file of ProtoGCN, PYSKL or MMAction2 as a score table.

    With `data` the table can be fused with those of our members: it takes over the store's classes and data hash,
    and samples that the store set aside are left out.

    Args:
        file: the pickle that the original wrote.
        out: the table to write (.npz).
        annotations: the annotation pickle that it was tested on, or its folder; only a MMAction2 dump can do without.
        split: the split that was tested.
        data: folder of the packed store of the same annotations.
        member: name of the table in messages and ensembles (default: the file's).
        softmax: the file holds scores before the softmax; take it.

    Raises:
        UserError: a file of another kind, or scores, labels and annotations that do not belong together.
    """
    scores, own_labels = _read(file)
    if softmax:
        shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores = shifted / shifted.sum(axis=1, keepdims=True)
    if annotations is not None:
        ids, labels = annotated(annotations, split)
        if len(ids) != len(scores):
            raise UserError(
                f"{file}: holds {len(scores)} samples, split {split!r} of {annotations} has {len(ids)}; name the split "
                "and the annotation file that were tested"
            )
        data_hash = dvc_md5(annotations)
    elif own_labels is None:
        raise UserError(f"{file}: does not say which samples it scores; give --annotations and --split")
    else:
        ids, labels, data_hash = [f"{row:06d}" for row in range(len(scores))], own_labels, BY_POSITION
    if own_labels is not None and (own_labels != labels).any():
        row = int(np.flatnonzero(own_labels != labels)[0])
        raise UserError(
            f"{file}: row {row} has the label {own_labels[row]}, sample {ids[row]!r} of {annotations} has "
            f"{labels[row]}; the two are not in the same order or not of the same data"
        )
    classes = [f"class {k}" for k in range(scores.shape[1])]
    if data is not None:
        store = open_store(data)
        known = {store.ids[position]: int(store.labels[position]) for position in store.split(split)}
        rows = [row for row, id in enumerate(ids) if id in known]
        if len(rows) < len(known) or any(known[ids[row]] != labels[row] for row in rows):
            raise UserError(
                f"{data}: holds other samples or labels of {split!r} than {annotations or file}; pack those"
            )
        if len(store.classes) != scores.shape[1]:
            raise UserError(f"{file}: scores {scores.shape[1]} classes, {data} has {len(store.classes)}")
        if len(rows) < len(ids):
            print(f"{len(ids) - len(rows)} samples are left out, which {data} set aside")
        ids, labels, scores = [ids[row] for row in rows], labels[rows], scores[rows]
        classes, data_hash = list(store.classes), store.data_hash
    table = ScoreTable(ids, labels, scores.astype(np.float32), split, member or file.stem, data_hash, classes)
    save_table(out, table)
    print(f"{file} → {out}: {_figures(table)}" + (", ids by position" if data_hash == BY_POSITION else ""))
    return table


def export_scores(
    table: Path, out: Path, /, *, form: str = "pyskl", annotations: Path | None = None, split: str = ""
) -> None:
    """Write a score table as the result file of ProtoGCN and PYSKL, or of MMAction2.

    Args:
        table: the score table (.npz).
        out: the pickle to write.
        form: pyskl (also ProtoGCN's) or mmaction2.
        annotations: annotation pickle whose order the rows take; without it they keep the table's.
        split: split of the annotation file (default: the table's).

    Raises:
        UserError: no such table or form, or a sample of the split that the table lacks.
    """
    if form not in FORMATS:
        raise UserError(f"--form {form}: there are {', '.join(FORMATS)}")
    scored = load_table(table)
    rows = list(range(len(scored)))
    if annotations is not None:
        position = {id: row for row, id in enumerate(scored.ids)}
        ids, labels = annotated(annotations, split or scored.split)
        missing = [id for id in ids if id not in position]
        if missing:
            raise UserError(f"{table}: lacks {len(missing)} samples of {annotations}, first {missing[0]!r}")
        rows = [position[id] for id in ids]
        if (scored.labels[rows] != labels).any():
            raise UserError(f"{table}: labels differ from those of {annotations}; name the file that was scored")
    if form == "pyskl":
        content: list[Any] = [scored.scores[row].copy() for row in rows]
    else:
        import torch

        content = [
            {
                "pred_score": torch.from_numpy(scored.scores[row].copy()),
                "pred_label": torch.tensor([int(scored.scores[row].argmax())]),
                "gt_label": torch.tensor([int(scored.labels[row])]),
            }
            for row in rows
        ]
    write_bytes(out, pickle.dumps(content, protocol=4))
    print(f"{table} → {out}: {len(rows)} samples")


def fuse_scores(tables: list[Path], /, *, weights: list[float] | None = None, out: Path | None = None) -> ScoreTable:
    """Fuse score tables, ours and imported ones, by sample id, and print their figures.

    Args:
        tables: score tables of the same split, data and classes.
        weights: a weight for each (default: 1).
        out: also write the fused table here (.npz).

    Raises:
        UserError: tables that do not describe the same samples, labels, classes, data or split.
    """
    read = [load_table(path) for path in tables]
    shares = weights or [1.0] * len(read)
    fused = fuse(read, shares, "fused")
    for table, weight in zip(read, shares, strict=True):
        print(f"{table.member} x {weight:g}: {_figures(table)}")
    print(f"fused: {_figures(fused)}")
    if out is not None:
        save_table(out, fused)
    return fused


def annotated(path: Path, split: str) -> tuple[list[str], np.ndarray]:
    """Ids and labels (N,) int64 of a split in the order of its annotation file.

    Raises UserError naming the file when it has no such split, or a sample without id or label.
    """
    opened = open_annotations(path)
    splits = opened.splits()
    if split not in splits:
        raise UserError(f"{path}: has no split {split!r}; it has {', '.join(splits)}")
    label_of = dict(zip(opened.ids, opened.labels, strict=True))
    return splits[split], np.array([label_of[id] for id in splits[split]], np.int64)


def _read(file: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores (N, K) float64 or as stored, and labels (N,) int64 where the file holds them."""
    from components.torch_files import load_scores_pickle

    content = load_scores_pickle(file)
    if not isinstance(content, list) or not content:
        raise UserError(f"{file}: holds no list of samples; name the result file of a test")
    labels = None
    if all(isinstance(sample, dict) for sample in content):
        for key in ("pred_score", "gt_label"):
            if not all(key in sample for sample in content):
                raise UserError(f"{file}: a sample has no '{key}'; dump the results of the test with MMAction2 1.x")
        found = [np.asarray(sample["gt_label"]).reshape(-1) for sample in content]
        if not all(len(label) == 1 and label.dtype.kind in "iu" for label in found):
            raise UserError(f"{file}: 'gt_label' must be one whole number per sample")
        labels = np.concatenate(found).astype(np.int64)
        content = [sample["pred_score"] for sample in content]
    rows = [np.asarray(row) for row in content]
    shapes = {row.size if row.dtype.kind == "f" and row.size == max(row.shape, default=0) else None for row in rows}
    if len(shapes) != 1 or None in shapes:
        raise UserError(f"{file}: every sample needs one row of class scores of the same length")
    return np.stack([row.reshape(-1) for row in rows]), labels


def _figures(table: ScoreTable) -> str:
    found = summary(table)
    return (
        f"{found['count']} samples, top-1 {found['top1']:.2%}, top-5 {found['top5']:.2%}, "
        f"mean class {found['mean_class']:.2%} (by MMAction2's count {found['mean_class_union']:.2%})"
    )
