"""Members' score tables → fused score tables and one file of metrics."""

from pathlib import Path
from typing import Any

from components.files import read_json, staged_dir, write_json
from components.params import Params
from components.tracked import flat_metrics
from model.ensemble import fuse
from model.errors import UserError
from model.metrics import summary
from model.scoretable import load_table, save_table

CURVES = ("train/loss", "dev/top1")


def ensemble(params: Params, runs: Path, out: Path) -> None:
    """Fuse the scores of every ensemble named in the parameters, on every split that its members were scored on.

    Writes `<name>/<split>.npz` and `metrics.json`: members and ensembles, each split's top-1, top-5 and mean class. For
    `dvc metrics` and `dvc plots` besides: `summary.json`, the counted figures by the names that they have in tracking,
    and `curves/<figure>/<member>.json`, learning curves.

    Args:
        params: the parameters; `ensembles` names members and weights.
        runs: folder with one `<member>/scores` folder per member.
        out: folder for the fused tables.

    Raises:
        UserError: a table is missing, or two tables do not hold the same samples, labels or data.
    """
    metrics: dict[str, Any] = {"members": {}, "ensembles": {}}
    for name in params.members:
        metrics["members"][name] = read_json(_scores(runs, name) / "metrics.json")
    with staged_dir(out) as aside:
        for name, spec in params.ensembles.items():
            weights = list(spec.members.values())
            chosen = {m: metrics["members"][m]["chosen"] for m in spec.members}
            scored = [metrics["members"][m][which] for m, which in chosen.items()]
            entry: dict[str, Any] = {"members": dict(spec.members)}
            for split in [s for s in scored[0] if s != "epoch" and all(s in other for other in scored)]:
                tables = [load_table(_scores(runs, m) / f"{which}-{split}.npz") for m, which in chosen.items()]
                fused = fuse(tables, weights, name)
                save_table(aside / name / f"{split}.npz", fused)
                entry[split] = summary(fused)
            metrics["ensembles"][name] = entry
        write_json(aside / "metrics.json", metrics)
        counted = {name: found[found["chosen"]] for name, found in metrics["members"].items()}
        counted |= {f"ensemble {name}": found for name, found in metrics["ensembles"].items()}
        write_json(aside / "summary.json", {name: _shown(params, found) for name, found in counted.items()})
        for name in params.members:
            history = runs / name / "train" / "history.json"
            curve = read_json(history) if history.is_file() else []  # a member that was given has none
            for figure in CURVES:
                points = [{"epoch": entry["epoch"], figure: entry[figure]} for entry in curve if figure in entry]
                if points:
                    write_json(aside / "curves" / figure / f"{name}.json", points)


def _shown(params: Params, splits: dict[str, Any]) -> dict[str, float]:
    figures = flat_metrics(params, splits).items()
    return {name: value for name, value in figures if name.rpartition("/")[2] in ("top1", "top5", "mean_class")}


def _scores(runs: Path, member: str) -> Path:
    folder = runs / member / "scores"
    if not folder.is_dir():
        raise UserError(f"{folder}: member {member!r} has no scores; run `sixstream evaluate` for it first")
    return folder
