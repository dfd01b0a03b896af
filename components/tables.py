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
        header = [name.strip().lower() for name in next(reader, [])]
        lacking = [name for name in needed if name not in header]
        if lacking or len(set(header)) < len(header):
            raise UserError(
                f"{entry}, line 1: the columns are {', '.join(header)[:200] or 'not named'}; "
                f"needed are {', '.join(needed)}, each once"
            )
        for row in reader:
            if not any(map(str.strip, row)):
                continue
            if len(row) != len(header):
                raise UserError(f"{entry}, line {reader.line_num}: has {len(row)} values, not {len(header)}")
            yield reader.line_num, dict(zip(header, map(str.strip, row), strict=True))
    except csv.Error as error:
        raise UserError(f"{entry}, line {reader.line_num}: not a row of a table ({error})") from None
