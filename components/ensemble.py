"""Members' score tables → fused score tables and one file of metrics."""

from pathlib import Path
from typing import Any

from components.files import read_json, staged_dir, write_json
from components.params import Params
from model.ensemble import fuse
from model.errors import UserError
from model.metrics import summary
from model.scoretable import load_table, save_table


def ensemble(params: Params, runs: Path, out: Path) -> None:
    """Fuse the scores of every ensemble named in the parameters, on every split that its members were scored on.

    Writes `<name>/<split>.npz` and `metrics.json`: members and ensembles, each split's top-1, top-5 and mean class.

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


def _scores(runs: Path, member: str) -> Path:
    folder = runs / member / "scores"
    if not folder.is_dir():
        raise UserError(f"{folder}: member {member!r} has no scores; run `sixstream evaluate` for it first")
    return folder
