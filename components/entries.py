"""Raw files where they lie: in a folder, in zip or tar archives in it, or in one archive, read without unpacking.

Nothing that an archive says is believed before it is read: names that lead out of it and links are refused, and a
member is decompressed only to the size that its reader allows.
"""

import io
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any

from components import tar
from model.errors import UserError

MAX_MEMBERS = 2_000_000
MAX_LINE = 10_000  # bytes of a line of text
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others cannot be decompressed in bounded pieces
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError)


@dataclass(frozen=True, order=True)
class Entry:
    """A file in a folder, or the member of an archive. `inside` is its path below the folder or in the archive.

    `span` says where the bytes of a tar's member lie: the file that holds them, the first, and how many.
    """

    inside: PurePosixPath
    file: Path
    member: str = ""
    span: tuple[Path, int, int] | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.member}" if self.member else str(self.file)

    @property
    def stem(self) -> str:
        return self.inside.stem

    def read(self, limit: int) -> bytes:
        """The content. Raises UserError naming the file when it is damaged or has more than `limit` bytes."""
        with self._reading() as stream:
            content = stream.read(limit + 1)
        if len(content) > limit:
            raise UserError(f"{self}: has more than the {limit} bytes that one such file may have; cut it into parts")
        return content

    def lines(self) -> Iterator[str]:
        """The lines of a text in UTF-8. Raises UserError naming the line that is too long or no such text."""
        for line in self.lines_or_faults():
            if isinstance(line, UserError):
                raise line
            yield line

    def lines_or_faults(self) -> Iterator[str | UserError]:
        """As `lines`, but what is wrong with a line stands in its place, and the next follows."""
        with self._reading() as stream:
            number = 0
            while line := stream.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    yield UserError(f"{self}, line {number}: is longer than {MAX_LINE} bytes; write one row a line")
                    while line and not line.endswith(b"\n"):
                        line = stream.readline(MAX_LINE)
                    continue
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    yield UserError(f"{self}, line {number}: is not text in UTF-8; save it as UTF-8")

    @contextmanager
    def _reading(self) -> Iterator[IO[bytes]]:
        try:
            with self._open() as stream:
                yield stream
        except DAMAGE as error:
            raise UserError(f"{self}: cannot be read ({error}); copy it again or leave it out") from None

    def _open(self) -> IO[bytes]:
        if self.span is not None:
            return io.BufferedReader(_Span(*self.span))
        return _opened(self.file).open(self.member) if self.member else self.file.open("rb")


class _Span(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, file: Path, begin: int, size: int) -> None:
        self.stream, self.left = file.open("rb"), size
        self.stream.seek(begin)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self.stream.read(min(len(buffer), self.left))
        buffer[: len(piece)] = piece
        self.left -= len(piece)
        return len(piece)

    def close(self) -> None:
        self.stream.close()
        super().close()


def is_archive(path: Path) -> bool:
    """Whether it is named like an archive that is read as a folder."""
    return path.name.lower().endswith((".zip", *tar.ENDINGS))


def find_entries(path: str | Path, wanted: Callable[[str], bool] | str) -> list[Entry]:
    """Files of the folder or archive `path`, and of the archives in the folder, sorted by their names.

    `wanted` is the ending of their names, or tells by the name. Raises UserError for an archive that is damaged or
    has members that lead out of it.
    """
    path = Path(path)
    suffix = wanted if isinstance(wanted, str) else ""
    chosen = (lambda name: name.endswith(suffix)) if isinstance(wanted, str) else wanted
    if path.is_file():
        if not is_archive(path):
            return [Entry(PurePosixPath(path.name), path)] if chosen(path.name) else []
        return sorted(_members(path, chosen))
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder")
    found: list[Entry] = []
    for file in path.rglob("*"):
        inside = PurePosixPath(file.relative_to(path).as_posix())
        if not file.is_file() or _hidden(inside):
            continue
        if chosen(file.name):
            found.append(Entry(inside, file))
        elif is_archive(file):
            found += _members(file, chosen)
    return sorted(found)


def close_archives() -> None:
    """Close the archives that reading has left open for the next member."""
    _opened.cache_clear()


@lru_cache(maxsize=4)
def _opened(file: Path) -> zipfile.ZipFile:
    # Opening parses the whole list of members, so it is done once in a process and not for each member.
    return zipfile.ZipFile(file)


def _members(file: Path, chosen: Callable[[str], bool]) -> list[Entry]:
    if file.suffix.lower() != ".zip":
        return _tar_members(file, chosen)
    found = []
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except DAMAGE as error:
        raise UserError(f"{file}: not a readable zip archive ({error}); download it again") from None
    if len(members) > MAX_MEMBERS or sum(info.compress_size for info in members) > file.stat().st_size:
        # Members that share their bytes are how a small archive claims to hold everything.
        raise UserError(f"{file}: says it holds more than there is in it; do not use this archive")
    for info in members:
        inside = _inside(file, info.filename, info.orig_filename)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise UserError(f"{file}: the member {info.filename!r} is a link; pack the file itself")
        if info.is_dir() or _hidden(inside) or not chosen(inside.name):
            continue
        if info.flag_bits & 1 or info.compress_type not in COMPRESSIONS:
            raise UserError(f"{file}: the member {info.filename!r} is encrypted or of a rare compression; pack it anew")
        found.append(Entry(inside, file, info.filename))
    return found


def _tar_members(file: Path, chosen: Callable[[str], bool]) -> list[Entry]:
    found = []
    for name, begin, size in tar.members(file, MAX_MEMBERS):
        inside = _inside(file, name, name)
        if not _hidden(inside) and chosen(inside.name):
            found.append(Entry(inside, file, name, (tar.uncompressed(file), begin, size)))
    return found


def _inside(file: Path, name: str, original: str) -> PurePosixPath:
    inside = PurePosixPath(name.replace("\\", "/"))
    if inside.is_absolute() or ".." in inside.parts or ":" in name or "\0" in original:
        raise UserError(f"{file}: the member {name!r} leads out of the archive; do not use this archive")
    return inside


def _hidden(inside: PurePosixPath) -> bool:
    """Leavings of desktops: ._files, __MACOSX."""
    return any(part.startswith((".", "__MACOSX")) for part in inside.parts)
