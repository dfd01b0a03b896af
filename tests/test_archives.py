"""Raw files inside zip and tar archives: the same clips as from a folder, and nothing believed that an archive says."""

import io
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_readers import RAW, raw, raw_folder, store_of

from components import readers
from components.entries import find_entries
from components.readers import read_ntu
from model import ntu
from model.errors import UserError


def pack(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def published(folder: Path, names: list[str], archives: int) -> None:
    for number in range(archives):
        own = names[number::archives]
        members = {f"nturgb+d_skeletons/{name}.skeleton": raw(name, 3 + i % 4, i) for i, name in own}
        pack(folder / f"nturgbd_{number}.zip", members)


def same_files(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    return names == sorted(path.name for path in other.iterdir()) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names
    )


@pytest.mark.parametrize("archives", [1, 2])
def test_archives_give_the_store_of_the_folder_byte_for_byte(tmp_path, archives):
    (tmp_path / "files").mkdir()
    published(tmp_path / "zips", list(enumerate(RAW)), archives)
    store_of(read_ntu(raw_folder(tmp_path / "files", RAW)), tmp_path / "a")
    store_of(read_ntu(tmp_path / "zips"), tmp_path / "b")
    assert same_files(tmp_path / "a", tmp_path / "b")
    if archives == 1:
        store_of(read_ntu(tmp_path / "zips" / "nturgbd_0.zip"), tmp_path / "c")
        assert same_files(tmp_path / "a", tmp_path / "c")
    assert sorted(path.suffix for path in (tmp_path / "zips").iterdir()) == [".zip"] * archives  # nothing unpacked


def test_archives_read_in_parallel_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "PARALLEL_FROM", 4)
    monkeypatch.setattr(readers, "BLOCK", 10)
    names = [f"S001C001P{p:03d}R001A{a:03d}" for p in range(1, 5) for a in range(1, 6)]
    published(tmp_path, list(enumerate(names)), 2)
    alone, together = read_ntu(tmp_path, workers=1), read_ntu(tmp_path, workers=2)
    for a, b in zip(alone.clips, together.clips, strict=True):
        assert (a.id, a.label, a.factors) == (b.id, b.label, b.factors) and np.array_equal(a.joints, b.joints)


def test_a_broken_member_is_set_aside_and_the_rest_goes_on(tmp_path):
    members = {f"{name}.skeleton": raw(name, 4, i) for i, name in enumerate(RAW)}
    path = pack(tmp_path / "a.zip", members, zipfile.ZIP_STORED)
    content = path.read_bytes()
    place = content.index(members[f"{RAW[1]}.skeleton"])
    path.write_bytes(content[: place + 400] + b"7" + content[place + 401 :])  # the checksum tells
    source = read_ntu(path)
    assert [clip.id for clip in source.clips] == sorted(set(RAW) - {RAW[1]})
    ((id, reason),) = source.excluded
    assert id == RAW[1] and "a.zip" in reason and "CRC" in reason
    with pytest.raises(UserError, match=f"a.zip:{RAW[1]}"):
        list(read_ntu(path, strict=True).clips)


def test_a_bomb_is_decompressed_only_as_far_as_a_clip_may_go(tmp_path, monkeypatch):
    monkeypatch.setattr(ntu, "MAX_BYTES", 100_000)
    path = pack(tmp_path / "a.zip", {f"{RAW[0]}.skeleton": b"1" * 50_000_000, f"{RAW[1]}.skeleton": raw(RAW[1])})
    source = read_ntu(path)
    assert [clip.id for clip in source.clips] == [RAW[1]]
    assert "more than the 100000 bytes" in source.excluded[0][1]


def lying(name: str, size: int) -> bytes:
    """A member whose headers declare another size than its content has."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, raw(RAW[0], 30))
    content = bytearray(stream.getvalue())
    central = content.index(b"PK\1\2")
    content[22:26] = content[central + 24 : central + 28] = struct.pack("<I", size)
    return bytes(content)


@pytest.mark.parametrize("size", [10, 2**32 - 2])
def test_a_declared_size_is_not_believed(tmp_path, size):
    (tmp_path / "a.zip").write_bytes(lying(f"{RAW[0]}.skeleton", size))
    source = read_ntu(tmp_path / "a.zip")
    clips = list(source.clips)
    assert (len(clips) == 1) != (len(source.excluded) == 1)


@pytest.mark.parametrize(
    "name", ["../x.skeleton", "/etc/x.skeleton", "a/../../x.skeleton", "..\\x.skeleton", "C:x.skeleton"]
)
def test_names_that_lead_out_refuse_the_archive(tmp_path, name):
    pack(tmp_path / "a.zip", {f"{RAW[0]}.skeleton": raw(RAW[0]), name: b"x"})
    with pytest.raises(UserError, match="a.zip: the member .* leads out"):
        read_ntu(tmp_path)


def test_links_encryption_overlaps_and_damage_refuse_the_archive(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo(f"{RAW[0]}.skeleton")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="is a link"):
        find_entries(path, ".skeleton")
    content = bytearray(pack(path, {f"{RAW[0]}.skeleton": raw(RAW[0])}).read_bytes())
    central = content.index(b"PK\1\2")
    path.write_bytes(content[: central + 8] + b"\1" + content[central + 9 :])
    with pytest.raises(UserError, match="encrypted"):
        find_entries(path, ".skeleton")
    path.write_bytes(content[: central + 20] + struct.pack("<I", 10**9) + content[central + 24 :])
    with pytest.raises(UserError, match="more than there is"):
        find_entries(path, ".skeleton")
    pack(path, {f"{RAW[0]}.skeleton": raw(RAW[0])}, zipfile.ZIP_BZIP2)
    with pytest.raises(UserError, match="rare compression"):
        find_entries(path, ".skeleton")
    for end in (0, 10, len(content) // 2, len(content) - 5):
        path.write_bytes(content[:end])
        with pytest.raises(UserError, match="a.zip: not a readable zip"):
            read_ntu(tmp_path)
        with pytest.raises(UserError, match="a.zip"):
            read_ntu(path)


def test_doubles_and_leavings(tmp_path):
    pack(tmp_path / "a.zip", {f"x/{RAW[0]}.skeleton": raw(RAW[0]), f"__MACOSX/._{RAW[0]}.skeleton": b"junk"})
    assert [clip.id for clip in read_ntu(tmp_path).clips] == [RAW[0]]
    raw_folder(tmp_path, RAW[:1])
    with pytest.raises(UserError, match="the same clip lies at"):
        read_ntu(tmp_path)


def test_the_conversion_of_umurl(tmp_path):
    raw_folder(tmp_path, RAW)
    for clip in read_ntu(tmp_path, conversion="umurl").clips:
        expected = ntu.convert_umurl(ntu.read_skeleton(tmp_path / f"{clip.id}.skeleton"))
        assert np.array_equal(clip.joints.transpose(3, 1, 2, 0), expected) and clip.joints.shape[0] == 2


def pack_tar(path: Path, members: dict[str, bytes], form: int = tarfile.GNU_FORMAT, **special: bytes) -> Path:
    """`special` {name: kind} adds members that are no files."""
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w", format=form) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, kind in special.items():
            info = tarfile.TarInfo(f"{name}.skeleton")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    return path


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tgz"])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_gives_the_store_of_the_folder_byte_for_byte(tmp_path, ending, form):
    deep = "a folder/" * (9 if form == tarfile.USTAR_FORMAT else 30)  # beyond the 100 bytes of a plain name
    (tmp_path / "files").mkdir()
    (tmp_path / "tars").mkdir()
    store_of(read_ntu(raw_folder(tmp_path / "files", RAW)), tmp_path / "a")
    files = {f"{deep}{file.name}": file.read_bytes() for file in sorted((tmp_path / "files").iterdir(), reverse=True)}
    path = pack_tar(tmp_path / "tars" / f"all{ending}", files, form)
    store_of(read_ntu(tmp_path / "tars"), tmp_path / "b")
    store_of(read_ntu(path), tmp_path / "c")
    assert same_files(tmp_path / "a", tmp_path / "b") and same_files(tmp_path / "a", tmp_path / "c")
    assert [file.name for file in (tmp_path / "tars").iterdir()] == [path.name]  # nothing unpacked beside it


@pytest.mark.parametrize("name", ["../x.skeleton", "/etc/x.skeleton", "a/../../x.skeleton", "C:x.skeleton"])
def test_names_in_a_tar_that_lead_out_refuse_it(tmp_path, name):
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        pack_tar(
            tmp_path / "a.tar", {f"{RAW[0]}.skeleton": raw(RAW[0]), f"{'b/' * 60}{name}"[-len(name) :]: b"x"}, form
        )
        with pytest.raises(UserError, match="a.tar: the member .* leads out"):
            read_ntu(tmp_path)


@pytest.mark.parametrize(
    ("kind", "word"),
    [(tarfile.SYMTYPE, "link"), (tarfile.LNKTYPE, "link"), (tarfile.CHRTYPE, "device"), (tarfile.BLKTYPE, "device"),
     (tarfile.FIFOTYPE, "pipe"), (tarfile.GNUTYPE_SPARSE, "sparse"), (b"Z", "unknown kind")],
)  # fmt: skip
@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
def test_links_and_devices_refuse_a_tar(tmp_path, kind, word, ending):
    path = pack_tar(tmp_path / f"a{ending}", {f"{RAW[0]}.skeleton": raw(RAW[0])}, odd=kind)
    with pytest.raises(UserError, match=f"a{ending}: .*{word}"):
        find_entries(path, ".skeleton")


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[124 : 124 + len(size)], block[156:157] = size, kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a tar" * 100,
        header("a.skeleton", b"00000001000"),  # more than there is
        header("a.skeleton", b"-0000001000") + bytes(1024),
        header("a.skeleton", b"\xff" * 12) + bytes(1024),  # negative in binary
        header("a.skeleton", b"\x80" + b"\xff" * 11) + bytes(1024),
        header("a.skeleton", b"0000000000z") + bytes(1024),
        header("L", b"77777777777", b"L") + bytes(1024),
        header("L", b"00010000000", b"L") + bytes(3 << 20),  # a name of two megabytes
        header("x", b"00000000012", b"x") + b"9 size=-9\n".ljust(512, b"\0") + header("a.skeleton", b"0") + bytes(512),
        header("x", b"00000000012", b"x") + b"0 path=aa\n".ljust(512, b"\0") + bytes(1024),
        header("x", b"00000000012", b"x") + b"99999999 p".ljust(512, b"\0") + bytes(1024),
        header("a.skeleton", b"0")[:-1] + b"x" + bytes(1024),  # checksum
        header("a.skeleton", b"0"),  # no end
    ],
)
def test_headers_that_lie_refuse_a_tar(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(UserError, match="a.tar: not a readable tar"):
        find_entries(tmp_path, ".skeleton")


def test_a_compressed_tar_that_is_a_bomb_or_damaged_is_refused(tmp_path):
    path = pack_tar(tmp_path / "a.tar.gz", {f"{RAW[0]}.skeleton": bytes(30_000_000)})
    with pytest.raises(UserError, match="a.tar.gz: unpacks to 200 times"):
        find_entries(path, ".skeleton")
    good = pack_tar(path, {f"{RAW[0]}.skeleton": raw(RAW[0], 20)}).read_bytes()
    for content in (b"", good[:100], good[:-9], b"plain text", good[:80] + b"xx" + good[82:]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="a.tar.gz: not a readable"):
            find_entries(path, ".skeleton")


@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_damage_to_a_tar_ends_in_clips_and_messages(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzzed.tar"
    form = data.draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    content = bytearray(
        pack_tar(
            path, {f"{'a/' * 70}{name}.skeleton": raw(name, 1, i) for i, name in enumerate(RAW)}, form
        ).read_bytes()
    )
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 3000))
        content[at] = data.draw(st.one_of(st.integers(0, 255), st.sampled_from(list(b"0123457-Lx "))))
        if data.draw(st.booleans()):  # with a checksum that is right again
            block = at // 512 * 512
            content[block + 148 : block + 156] = b" " * 8
            content[block + 148 : block + 156] = b"%06o\0 " % sum(content[block : block + 512])
    path.write_bytes(bytes(content))
    try:
        assert all(np.isfinite(clip.joints).all() for clip in read_ntu(path).clips)
    except UserError as error:
        assert "fuzzed.tar" in str(error) or "NTU file name" in str(error)


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_damage_to_an_archive_ends_in_clips_and_messages(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzzed.zip"
    good = pack(path, {f"a/{name}.skeleton": raw(name, 2, i) for i, name in enumerate(RAW)}).read_bytes()
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(0, len(good) - 1), st.integers(len(good) - 500, len(good) - 1)))
        if data.draw(st.booleans()):
            content[min(at, len(content) - 1)] ^= data.draw(st.integers(1, 255))
        else:
            del content[at : at + data.draw(st.integers(1, 40))]
    path.write_bytes(bytes(content))
    try:
        source = read_ntu(path)
        assert all(np.isfinite(clip.joints).all() for clip in source.clips)
    except UserError as error:
        assert "fuzzed.zip" in str(error) or "NTU file name" in str(error)
