"""Is the embedded sample hard enough to tell things apart? The whole pipeline on several seeds of its data."""

from pathlib import Path
from typing import Any

import yaml

from components.files import read_json, write_text
from model.errors import UserError
from pipeline.workspace import ROOT, fill_workspace, run_in


def sample_study(seeds: int = 4, jobs: int = 1, folder: Path | None = None) -> int:
    """Run the pipeline on data seeds 0, 1, …; print and write a Markdown table of test top-1.

    Args:
        seeds: number of data seeds.
        jobs: members trained side by side.
        folder: where the workspaces go (default: scratch/sample-study).
    """
    folder = (folder or ROOT / "scratch" / "sample-study").resolve()
    columns = []
    for seed in range(seeds):
        content = yaml.safe_load((ROOT / "params.yaml").read_text())
        content["dataset"] = "sample"
        content["sample_data"] = {"seed": seed}
        place = folder / f"seed{seed}"
        fill_workspace(place, content)
        if run_in(place, jobs):
            raise UserError(f"{place}: the run failed; its message stands above. Finished seeds are kept")
        columns.append(read_json(place / "ensembles" / "sample" / content["protocol"] / "metrics.json"))
    text = study_table(columns)
    write_text(folder / "table.md", text)
    print(text)
    return 0


def study_table(columns: list[dict[str, Any]]) -> str:
    """Markdown: a row per member and ensemble, a column per data seed; says how often six beat every member."""
    lines = ["| test top-1 % | " + " | ".join(f"data seed {n}" for n in range(len(columns))) + " |"]
    lines.append("|---|" + "---|" * len(columns))
    best = [max(_top1(entry[entry["chosen"]]) for entry in m["members"].values()) for m in columns]
    for name in columns[0]["members"]:
        values = [_top1(m["members"][name][m["members"][name]["chosen"]]) for m in columns]
        lines.append(f"| {name} | " + " | ".join(f"{100 * v:.1f}" for v in values) + " |")
    for name in columns[0]["ensembles"]:
        values = [_top1(m["ensembles"][name]) for m in columns]
        lines.append(f"| **{name}** | " + " | ".join(f"**{100 * v:.1f}**" for v in values) + " |")
    largest = max(columns[0]["ensembles"], key=lambda n: len(columns[0]["ensembles"][n]["members"]))
    wins = sum(_top1(m["ensembles"][largest]) > b for m, b in zip(columns, best, strict=True))
    lines.append("")
    lines.append(f"`{largest}` is above every member for {wins} of {len(columns)} data seeds.")
    return "\n".join(lines) + "\n"


def _top1(entry: dict[str, Any]) -> float:
    """Top-1 on the main test split: the first split that is not the development split."""
    split = next(s for s, v in entry.items() if s != "development" and isinstance(v, dict) and "top1" in v)
    return float(entry[split]["top1"])
