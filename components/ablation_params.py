"""The parts `ablations` and `ablation` of params.yaml: grids of members that differ in named settings."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from components.strict import Strict

CellName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]


class Cell(Strict):
    """One cell of a grid: what it changes of the grid's member."""

    title: str = Field("", description="what tables call it (default: its name)")
    model: str = Field("", description="network name in place of the grid's")
    stream: str = Field("", description="stream in place of the grid's")
    network: dict[str, Any] = Field(default_factory=dict, description="network options in addition to the grid's")


class Published(Strict):
    """Figures that stand beside a grid's where the data are the same."""

    source: str = Field(description="where they are from")
    classes: int = Field(gt=0, description="number of classes of those data")
    split: str = Field(description="name of the split, for instance xsub")
    stream: str = Field(description="stream that was trained")
    top1: dict[CellName, float] = Field(description="cell to top-1 in percent")


class Ablation(Strict):
    """A grid of cells, each trained from several seeds."""

    about: str = Field("", description="a sentence on what the grid asks")
    model: str = Field("protogcn", description="network name")
    stream: str = Field("joint", description="view of the skeleton")
    seeds: list[int] = Field(default_factory=lambda: [0, 1, 2, 3, 4], min_length=1, description="seeds of each cell")
    network: dict[str, Any] = Field(default_factory=dict, description="network options of every cell")
    cells: dict[CellName, Cell] = Field(min_length=1, description="the cells; others are tested against the first")
    published: Published | None = Field(None, description="a paper's figures")

    @model_validator(mode="after")
    def _published_of_cells(self) -> "Ablation":
        for name in self.published.top1 if self.published else ():
            if name not in self.cells:
                raise ValueError(f"published.top1: {name!r} is no cell; there are {', '.join(self.cells)}")
        return self


class GridCell(Strict):
    """A cell as it is tracked."""

    title: str = Field(description="its title and those of the cells that are the same by construction")
    settings: dict[str, Any] = Field(description="value of every option in which the grid's cells differ")


class Grid(Strict):
    """The grid whose cells a workspace's members are; written by `sixstream ablate`."""

    name: str = Field(description="name of the grid")
    cells: dict[CellName, GridCell] = Field(description="the cells that are trained; members are <cell>-s<seed>")

    def cell(self, member: str) -> GridCell:
        """The cell of a member."""
        return self.cells[member.rpartition("-s")[0]]
