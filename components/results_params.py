"""Parameters of what follows the scores: report and registration."""

from pydantic import Field

from components.strict import Strict


class Report(Strict):
    """What results are compared with."""

    baseline: str = Field("", description="member or ensemble that class changes are taken against; empty: the first")
    ranked_by: str = Field(
        "", description="a member kept out of the comparison, whose accuracies rank the classes by difficulty"
    )


class Register(Strict):
    """Which ensemble is registered and what it must beat."""

    ensemble: str = Field(description="the ensemble registered as one model")
    gate: str = Field(
        "development", description="split on which a champion is beaten: development, or a split outside test"
    )
    draws: int = Field(2000, gt=0, description="resamples of the paired bootstrap")
