"""The verb `reproduce`: given or trained weights by a recipe's test protocol, beside the published figures."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from components.files import read_json
from components.params import Params, Strict
from components.storage import file_md5
from components.weights import checkpoint_file
from model.errors import UserError
from pipeline.catalogue import Released, expanded_recipe, load_expanded, params_of, released
from pipeline.workspace import ROOT, fill_workspace, keep_members, run_in

# Points of percent. The same weights must give the same figure up to its printed digits and a few clips at the
# border of two classes; a training of one's own has another seed.
TOLERANCE_GIVEN, TOLERANCE_TRAINED = 0.1, 0.5


def reproduce(
    recipe: str,
    /,
    *,
    checkpoints: list[str] | None = None,
    data: Path | None = None,
    folder: Path | None = None,
    tolerance: float | None = None,
    jobs: int = 1,
) -> int:
    """Print our figure, the published one and pass or fail for every stream and ensemble of a recipe.

    With checkpoints, a workspace tests them as members that are not trained. Without, `folder` holds a finished run
    of the recipe (`sixstream run`). The exit code is 1 when a figure fails.

    Args:
        recipe: name of the recipe, for instance protogcn/ntu60-xsub.
        checkpoints: STREAM=FILE or STREAM-sSEED=FILE, the file being an original checkpoint (.pth), one of ours, or
            models:/NAME/VERSION.
        data: folder with the annotations, as for preprocess; needed with checkpoints.
        folder: the workspace (default: scratch/<recipe> with checkpoints, else the present folder).
        tolerance: points of percent allowed (default: 0.1 either way for given weights, 0.5 below for trained ones).
        jobs: members tested side by side.

    Raises:
        UserError: no such recipe, member or data, or `folder` holds a run of something else.
    """
    chosen = released(recipe)
    if not chosen.published:
        raise UserError(f"{recipe}: no figures were published that could be compared with")
    if checkpoints and chosen.umurl:
        raise UserError(f"{recipe}: give no checkpoints; run `sixstream umurl` with its parameters, then reproduce it")
    if checkpoints:
        folder = (folder or ROOT / "scratch" / recipe.replace("/", "-")).resolve()
        fill_workspace(folder, with_weights(recipe, checkpoints, data, folder / "weights"))
        params = load_expanded(folder / "params.yaml")
        raw = folder / "data" / "raw" / params.dataset
        raw.parent.mkdir(parents=True, exist_ok=True)
        assert data is not None
        raw.unlink(missing_ok=True)
        raw.symlink_to(data.resolve(), target_is_directory=True)
        if run_in(folder, jobs, "--until", "ensemble"):
            raise UserError(f"{folder}: the run failed, its message stands above")
    else:
        folder = folder or Path.cwd()
        params = load_expanded(folder / "params.yaml")
        if not chosen.umurl and params.entry.recipe.released != recipe:
            says = params.entry.recipe.released or "no released recipe"
            raise UserError(
                f"{folder}: its dataset {params.dataset!r} follows {says}, not {recipe}; name another folder"
            )
    split, place = params.entry.split.test[0], Path(params.dataset) / params.protocol
    if chosen.umurl:
        ours = pretraining_figures(folder / "unsupervised" / place, split)
    else:
        ours = member_figures(chosen, read_json(folder / "ensembles" / place / "metrics.json"), split)
    allowed = tolerance if tolerance is not None else TOLERANCE_GIVEN if checkpoints else TOLERANCE_TRAINED
    lines, passed = comparison(chosen, ours, allowed, both_ways=bool(checkpoints))
    print("\n".join([f"\n{recipe} on {split}, protocol {params.protocol}", "", *lines]))
    if changed := changes(chosen, recipe, params):
        print(f"not as released: {', '.join(changed)}")
    return 0 if passed else 1


def member_figures(recipe: Released, metrics: dict[str, Any], split: str) -> dict[str, float]:
    """Percent on `split` by stream and ensemble, of those that were tested; a stream's figure is its first member's."""
    found = {name: entry[split] for name, entry in metrics["ensembles"].items()}
    for stream in recipe.streams:
        member = metrics["members"].get(f"{recipe.model}-{stream}-s0")
        if member is not None:
            found[stream] = member[member["chosen"]][split]
    return {what: 100 * values[recipe.metric] for what, values in found.items()}


def pretraining_figures(place: Path, split: str) -> dict[str, float]:
    """Percent on `split` of linear evaluation and retrieval with the pre-trained encoder."""
    linear = read_json(place / "linear" / "metrics.json")["umurl"]
    retrieval = read_json(place / "retrieval" / "metrics.json")["umurl"]
    return {"linear": 100 * linear[linear["chosen"]][split]["top1"], "retrieval": 100 * retrieval[split]["top1"]}


def changes(recipe: Released, name: str, params: Params) -> list[str]:
    """What of the parameters differs from the recipe."""
    ours: Strict = params.umurl if recipe.umurl else params.entry.recipe
    theirs = type(ours).model_validate(recipe.umurl or expanded_recipe(name))
    return [key for key, value in theirs.model_dump().items() if ours.model_dump()[key] != value]


def with_weights(recipe: str, checkpoints: list[str], data: Path | None, keep: Path) -> dict[str, Any]:
    """The parameters of the recipe with only the members that have a checkpoint, which are tested and not trained.

    The checkpoints are copied, or imported, into the folder `keep`.
    """
    if data is None or not data.is_dir():
        raise UserError(f"--data {data or ''}: name the folder with the annotations of {recipe}")
    content = params_of(recipe)
    chosen = released(recipe)
    weights = {}
    for given in checkpoints:
        member, equals, place = given.partition("=")
        member = member if "-s" in member else f"{member}-s0"
        if not equals or member not in chosen.members:
            raise UserError(f"--checkpoints {given}: write one of {', '.join(chosen.members)}, = and its checkpoint")
        file = _kept(chosen, content["members"][f"{chosen.model}-{member}"], place, keep / f"{member}.pt")
        weights[f"{chosen.model}-{member}"] = {"weights": str(file), "weights_md5": file_md5(file)}
    content = keep_members(content, list(weights))
    members = {name: {**content["members"][name], "train": "none", **weights[name]} for name in weights}
    return {**content, "members": members}


def _kept(recipe: Released, member: dict[str, Any], place: str, to: Path) -> Path:
    """A checkpoint of ours at `to`, from a file, a registered model or an original checkpoint."""
    to.parent.mkdir(parents=True, exist_ok=True)
    if place.endswith((".pth", ".pth.tar")):
        from components.checkpoints import import_checkpoint
        from model.nets.defaults import stream_options

        settings, stream = recipe.recipe, member["stream"]
        options = stream_options(recipe.model, stream) | settings.get("network", {}).get(recipe.model, {})
        import_checkpoint(
            Path(place),
            model=recipe.model,
            layout=settings.get("finish") or recipe.layout,
            classes=recipe.classes,
            options=[f"{key}={json.dumps(value)}" for key, value in options.items()],
            stream=stream,
            out=to,
        )
        return to
    with tempfile.TemporaryDirectory(prefix="sixstream-") as scratch:
        file = checkpoint_file(place, Path(scratch))
        if not file.is_file():
            raise UserError(f"{place}: no such checkpoint")
        return Path(shutil.copyfile(file, to))


def comparison(
    recipe: Released, ours: dict[str, float], tolerance: float, *, both_ways: bool
) -> tuple[list[str], bool]:
    """A line per published figure, and whether all that were tested pass; `ours` are percent by stream and ensemble.

    A figure passes when it is at most `tolerance` points below the published one and, `both_ways`, at most as much
    above.
    """
    measure = "mean class" if recipe.metric == "mean_class" else "top-1"
    width = max(10, *map(len, recipe.published))
    lines = [f"{measure:{width}}    ours  published  difference"]
    verdicts = []
    for what, published in recipe.published.items():
        if what not in ours:
            lines.append(f"{what:{width}}       -     {published:6.2f}              not tested")
            continue
        off = ours[what] - published
        # Published figures have two decimals.
        verdicts.append(-tolerance - 0.005 <= off and (not both_ways or off <= tolerance + 0.005))
        verdict = "pass" if verdicts[-1] else "fail"
        lines.append(f"{what:{width}}  {ours[what]:6.2f}     {published:6.2f}      {off:+6.2f}  {verdict}")
    bound = f"within {tolerance:g} points" if both_ways else f"at most {tolerance:g} points below"
    return [*lines, "", f"pass: {bound} of the published figure"], bool(verdicts) and all(verdicts)
