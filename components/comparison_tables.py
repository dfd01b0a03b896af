"""A comparison as Markdown, CSV, JSON and a page."""

import csv
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from components.files import write_json, write_text

Row = dict[str, Any]


def write_comparison(out: Path, numbers: dict[str, Any]) -> str:
    """Write `table.{md,csv,json,html}` into `out`; the Markdown. `numbers` are compare_entries' with a `title`.

    A row may have only a title, `same_as` (the title of the row that it equals) and `published`.
    """
    text = markdown(numbers)
    write_text(out / "table.md", text)
    write_text(out / "table.csv", comma_separated(numbers))
    write_json(out / "table.json", numbers)
    write_page(out / "table.html", numbers)
    return text


def columns(numbers: dict[str, Any]) -> list[tuple[str, Callable[[Row], str]]]:
    """(heading, cell of a row) of the table's columns, as far as there are numbers for them."""
    found: list[tuple[str, Callable[[Row], str]]] = [
        ("seeds", lambda row: str(len(row["seeds"]))),
        ("top-1 %", partial(_spread, "top1")),
        ("top-5 %", partial(_spread, "top5")),
        ("mean class %", partial(_spread, "mean_class")),
    ]
    if len(numbers["rows"]) > 1:
        found += [
            ("gain", lambda row: _points(row.get("gain"))),
            ("95 %", lambda row: "" if row.get("low") is None else f"{_points(row['low'])} to {_points(row['high'])}"),
            ("p", lambda row: _p(row.get("p"))),
            ("p (Holm)", lambda row: _p(row.get("p_holm"))),
            ("verdict", lambda row: row.get("verdict", "")),
        ]
    return found


def markdown(numbers: dict[str, Any]) -> str:
    """The table with its sentences, classes that changed, definitions and notices."""
    own, published = columns(numbers), _published(numbers)
    heads = ["", *(name for name, _ in own), *(["published"] if published else [])]
    lines = [f"# {numbers['title']}", "", *(_about(numbers)), ""]
    lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in numbers["rows"]:
        if "same_as" in row:
            cells = [f"= {row['same_as']}, by construction", *[""] * (len(own) - 1)]
        else:
            cells = [cell(row) for _, cell in own]
        lines.append("| " + " | ".join([row["title"], *cells, *([_figure(row)] if published else [])]) + " |")
    lines.append("")
    lines += [f"- {row['sentence']}" for row in numbers["rows"] if "sentence" in row]
    for row in numbers["rows"]:
        if row.get("changes"):
            listed = ", ".join(f"{name} {_points(change)}" for name, change in row["changes"])
            lines.append(f"- Classes of {row['title']} that changed by more than 1 point: {listed}.")
    lines += ["", *(f"- {name}: {text}" for name, text in numbers["definitions"].items())]
    if published:
        lines.append(f"- published: {published}")
    return "\n".join(lines) + "\n"


def _about(numbers: dict[str, Any]) -> list[str]:
    lines = [numbers["about"]] if numbers.get("about") else []
    lines.append(
        f"Split `{numbers['split']}`, {numbers['clips']} clips of {numbers['units']} independent "
        f"{numbers['unit']}s; tested against {numbers['against']}."
    )
    return lines + ([f"Note: {numbers['notice']}."] if numbers["notice"] else [])


def comma_separated(numbers: dict[str, Any]) -> str:
    """A line per row and seed with its figures, and a line per row with the test; fractions."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    figures = ["top1", "top5", "mean_class"]
    tests = ["gain", "low", "high", "p", "p_holm", "verdict"]
    writer.writerow(["title", "seed", *figures, *tests, "same_as", "published_percent"])
    for row in numbers["rows"]:
        if "same_as" in row:
            writer.writerow([row["title"], "", *[""] * (len(figures) + len(tests)), row["same_as"], _figure(row)])
            continue
        means = [row[figure]["mean"] for figure in figures]
        writer.writerow([row["title"], "mean", *means, *(row.get(name) for name in tests), "", _figure(row)])
        for place, seed in enumerate(row["seeds"]):
            values = [row[figure]["values"][place] for figure in figures]
            writer.writerow([row["title"], seed, *values, *[""] * len(tests), "", ""])
    return text.getvalue()


def write_page(path: Path, numbers: dict[str, Any]) -> None:
    """The same as a page that works offline, light and dark."""
    # Drawing imports matplotlib, which a caller that reads the options must not pay for.
    from components import figures
    from components.page import render_page

    drawn = {}
    for place, row in enumerate(numbers["rows"]):
        if row.get("changes"):
            heading = f"{row['title']} against {numbers['against']}: changes over 1 point"
            draw = partial(figures.class_changes, row["changes"], heading)
            drawn[row["title"]] = Markup(figures.render(f"changes{place}", draw)[0])
    own = columns(numbers)
    page = render_page(
        "compare.html",
        (),
        {},
        numbers=numbers,
        about=[line.replace("`", "") for line in _about(numbers)],
        heads=[name for name, _ in own],
        cells={row["title"]: [cell(row) for _, cell in own] for row in numbers["rows"] if "same_as" not in row},
        published=_published(numbers),
        figure=_figure,
        drawn=drawn,
    )
    write_text(path, page)


def _published(numbers: dict[str, Any]) -> str:
    """Where the published figures beside the rows are from; empty where there are none."""
    return numbers.get("published", "") if any(row.get("published") is not None for row in numbers["rows"]) else ""


def _figure(row: Row) -> str:
    return "" if row.get("published") is None else f"{row['published']:.1f}"


def _spread(figure: str, row: Row) -> str:
    found = row[figure]
    return f"{100 * found['mean']:.2f}" + ("" if found["spread"] is None else f" ± {100 * found['spread']:.2f}")


def _points(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.2f}"


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}" if value >= 0.001 else "< 0.001"
