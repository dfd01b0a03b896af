"""Released training recipes by name: the files in pipeline/recipes, and the parameters that name one.

An entry says `base:` NAME or [NAMES]; it takes those over in order and adds its own: mappings are joined key by key,
anything else is replaced. Names that begin with an underscore are parts of recipes.
"""

import copy
import difflib
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator

from components.files import write_json
from components.params import Options, Params, Protocol, Split, Strict, parse_params, read_params
from model.errors import UserError

FOLDER = Path(__file__).parent / "recipes"


class Released(Strict):
    """A released recipe, its bases joined."""

    model: str = Field(description="network name")
    layout: str = Field(description="skeleton of the annotations")
    classes: int = Field(gt=0, description="number of classes")
    clips: tuple[int, int] = Field(description="training and test clips")
    metric: Literal["top1", "mean_class"] = Field("top1", description="figure that was published")
    protocol: Protocol = Field(description="which epoch the published figures are of")
    members: list[str] = Field(default_factory=list, description="STREAM-sSEED of each network")
    ensembles: dict[str, dict[str, int | float]] | None = Field(None, description="name: weights by member")
    starts_from: str = Field("", description="recipe whose weights it starts from, classifier replaced")
    published: dict[str, float] = Field(default_factory=dict, description="percent by stream or ensemble")
    published_top5: dict[str, float] = Field(default_factory=dict, description="the same, top-5")
    data: Options = Field(description="what a data set's `data` takes over")
    split: Split = Field(description="split")
    recipe: Options = Field(default_factory=dict, description="what a data set's `recipe` takes over")
    umurl: Options = Field(default_factory=dict, description="the part `umurl` of params.yaml, for pre-training")

    @field_validator("members")
    @classmethod
    def _forms(cls, members: list[str]) -> list[str]:
        for member in members:
            stream, dash, seed = member.rpartition("-s")
            if not stream or not dash or not seed.isdecimal():
                raise ValueError(f"{member!r} is not of the form STREAM-sSEED")
        return members

    @property
    def streams(self) -> list[str]:
        """The streams of the members, each once."""
        return list(dict.fromkeys(member.rpartition("-s")[0] for member in self.members))


@cache
def _files() -> dict[str, dict[str, Any]]:
    """Every entry of every file, bases not yet joined."""
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        doubled = entries.keys() & content
        assert not doubled, f"{path.name} repeats {doubled}"
        entries.update(content)
    return entries


def recipe_names() -> list[str]:
    """The names of all released recipes."""
    return [name for name in _files() if not name.startswith("_")]


def released(name: str) -> Released:
    """The recipe called `name`. Raises UserError naming close ones."""
    if name not in recipe_names():
        close = difflib.get_close_matches(name, recipe_names(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "`sixstream recipes` lists them"
        raise UserError(f"no released recipe is called {name!r}; {hint}")
    try:
        return Released.model_validate(_joined(name))
    except ValidationError as error:  # our own file is wrong
        raise AssertionError(f"recipe {name}: {error}") from None


def _joined(name: str) -> dict[str, Any]:
    own = dict(_files()[name])
    bases = own.pop("base", [])
    entry: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        entry = merge(entry, _joined(base))
    return merge(entry, own)


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`: mappings are joined key by key, anything else is replaced."""
    result = copy.deepcopy(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge(result[key], value) if both else copy.deepcopy(value)
    return result


def expand(content: Any, where: str = "params.yaml") -> Any:
    """Parameters in which every `recipe: NAME`, or `recipe: {name: NAME, changes}`, is written out.

    The recipe also gives the keys of the entry's `data` and the `split` that the entry leaves out.
    Raises UserError naming the entry whose recipe does not exist.
    """
    datasets = content.get("datasets") if isinstance(content, dict) else None
    if not isinstance(datasets, dict):
        return content
    written = {name: _expand_entry(entry, f"{where}: datasets.{name}") for name, entry in datasets.items()}
    return {**content, "datasets": written}


def _expand_entry(entry: Any, where: str) -> Any:
    chosen = entry.get("recipe") if isinstance(entry, dict) else None
    if isinstance(chosen, str):
        chosen = {"name": chosen}
    if not isinstance(chosen, dict) or "name" not in chosen:
        return entry
    try:
        recipe = released(str(chosen["name"]))
    except UserError as error:
        raise UserError(f"{where}.recipe: {error}") from None
    if recipe.umurl:
        raise UserError(
            f"{where}.recipe: {chosen['name']} is of pre-training; `sixstream recipes NAME` prints its part"
        )
    changes = {key: value for key, value in chosen.items() if key != "name"}
    own_data = entry.get("data") or {}
    given = {key: value for key, value in recipe.data.items() if key != "options" or "reader" not in own_data}
    return {
        "split": recipe.split.model_dump(exclude_unset=True),
        **entry,
        "data": {**given, **own_data},
        "recipe": merge(expanded_recipe(chosen["name"]), changes),
    }


def expanded_recipe(name: str) -> dict[str, Any]:
    """The part `recipe` of an entry that names this recipe and changes nothing."""
    return {**released(name).recipe, "released": name}


def load_expanded(path: str | Path) -> Params:
    """Read params.yaml, write its recipes out and check it. Raises UserError naming the field and the remedy."""
    return parse_params(expand(read_params(path), str(path)), str(path))


def entry(params: Params, out: Path) -> None:
    """Write the data set's entry as it is meant, a named recipe written out: what the later stages depend on.

    Args:
        params: the parameters.
        out: the JSON file.
    """
    write_json(out, params.entry.model_dump())


def weights_of(name: str) -> str:
    """Where a parameter file expects the weights of the recipe that it starts from."""
    return f"weights/{name.replace('/', '-')}.pt"


def params_of(name: str) -> dict[str, Any]:
    """A whole params.yaml that runs the recipe: members, ensembles with the published weights, the entry written out.

    Its data are annotations as PYSKL distributes them, put into data/raw/<the recipe's data set>, unless the recipe
    names a reader. A recipe of pre-training gives the part `umurl` and the entry, without members.
    """
    recipe = released(name)
    dataset = name.rpartition("/")[2]
    head = {"dataset": dataset, "protocol": recipe.protocol}
    data = {"reader": "annotations", **recipe.data}
    if recipe.umurl:
        entry = {"data": data, "split": recipe.split.model_dump(exclude_unset=True), "recipe": {}}
        return {**head, "umurl": recipe.umurl, "datasets": {dataset: entry}}
    start = {"train": "finetune", "weights": weights_of(recipe.starts_from)} if recipe.starts_from else {}
    members = {}
    for member in recipe.members:
        stream, _, seed = member.rpartition("-s")
        members[f"{recipe.model}-{member}"] = {"model": recipe.model, "stream": stream, "seed": int(seed), **start}
    ensembles = {
        title: {"members": {f"{recipe.model}-{member}": weight for member, weight in weights.items()}}
        for title, weights in (recipe.ensembles or {}).items()
    } or {"all": {"members": dict.fromkeys(members, 1)}}
    return {
        **head,
        "members": members,
        "ensembles": ensembles,
        "report": {"baseline": "", "ranked_by": ""},
        "register": {"ensemble": list(ensembles)[-1]},
        "datasets": {dataset: _expand_entry({"data": data, "recipe": name}, name)},
    }
