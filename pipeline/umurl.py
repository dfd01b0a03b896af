"""Run UmURL's stages through DVC and print what the features are worth beside those of an untrained encoder."""

from pathlib import Path
from typing import Any

from components.files import read_json
from components.params import Params
from components.umurl import ENCODERS
from pipeline.run import dvc

STAGES = "pipeline/unsupervised/dvc.yaml"


def umurl(params: Params) -> int:
    """Pre-train, evaluate and draw what is out of date; then print linear evaluation and retrieval per split.

    Args:
        params: the parameters in params.yaml of this folder.

    Raises:
        UserError: a stage failed; its own message stands above.
    """
    dvc(["repro", STAGES])
    place = Path("unsupervised") / params.dataset / params.protocol
    linear, retrieval = (read_json(place / stage / "metrics.json") for stage in ("linear", "retrieval"))
    print(f"\n{params.dataset}/{params.protocol}, {params.entry.split.name}: encoders without labels, top-1\n")
    print("\n".join(table(linear, retrieval)))
    print(f"\npicture: {place / 'plot' / 'features.png'}")
    print(f"score tables: {place / 'linear'}/<encoder>/scores")
    return 0


def table(linear: dict[str, Any], retrieval: dict[str, Any]) -> list[str]:
    """Lines per split and encoder: top-1 of linear evaluation and of retrieval, in percent."""
    chosen = next(iter(linear.values()))["chosen"]
    width = max(len(encoder) for encoder in ENCODERS)
    lines = []
    for split, values in next(iter(retrieval.values())).items():
        clips = values["count"]
        lines.append(f"{f'{split} ({clips} clips)':{width + 12}}   linear   retrieval")
        for encoder in ENCODERS:
            figures = (linear[encoder][chosen][split]["top1"], retrieval[encoder][split]["top1"])
            lines.append(f"{encoder:{width + 12}}   {100 * figures[0]:6.2f}   {100 * figures[1]:9.2f}")
        lines.append("")
    if chosen == "best_on_test":
        lines.append("linear: best look at the test split itself, as the released code reports; no estimate")
    else:
        lines.append("linear: classifier after the last epoch; retrieval: class of the nearest training clips")
    return lines
