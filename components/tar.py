"""The list of files in a tar archive, by its headers alone; what is not a plain file or folder refuses the archive.

Headers are read in the forms of POSIX (ustar, pax) and GNU tar. Python's own reader follows links between headers
and believes their sizes, which hostile archives turn into loops and gigabytes.
"""

import gzip
import os
import tempfile
import zlib
from atexit import register
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from model.errors import UserError

ENDINGS = (".tar", ".tar.gz", ".tgz")
BLOCK = 512
LONGEST = 1 << 20  # bytes of a header that names the next member
MOST = 200  # times: what compresses better is a bomb
FOLDERS, FILES, NAMES, GLOBAL = b"5", (b"0", b"\0", b"7"), (b"L", b"x"), (b"g", b"K")
KINDS = {b"1": "a link", b"2": "a link", b"3": "a device", b"4": "a device", b"6": "a pipe", b"S": "a sparse file"}

_unpacked: dict[tuple[Path, int], Path] = {}  # by archive and time of its last change


class Member(NamedTuple):
    """A file in an archive: its bytes are those from `begin` to `begin + size` of the uncompressed archive."""

    name: str
    begin: int
    size: int


def uncompressed(file: Path) -> Path:
    """The archive itself, or of a compressed one a copy until the process ends: members are read in another order.

    Raises UserError for what is no such archive, or a bomb.
    """
    if file.suffix.lower() == ".tar":
        return file
    key = (file, file.stat().st_mtime_ns)
    if key not in _unpacked:
        limit = MOST * file.stat().st_size
        descriptor, name = tempfile.mkstemp(suffix=".tar", prefix="sixstream-")
        _unpacked[key] = Path(name)
        with os.fdopen(descriptor, "wb") as copy:
            try:
                with gzip.open(file) as stream:
                    while piece := stream.read(BLOCK << 11):
                        copy.write(piece)
                        if copy.tell() > limit:
                            raise UserError(f"{file}: unpacks to {MOST} times its size; do not use this archive")
            except (OSError, EOFError, zlib.error) as error:
                raise UserError(f"{file}: not a readable archive ({error}); download it again") from None
    return _unpacked[key]


@register
def _forget() -> None:
    while _unpacked:
        _unpacked.popitem()[1].unlink(missing_ok=True)


def members(file: Path, most: int) -> Iterator[Member]:
    """The files of an archive. Raises UserError for a damaged one, for links and devices, for more than `most`."""
    try:
        with uncompressed(file).open("rb") as stream:
            yield from _members(stream, file, most)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not a readable tar archive ({error}); download it again") from None


def _members(stream: IO[bytes], file: Path, most: int) -> Iterator[Member]:
    end = stream.seek(0, 2)
    at, count, said = 0, 0, dict[str, str]()
    while True:
        stream.seek(at)
        header = stream.read(BLOCK)
        if len(header) < BLOCK:
            raise ValueError("it ends before its end is marked")
        if not any(header):
            return
        count += 1
        if count > most:
            raise ValueError(f"it has more than {most} members")
        kind, size = header[156:157], int(said.get("size", _number(header[124:136])))
        name = said.get("path") or _name(header)
        if sum(header) - sum(header[148:156]) + 8 * 32 != _number(header[148:156]):
            raise ValueError(f"the checksum of its header {count} is wrong")
        begin, at = at + BLOCK, at + BLOCK + -(-size // BLOCK) * BLOCK
        if size < 0 or begin + size > end:
            raise ValueError(f"{name!r:.80} is cut off")
        if kind in NAMES:
            if size > LONGEST:
                raise ValueError(f"its header {count} is larger than any name")
            content = stream.read(size)
            said |= {"path": _text(content)} if kind == b"L" else _records(content)
            continue
        said = {}
        if kind in KINDS:
            raise UserError(f"{file}: the member {name!r:.80} is {KINDS[kind]}; pack the file itself")
        if kind in FILES and not name.endswith("/"):
            yield Member(name, begin, size)
        elif kind != FOLDERS and kind not in (*FILES, *GLOBAL):
            raise ValueError(f"{name!r:.80} is of the unknown kind {kind!r}")


def _number(field: bytes) -> int:
    """Octal digits, or binary with the top bit set (GNU, for large files)."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.split(b"\0")[0].strip() or b"0", 8)


def _name(header: bytes) -> str:
    prefix = header[345:500] if header[257:263] == b"ustar\0" else b""
    return "/".join(_text(part) for part in (prefix, header[:100]) if part.strip(b"\0"))


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8")


def _records(content: bytes) -> dict[str, str]:
    """`path` and `size` of a pax header: records "LENGTH KEY=VALUE\\n"."""
    found = {}
    while content:
        length = int(content[:20].split(b" ")[0])
        record, content = content[:length], content[length:]
        key, _, value = record.partition(b" ")[2].partition(b"=")
        if length < 5 or not record.endswith(b"\n"):
            raise ValueError("a record of a pax header is damaged")
        if key.startswith(b"GNU.sparse"):
            raise ValueError("it holds a sparse file")
        if key in (b"path", b"size"):
            found[key.decode()] = value[:-1].decode("utf-8")
    return found
