"""The part `umurl` of params.yaml: pre-training without labels and what is done with its features."""

from typing import Literal

from pydantic import Field

from components.strict import Strict


class UmurlNetwork(Strict):
    """Size of UmURL's networks; the defaults are the released ones."""

    hidden: int = Field(1024, gt=0, description="width of the encoder; features have twice as many numbers")
    frames: int = Field(64, gt=1, description="frames to which every clip and view is resized")
    persons: int | None = Field(2, gt=0, description="persons per clip; empty: the most that the data holds")
    attention_heads: int = Field(1, gt=0, description="heads of each attention; they divide hidden")
    layers: int = Field(1, gt=0, description="transformer layers on each axis")
    projector_width: int = Field(4096, gt=0, description="outputs of a projector")


class UmurlViews(Strict):
    """Random views of pre-training."""

    crop: tuple[float, float] = Field((0.1, 1.0), description="lowest and highest share of a clip in a view")
    corrupted: float = Field(0.6, gt=0, le=1, description="share of the joints that joint corruption touches")


class UmurlPretraining(Strict):
    """Pre-training without labels, by Adam; the defaults are the released scripts'."""

    epochs: int = Field(451, gt=0, description="passes over the training split")
    batch_size: int = Field(512, gt=1, description="global batch, over all processes")
    lr: float = Field(5e-4, gt=0, description="initial learning rate")
    milestones: list[int] = Field(default_factory=lambda: [351], description="epochs from which lr is a tenth")
    weight_decay: float = Field(1e-5, ge=0, description="weight decay on every parameter")
    amp: bool = Field(True, description="bfloat16 autocast on a GPU (no effect on CPU)")
    deterministic: bool = Field(True, description="two runs on one CPU give the same bits")
    save_every: int = Field(1, gt=0, description="epochs between working checkpoints; large networks take seconds each")


class UmurlLinear(Strict):
    """Linear evaluation of frozen features; the defaults are the released protocol's."""

    epochs: int = Field(150, gt=0, description="passes over the training features")
    batch_size: int = Field(512, gt=1, description="features per step")
    lr: float = Field(0.03, gt=0, description="initial learning rate")
    milestones: list[int] = Field(default_factory=lambda: [120, 140], description="epochs from which lr is a tenth")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum")
    look_every: int = Field(5, gt=0, description="epochs between looks at the accuracy, for the curve")
    report: Literal["last", "best_on_test"] = Field(
        "last",
        description="last: the final epoch; best_on_test: the best look at the test split, as the release reports",
    )


class UmurlRetrieval(Strict):
    """Retrieval among the training clips."""

    neighbours: int = Field(1, gt=0, description="training clips of highest cosine that vote")


class UmurlPlot(Strict):
    """The two-dimensional picture of test features."""

    classes: int = Field(10, gt=1, description="classes shown, drawn at random by the seed")
    perplexity: float = Field(30.0, gt=0, description="perplexity of t-SNE, lowered for few clips")
    clips: int = Field(2000, gt=2, description="most clips shown")


class Umurl(Strict):
    """Unsupervised pre-training (UmURL) and what its features are worth."""

    seed: int = Field(0, ge=0, description="seed of initialisation, views and order")
    network: UmurlNetwork = Field(default_factory=UmurlNetwork, description="size of encoder and projectors")
    views: UmurlViews = Field(default_factory=UmurlViews, description="random views of a clip")
    pretrain: UmurlPretraining = Field(default_factory=UmurlPretraining, description="pre-training")
    linear: UmurlLinear = Field(default_factory=UmurlLinear, description="linear evaluation")
    retrieval: UmurlRetrieval = Field(default_factory=UmurlRetrieval, description="retrieval")
    plot: UmurlPlot = Field(default_factory=UmurlPlot, description="picture of the features")
