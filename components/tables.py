"""Tables as CSV: a line with the names of the columns, then a row a line."""

import csv
from collections.abc import Iterator, Sequence

from components.entries import Entry
from model.errors import UserError

Row = dict[str, str]


def read_rows(entry: Entry, needed: Sequence[str] = ()) -> Iterator[tuple[int, Row]]:
    """(number of the line, row) of each row; names of columns in lower case, one row in memory at a time.

    Raises UserError naming file and line: not text in UTF-8, a line too long, a column that is missing or named
    twice, a row with other columns.
    """
    reader = csv.reader(entry.lines(), strict=True)
    try:
        header = _header(next(reader, []), needed, entry)
        for row in reader:
            if any(map(str.strip, row)):
                yield reader.line_num, _row(header, row, f"{entry}, line {reader.line_num}")
    except csv.Error as error:
        raise UserError(f"{entry}, line {reader.line_num}: not a row of a table ({error})") from None


def read_rows_or_faults(entry: Entry, needed: Sequence[str] = ()) -> Iterator[tuple[int, Row | UserError]]:
    """As `read_rows`, but what is wrong with a row stands in its place, and the next follows. A row is one line."""
    lines = entry.lines_or_faults()
    first = next(lines, "")
    if isinstance(first, UserError):
        raise first
    try:
        names = next(csv.reader([first], strict=True), [])
    except csv.Error as error:
        raise UserError(f"{entry}, line 1: not a row of a table ({error})") from None
    header = _header(names, needed, entry)
    for number, line in enumerate(lines, 2):
        where = f"{entry}, line {number}"
        try:
            if isinstance(line, UserError):
                raise line
            if row := next(csv.reader([line], strict=True), []):
                yield number, _row(header, row, where)
        except csv.Error as error:
            yield number, UserError(f"{where}: not a row of a table ({error})")
        except UserError as error:
            yield number, error


def _header(names: list[str], needed: Sequence[str], entry: Entry) -> list[str]:
    header = [name.strip().lower() for name in names]
    lacking = [name for name in needed if name not in header]
    if lacking or len(set(header)) < len(header):
        raise UserError(
            f"{entry}, line 1: the columns are {', '.join(header)[:200] or 'not named'}; "
            f"needed are {', '.join(needed)}, each once"
        )
    return header


def _row(header: list[str], values: list[str], where: str) -> Row:
    if len(values) != len(header):
        raise UserError(f"{where}: has {len(values)} values, not {len(header)}")
    return dict(zip(header, map(str.strip, values), strict=True))
