"""params.yaml as typed, frozen models: unknown keys are refused and every field is described."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from components.ablation_params import Ablation, Grid
from components.compute import Compute
from components.results_params import Register, Report
from components.strict import Strict
from components.tune_params import Tune
from components.umurl_params import Umurl
from model.errors import UserError
from model.streams import HEATMAP_STREAMS

Stream = Literal[
    "joint", "bone", "kbone", "joint_motion", "bone_motion", "kbone_motion", "keypoint", "limb"
]  # the last two are heat maps
Share = Annotated[float, Field(gt=0, le=1)]
Protocol = Literal["development", "last", "published"]
Options = dict[str, Any]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class SampleData(Strict):
    """The embedded sample data."""

    seed: int = Field(0, ge=0, description="seed from which every clip follows, byte for byte")
    clips: int | None = Field(None, gt=0, description="number of clips, spread over actions; empty: all of them")


class Data(Strict):
    """How a dataset's raw files become the packed store."""

    reader: str = Field(
        description="form of the raw files: ntu_raw, annotations, kinetics, openpose, coco, mediapipe, arrays or table"
    )
    options: Options = Field(default_factory=dict, description="arguments of the reader")
    to: str = Field("", description="layout to which joints are mapped by their names, before they are prepared")
    prepare: list[Options] = Field(
        default_factory=list, description="steps applied once to every clip, in order: {name: …, arguments}"
    )
    dtype: Literal["float32", "float16"] = Field(
        "float32", description="stored type; float16 only where a released recipe needs the original's rounding"
    )
    strict: bool = Field(False, description="stop at the first broken clip instead of setting it aside")


class Split(Strict):
    """Which of the store's splits train and test."""

    name: str = Field(description="name printed in tables, for instance xsub")
    train: str = Field(description="split to train on")
    test: list[str] = Field(min_length=1, description="splits to test on, the main one first")
    development: Literal["auto", "subject", "camera", "setup", "none"] = Field(
        "auto", description="factor by which the development split is carved from training; none: by class"
    )
    development_share: float = Field(0.2, gt=0, lt=1, description="share of the training clips held out")


class Heatmap(Strict):
    """How PoseC3D's heat maps are drawn; the defaults are those of its NTU60 and FineGYM recipes."""

    sigma: float = Field(0.6, gt=0, description="spread of a joint or limb in pixels of the map")
    threshold: float = Field(1e-4, ge=0, description="joints with a lower score are missing (PYSKL: 1e-3)")
    use_score: bool = Field(True, description="draw by score; false: fully, wherever a joint has a position")
    padding: float = Field(0.25, ge=0, description="growth of the box round all joints that a clip is cut to")
    resize: int = Field(64, gt=0, description="short side in pixels before the random crop of training")
    area: tuple[Share, Share] = Field((0.56, 1.0), description="least and largest share that the random crop keeps")
    train_size: int = Field(56, gt=0, description="side of the maps in training")
    flip: float = Field(0.5, ge=0, le=1, description="probability that a training clip is mirrored")
    test_size: int = Field(64, gt=0, description="side of the maps in validation and test")
    test_crop: bool = Field(
        True, description="test on the central square; false: scale the box to a square (PYSKL, Kinetics)"
    )
    double: bool = Field(True, description="test every clip mirrored as well")


class StreamRecipe(Strict):
    """What one stream does differently."""

    augment: list[Options] | None = Field(
        None, description="replaces the recipe's augmentation; heat maps have only this one, on pixels"
    )
    network: Options = Field(default_factory=dict, description="options added to the network's")
    change: Options = Field(
        default_factory=dict, description="other values of the recipe for this stream, such as {epochs: 40, lr: 0.1}"
    )


class Recipe(Strict):
    """How a member is fed, trained and tested."""

    clip_length: int = Field(100, gt=0, description="frames per clip after sampling")
    test_clips: int = Field(10, gt=0, description="clips per sample at test; their softmax scores are averaged")
    sampler: Literal["protogcn", "pyskl", "mmaction2"] = Field("protogcn", description="variant of the sampler")
    difference: Literal["before", "after"] = Field(
        "before", description="motion between raw neighbours (before sampling) or between sampled frames (after)"
    )
    persons: int | None = Field(None, gt=0, description="persons per clip; empty: the most that the data holds")
    finish: Literal["coco_new"] | None = Field(
        None, description="joints derived after augmentation: coco_new appends ProtoGCN's three to COCO's 17"
    )
    normalise_2d: Literal["mmaction2", "pyskl"] | None = Field(
        None, description="pixels to [-1, 1] for graph networks; pyskl also blanks joints with a score of at most 0.01"
    )
    augment: list[Options] = Field(default_factory=list, description="training augmentation, in order")
    heatmap: Heatmap = Field(default_factory=Heatmap, description="the streams keypoint and limb of posec3d")
    setting: Literal["released", "paper"] = Field(
        "released",
        description="whose options per stream are the network's defaults: the released recipes' or the paper's",
    )
    network: dict[str, Options] = Field(default_factory=dict, description="options per network name")
    streams: dict[Stream, StreamRecipe] = Field(default_factory=dict, description="what single streams change")

    released: str = Field("", description="the released recipe that these values come from (written when expanded)")
    epochs: int = Field(150, gt=0, description="passes over the training split")
    repeats: int = Field(1, gt=0, description="times the training split is repeated within an epoch")
    class_factors: list[float] = Field(
        default_factory=list, description="how often a pass visits a clip of each class, one number per class"
    )
    batch_size: int = Field(16, gt=0, description="global batch, over all processes")
    bn_batch: int | None = Field(
        None, gt=1, description="clips that batch norm averages over, on any number of devices; empty: the whole batch"
    )
    lr: float = Field(0.025, gt=0, description="initial learning rate for that batch")
    base_batch: int | None = Field(None, gt=0, description="scale lr by batch_size / base_batch; empty: do not")
    schedule: Literal["cosine", "step", "constant"] = Field(
        "cosine", description="learning rate: cosine falls to 0 over all steps, step is multiplied at milestones"
    )
    milestones: list[int] = Field(default_factory=list, description="epochs after which schedule step acts")
    gamma: float = Field(0.1, gt=0, le=1, description="factor of schedule step")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum")
    nesterov: bool = Field(True, description="Nesterov momentum")
    weight_decay: float = Field(5e-4, ge=0, description="weight decay on every parameter")
    accumulate: int = Field(1, gt=0, description="forward passes that share an update")
    clip_grad: float | None = Field(None, gt=0, description="largest gradient norm; empty: no clipping")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing of the cross entropy")
    amp: bool = Field(True, description="bfloat16 autocast on a GPU (no effect on CPU)")
    deterministic: bool = Field(True, description="two runs on one CPU give the same bits")
    validate_every: int = Field(1, gt=0, description="epochs between looks at the selection split")
    checkpoint_steps: int | None = Field(
        None, gt=0, description="steps between working checkpoints within an epoch; empty: only after epochs"
    )
    test_batch: int = Field(64, gt=0, description="samples scored at a time")

    @model_validator(mode="after")
    def _changes_fit(self) -> "Recipe":
        for stream in self.streams:
            try:
                self.for_stream(stream)
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                field = ".".join(str(part) for part in first["loc"])
                raise ValueError(f"streams.{stream}.change.{field}: {first['msg']}") from None
        return self

    def for_stream(self, stream: Stream) -> "Recipe":
        """The recipe with the values that this stream changes."""
        own = self.streams.get(stream)
        if own is None or not own.change:
            return self
        return Recipe.model_validate({**self.model_dump(exclude={"streams"}), **own.change})


class Dataset(Strict):
    """One benchmark: data, split and recipe."""

    data: Data = Field(description="raw files to packed store")
    split: Split = Field(description="training and test split")
    recipe: Recipe = Field(description="feeding, training and testing")


class Member(Strict):
    """One trained network of an ensemble: (model, stream, seed)."""

    model: str = Field(description="network name")
    stream: Stream = Field(description="view of the skeleton")
    seed: int = Field(0, ge=0, description="seed of initialisation, order and augmentation")
    network: Options = Field(default_factory=dict, description="options added to the recipe's for this member")
    train: Literal["scratch", "finetune", "none"] = Field(
        "scratch", description="scratch; finetune: start from `weights`; none: only test them"
    )
    weights: str | None = Field(
        None, description="a published checkpoint's file or models:/NAME/VERSION, of which shape and options follow"
    )
    weights_md5: str | None = Field(
        None, description="md5 of the weights' file: others are refused, a new one retrains"
    )

    @model_validator(mode="after")
    def _weights_fit(self) -> "Member":
        if self.train != "scratch" and self.weights is None:
            raise ValueError(f"train: {self.train} needs weights: name a checkpoint or models:/NAME/VERSION")
        if self.train == "scratch" and (self.weights or self.weights_md5):
            raise ValueError("weights are named, but train: scratch does not use them; set it to finetune or none")
        return self


class Ensemble(Strict):
    """Members and weights whose scores are summed."""

    members: dict[str, float] = Field(min_length=1, description="member name to weight")


class Params(Strict):
    """The whole of params.yaml."""

    dataset: Name = Field(description="entry of datasets that is run")
    protocol: Protocol = Field(
        description="development: epoch chosen on a split carved from training; last: fixed epochs, last one; "
        "published: best epoch on the test split, as the original papers do"
    )
    members: dict[Name, Member] = Field(min_length=1, description="the networks to train, named once")
    ensembles: dict[Name, Ensemble] = Field(default_factory=dict, description="named fusions of members")
    report: Report = Field(default_factory=Report, description="what results are compared with")
    register_: Register = Field(alias="register", description="registration")
    sample_data: SampleData = Field(default_factory=SampleData, description="embedded sample data")
    datasets: dict[Name, Dataset] = Field(description="benchmarks by name")
    ablations: dict[Name, Ablation] = Field(default_factory=dict, description="grids, `sixstream ablate`")
    ablation: Grid | None = Field(None, description="the grid of this workspace, written by `sixstream ablate`")
    tune: Tune = Field(default_factory=Tune, description="search for parameters, `sixstream tune`")
    umurl: Umurl = Field(default_factory=Umurl, description="unsupervised pre-training, `sixstream umurl`")
    compute: Compute = Field(default_factory=Compute, description="tasks of a Kubeflow pipeline, `sixstream kfp`")

    @model_validator(mode="after")
    def _names_exist(self) -> "Params":
        _known("dataset", [self.dataset], self.datasets)
        for name, ensemble in self.ensembles.items():
            _known(f"ensembles.{name}.members", ensemble.members, self.members)
        _known("register.ensemble", [self.register_.ensemble], self.ensembles)
        baseline, ranked_by = [self.report.baseline], [self.report.ranked_by]
        _known("report.baseline", filter(None, baseline), [*self.members, *self.ensembles])
        _known("report.ranked_by", filter(None, ranked_by), self.members)
        return self

    @property
    def entry(self) -> Dataset:
        """The dataset that is run."""
        return self.datasets[self.dataset]

    @property
    def experiment(self) -> str:
        """Name of the tracking experiment; a grid has one of its own, in which runs lie side by side."""
        return f"{self.dataset}/{self.protocol}" + (f"/{self.ablation.name}" if self.ablation else "")

    def member(self, name: str) -> Member:
        """The member called `name`. Raises UserError naming the known ones."""
        if name not in self.members:
            raise UserError(f"no member {name!r} in params.yaml: members are {', '.join(self.members)}")
        return self.members[name]

    def with_weights(self, name: str, weights: str) -> "Params":
        """The same with a member that is only tested with these weights."""
        given = self.member(name).model_copy(update={"train": "none", "weights": weights, "weights_md5": None})
        return self.model_copy(update={"members": {**self.members, name: given}})

    def recipe(self, name: str) -> Recipe:
        """The recipe of a member, with what its stream changes."""
        return self.entry.recipe.for_stream(self.member(name).stream)

    def network_options(self, name: str) -> Options:
        """Options of a member's network: released defaults of its stream < recipe < stream < member."""
        member, recipe = self.member(name), self.entry.recipe
        stream = recipe.streams.get(member.stream, StreamRecipe())
        return {**recipe.network.get(member.model, {}), **stream.network, **member.network}

    def augmentation(self, name: str) -> list[Options]:
        """Training augmentation of a member. What a recipe does to joints does not suit the pixels of heat maps."""
        recipe, stream = self.entry.recipe, self.member(name).stream
        own = recipe.streams.get(stream, StreamRecipe()).augment
        if own is None:
            return [] if stream in HEATMAP_STREAMS else recipe.augment
        return own

    def for_training(self, name: str) -> dict[str, Any]:
        """Everything in the parameters that one member's training depends on, as plain values."""
        return {
            "member": self.member(name).model_dump(),
            "protocol": self.protocol,
            "split": self.entry.split.model_dump(),
            "recipe": self.entry.recipe.model_dump(exclude={"test_clips", "test_batch", "checkpoint_steps"}),
        }


def _known(field: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in (known := list(known)):
            raise ValueError(f"{field}: {name!r} is not defined; there are {', '.join(known) or 'none'}")


def read_params(path: str | Path = "params.yaml") -> Any:
    """The content of params.yaml, unchecked. Raises UserError if it cannot be read."""
    path = Path(path)
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run this in a folder with params.yaml or name one") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {error}") from None


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check params.yaml. Raises UserError naming the field and the remedy."""
    return parse_params(read_params(path), str(path))


def parse_params(content: Any, where: str) -> Params:
    """Check parameters that were read from `where`. Raises UserError naming the field and the remedy."""
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors(include_url=False)]
        raise UserError("\n".join(f"{where}: {line}" for line in lines)) from None


def _explain(item: Any) -> str:
    field = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        siblings = _fields_beside(item["loc"])
        close = difflib.get_close_matches(str(item["loc"][-1]), siblings, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(siblings)}"
        return f"{field}: unknown key; {hint}"
    if item["type"] == "missing":
        return f"{field}: missing; add it"
    message = item["msg"].removeprefix("Value error, ")
    return f"{field}: {message}" if field else message


def _fields_beside(loc: tuple[Any, ...]) -> list[str]:
    """Field names of the model in which an unknown key was found."""
    node: Any = Params
    keyed = False  # the next part is a user's own name, such as that of a dataset
    for part in loc[:-1]:
        if keyed:
            keyed = False
            continue
        fields = {f.alias or name: f.annotation for name, f in node.model_fields.items()}
        annotation = fields.get(str(part))
        keyed = get_origin(annotation) is dict
        node = _model_in(annotation)
    return [f.alias or name for name, f in node.model_fields.items()]


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(part) for part in get_args(annotation))
    return next((found for found in inner if found is not None), None)
