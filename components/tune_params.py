"""The part `tune` of params.yaml: which parameters are searched, and where."""

from typing import Any

from pydantic import Field, field_validator, model_validator

from components.strict import Strict


class Range(Strict):
    """Where one parameter is searched: between two numbers, or among choices."""

    low: float | None = Field(None, description="lowest value")
    high: float | None = Field(None, description="highest value")
    log: bool = Field(False, description="search the logarithm, for values such as learning rates")
    integer: bool = Field(False, description="whole numbers only")
    choices: list[Any] = Field(default_factory=list, description="values in place of low and high")

    @model_validator(mode="after")
    def _one_form(self) -> "Range":
        if self.choices:
            if self.low is not None or self.high is not None or self.log or self.integer:
                raise ValueError("choices stand alone; leave out low, high, log and integer")
        elif self.low is None or self.high is None or self.low >= self.high:
            raise ValueError("give low and a greater high, or choices")
        elif self.log and self.low <= 0:
            raise ValueError("log needs a low above 0")
        return self


class Tune(Strict):
    """A search by Optuna's TPE with median pruning, on the development split only."""

    member: str = Field("", description="the member that is trained in every trial (default: the first)")
    trials: int = Field(20, gt=0, description="trainings, pruned ones included")
    seed: int = Field(0, ge=0, description="seed of the search")
    warm_up: int = Field(3, ge=0, description="epochs, and trials, before a trial may be pruned")
    ranges: dict[str, Range] = Field(
        default_factory=dict, description="recipe.KEY or network.OPTION to where it is searched"
    )

    @field_validator("ranges")
    @classmethod
    def _of_training(cls, ranges: dict[str, Range]) -> dict[str, Range]:
        for key in ranges:
            if key.partition(".")[0] not in ("recipe", "network") or not key.partition(".")[2]:
                raise ValueError(f"{key}: name a recipe.KEY or a network.OPTION")
        return ranges
