"""The verb `reproduce`: given or trained weights by a recipe's test protocol, beside the published figures."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from components.files import read_json
from components.storage import file_md5
from components.weights import checkpoint_file
from model.errors import UserError
from pipeline.catalogue import Released, load_expanded, params_of, released
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
    if not chosen.published or not chosen.members:
        raise UserError(f"{recipe}: no figures of single members were published, so there is nothing to compare with")
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
        follows = params.entry.recipe.released
        if follows != recipe:
            says = params.entry.recipe.released or "no released recipe"
            raise UserError(
                f"{folder}: its dataset {params.dataset!r} follows {says}, not {recipe}; name another folder"
            )
    metrics = read_json(folder / "ensembles" / params.dataset / params.protocol / "metrics.json")
    allowed = tolerance if tolerance is not None else TOLERANCE_GIVEN if checkpoints else TOLERANCE_TRAINED
    lines, passed = comparison(chosen, metrics, params.entry.split.test[0], allowed, both_ways=bool(checkpoints))
    print("\n".join([f"\n{recipe} on {params.entry.split.test[0]}, protocol {params.protocol}", "", *lines]))
    return 0 if passed else 1


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
    recipe: Released, metrics: dict[str, Any], split: str, tolerance: float, *, both_ways: bool
) -> tuple[list[str], bool]:
    """A line per published figure, and whether all that were tested pass.

    A figure passes when it is at most `tolerance` points below the published one and, `both_ways`, at most as much
    above.
    """
    measure = "mean class" if recipe.metric == "mean_class" else "top-1"
    width = max(map(len, recipe.published))
    lines = [f"{measure:{max(width, 10)}}    ours  published  difference"]
    verdicts = []
    for what, published in recipe.published.items():
        title = f"{what:{max(width, 10)}}"
        entry = _entry(recipe, metrics, what)
        if entry is None:
            lines.append(f"{title}       -     {published:6.2f}              not tested")
            continue
        ours = 100 * entry[split][recipe.metric]
        off = ours - published
        # Published figures have two decimals.
        verdicts.append(-tolerance - 0.005 <= off and (not both_ways or off <= tolerance + 0.005))
        verdict = "pass" if verdicts[-1] else "fail"
        lines.append(f"{title}  {ours:6.2f}     {published:6.2f}      {off:+6.2f}  {verdict}")
    bound = f"within {tolerance:g} points" if both_ways else f"at most {tolerance:g} points below"
    return [*lines, "", f"pass: {bound} of the published figure"], bool(verdicts) and all(verdicts)


def _entry(recipe: Released, metrics: dict[str, Any], what: str) -> dict[str, Any] | None:
    """The figures of an ensemble or of a stream's first member; None when it was not tested."""
    if what in (recipe.ensembles or {}):
        found: dict[str, Any] | None = metrics["ensembles"].get(what)
        return found
    member = metrics["members"].get(f"{recipe.model}-{what}-s0")
    return None if member is None else member[member["chosen"]]
