"""The verb `recipes`: all released recipes with published accuracy and estimated cost, or one of them written out."""

from functools import cache
from typing import Any

import yaml

from model.layouts import load_layout
from pipeline.catalogue import Released, params_of, recipe_names, released, weights_of

COST_RULE = "estimated training of one member: forward pass x 3 x training clips x passes over them"


def recipes(name: str = "", /) -> int:
    """Without a name, list the released recipes; with one, print a params.yaml that runs it.

    Args:
        name: a recipe, for instance mmaction2/stgcnpp/ntu60-xsub-3d.

    Raises:
        UserError: there is no such recipe.
    """
    print("\n".join(written_out(name) if name else table()))
    return 0


def table() -> list[str]:
    """A line per recipe: multiply-accumulates of a clip, training cost of a member, published figures."""
    width = max(map(len, recipe_names()))
    lines = [f"{'recipe':{width}}  {'GMAC':>6}  {'PMAC':>6}  published, %"]
    for name in recipe_names():
        recipe = released(name)
        lines.append(f"{name:{width}}  {macs(recipe) / 1e9:6.2f}  {cost(recipe) / 1e15:6.1f}  {figures(recipe)}")
    return [
        *lines,
        "",
        "GMAC: 1e9 multiply-accumulates of one forward pass of one training clip, counted as published;",
        "of UmURL its pre-training, four views and the loss.",
        f"PMAC: 1e15 multiply-accumulates, {COST_RULE}.",
        "Top-1, unless it says mean class. `sixstream recipes NAME` prints the parameters of one.",
    ]


def figures(recipe: Released) -> str:
    """Published percentages by stream and ensemble, in the order of the recipe."""
    if not recipe.published:
        return "-"
    marked = " (mean class)" if recipe.metric == "mean_class" else ""
    return ", ".join(f"{what} {value:g}" for what, value in recipe.published.items()) + marked


def cost(recipe: Released) -> int:
    """Multiply-accumulates of training a member, estimated: a backward pass counts as two forward ones."""
    if recipe.umurl:
        return 3 * macs(recipe) * recipe.clips[0] * int(recipe.umurl["pretrain"]["epochs"])
    factors = recipe.recipe.get("class_factors") or [1]
    passes = recipe.recipe["epochs"] * recipe.recipe["repeats"] * sum(factors) / len(factors)
    return round(3 * macs(recipe) * recipe.clips[0] * passes)


def macs(recipe: Released) -> int:
    """Multiply-accumulates of one training clip, in the published convention, at the recipe's shapes."""
    if recipe.umurl:
        return _pretraining_macs(recipe.layout, yaml.safe_dump(recipe.umurl["network"]))
    settings = recipe.recipe
    options = settings.get("network", {}).get(recipe.model, {})
    key = yaml.safe_dump(options, default_flow_style=True)
    joints = settings.get("finish") or recipe.layout
    side = settings.get("heatmap", {}).get("train_size", 0)
    return _macs(recipe.model, joints, recipe.classes, key, settings["persons"], settings["clip_length"], side)


@cache
def _macs(model: str, layout: str, classes: int, options: str, persons: int | None, frames: int, side: int) -> int:
    from model.complexity import complexity, usual_input
    from model.nets import create_model

    net = create_model(model, layout=layout, num_classes=classes, **yaml.safe_load(options))
    # Counting needs shapes only.
    return complexity(net.to("meta"), usual_input(net, persons or 1, frames, side)).published


@cache
def _pretraining_macs(layout: str, options: str) -> int:
    from model.complexity import complexity
    from model.nets.umurl import VIEWS, UmURL

    net = UmURL(load_layout(layout), 1, **yaml.safe_load(options))
    return complexity(net, (1, VIEWS, *net.shape), with_loss=True).published


def written_out(name: str) -> list[str]:
    """The lines of a params.yaml that runs the recipe, what is published in front."""
    recipe = released(name)
    head = [f"# {name}: {figures(recipe)}"]
    if recipe.published_top5:
        head.append(f"# top-5: {', '.join(f'{what} {value:g}' for what, value in recipe.published_top5.items())}")
    head.append(f"# about {cost(recipe) / 1e15:.1f} PMAC a member: {COST_RULE}")
    if recipe.starts_from:
        head.append(f"# starts from the weights of {recipe.starts_from}, here in {weights_of(recipe.starts_from)}")
    return [*head, dump(params_of(name))]


def dump(content: Any) -> str:
    """YAML in the given order, short lists and mappings on one line, nothing referred to by anchors."""
    return yaml.dump(content, Dumper=_Plain, sort_keys=False, default_flow_style=None, width=116).rstrip()


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True
