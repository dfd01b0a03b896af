"""Files fetched and put whole, and DVC's md5 computed as DVC does."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from breaking_proxy import Faults, broken_downloads
from s3_server import S3, serve_s3, settle

from components import download
from components.storage import KEPT, dvc_md5, dvc_object, fetch, fetch_dvc, file_md5, put
from model.errors import UserError


def fill(folder: Path) -> Path:
    """Files whose order differs between plain text and path parts, in several depths."""
    for name in ("b.txt", "a/1.txt", "a-1.txt", "a.txt", "a/é ü.bin", ".hidden", "a/deep/er/x", "Z.txt"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 3 + b"\r\n")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with serve_s3() as server:
        yield server


@pytest.fixture
def s3(server: S3, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the bucket on the server's disk, whose keys are in the environment."""
    for name, value in {**server.environment, "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    return server.folder / "bucket"


def test_md5_and_remote_are_those_of_dvc(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    folder = fill(repository / "folder")
    (repository / "file.bin").write_bytes(bytes(range(256)) * 5000)

    def dvc(*arguments: str) -> None:
        environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
        subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=repository, check=True, env=environment)

    dvc("init", "--no-scm", "-q")
    dvc("add", "-q", "folder", "file.bin")
    for name in ("folder", "file.bin"):
        recorded = re.search(r"md5: (\S+)", (repository / f"{name}.dvc").read_text())
        assert recorded and dvc_md5(repository / name) == recorded[1]

    dvc("remote", "add", "-q", "-d", "store", str(tmp_path / "remote"))
    dvc("push", "-q")
    for name in ("folder", "file.bin"):
        md5 = dvc_md5(repository / name)
        copy = fetch_dvc(str(tmp_path / "remote"), md5, tmp_path / f"copy-{name}")
        assert dvc_md5(copy) == md5
    assert (tmp_path / "copy-folder" / "a" / "é ü.bin").read_bytes() == (folder / "a" / "é ü.bin").read_bytes()


def test_damaged_dvc_remote_leaves_nothing(tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    source = fill(tmp_path / "folder")
    md5 = dvc_md5(source)
    with pytest.raises(UserError, match="no such file"):
        fetch_dvc(str(remote), md5, tmp_path / "copy")

    listing = b'[{"md5": "%s", "relpath": "../../escaped"}]' % file_md5(source / "a.txt").encode()
    (tmp_path / "listing").write_bytes(listing)
    hostile = file_md5(tmp_path / "listing")
    put(tmp_path / "listing", dvc_object(str(remote), f"{hostile}.dir"))
    put(source / "a.txt", dvc_object(str(remote), file_md5(source / "a.txt")))
    with pytest.raises(UserError, match="outside its folder"):
        fetch_dvc(str(remote), f"{hostile}.dir", tmp_path / "copy")
    assert not (tmp_path / "copy").exists() and not (tmp_path.parent / "escaped").exists()


@pytest.mark.parametrize("scheme", ["path", "file"])
def test_local_round_trip(tmp_path: Path, scheme: str) -> None:
    source, to = fill(tmp_path / "source"), tmp_path / "a b" / "stored"
    uri = to.as_uri() if scheme == "file" else str(to)
    md5 = put(source, uri)
    assert md5 == dvc_md5(source) == dvc_md5(to)
    assert dvc_md5(fetch(uri, tmp_path / "back", md5)) == md5
    assert put(source / "a.txt", f"{uri}.txt") == file_md5(fetch(f"{uri}.txt", tmp_path / "one.txt"))


def test_s3_round_trip(tmp_path: Path, s3: Path) -> None:
    source = fill(tmp_path / "source")
    md5 = put(source, "s3://bucket/some/folder")
    assert (s3 / "some/folder/a/é ü.bin").read_bytes() == (source / "a" / "é ü.bin").read_bytes()
    (s3 / "some/folder-of-another").write_bytes(b"its name only begins alike")
    settle()
    assert dvc_md5(fetch("s3://bucket/some/folder", tmp_path / "back", md5)) == md5

    one = put(source / "a.txt", "s3://bucket/one")
    assert file_md5(fetch("s3://bucket/one", tmp_path / "one", one)) == one
    with pytest.raises(UserError, match="s3://bucket/none: no such object"):
        fetch("s3://bucket/none", tmp_path / "none")
    with pytest.raises(UserError, match="s3://bucket/key"):
        fetch("s3://bucket", tmp_path / "none")


def test_s3_refuses_wrong_keys_and_nothing_changes(tmp_path: Path, s3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"new")
    (tmp_path / "kept").write_bytes(b"old")
    (s3 / "theirs").write_bytes(b"stored")
    settle()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UserError, match="s3://bucket/theirs: cannot be read.*check the bucket, the credentials"):
        fetch("s3://bucket/theirs", tmp_path / "kept")
    with pytest.raises(UserError, match="s3://bucket/theirs: cannot be written"):
        put(tmp_path / "file", "s3://bucket/theirs")
    assert (tmp_path / "kept").read_bytes() == b"old" and (s3 / "theirs").read_bytes() == b"stored"


def test_s3_that_is_away_is_named(tmp_path: Path, s3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="AWS_ENDPOINT_URL"):
        fetch("s3://bucket/key", tmp_path / "copy")
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(UserError, match="cannot be written"):
        put(tmp_path / "file", "s3://bucket/key")


def test_wrong_md5_leaves_what_was_there(tmp_path: Path) -> None:
    source, kept = tmp_path / "source", tmp_path / "kept"
    source.write_bytes(b"new")
    kept.write_bytes(b"old")
    with pytest.raises(UserError, match=r"source: has md5 \w+, not 0+"):
        fetch(str(source), kept, "0" * 32)
    assert kept.read_bytes() == b"old" and sorted(p.name for p in tmp_path.iterdir()) == ["kept", "source"]


def test_matching_copy_is_not_fetched_again(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes(b"same")
    assert fetch("s3://no-such-server/key", kept, file_md5(kept)) == kept


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a file nor a folder"):
        dvc_md5(tmp_path / "none")
    with pytest.raises(UserError, match="ftp://server/file"):
        fetch("ftp://server/file", tmp_path / "copy")
    with pytest.raises(UserError, match="no such file"):
        fetch(str(tmp_path / "none"), tmp_path / "copy")


@pytest.fixture
def breaking(s3: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """The same server behind a proxy that can break downloads off."""
    with broken_downloads(os.environ["AWS_ENDPOINT_URL"]) as (address, faults):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        yield faults


def test_a_download_that_breaks_off_goes_on(tmp_path: Path, breaking: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
    body = bytes(range(256)) * 40
    md5 = put(_file(tmp_path / "same", body), "s3://bucket/data")
    breaking.after["data"] = 4000
    fetch("s3://bucket/data", tmp_path / "copy", md5)
    assert (tmp_path / "copy").read_bytes() == body
    assert breaking.ranges == ["", "bytes=4000-", "bytes=8000-"]
    monkeypatch.setattr(download, "WAIT", 0.0)
    breaking.after["data"] = 0
    with pytest.raises(UserError, match="cannot be read"):
        fetch("s3://bucket/data", tmp_path / "never")
    assert not (tmp_path / "never").exists() and breaking.ranges[3:] == [""] * download.TRIES


def test_fetched_objects_are_kept_by_their_md5(
    tmp_path: Path, breaking: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, remote = fill(tmp_path / "source"), "s3://bucket/dvc"
    files = sorted((p.relative_to(source).as_posix(), file_md5(p)) for p in source.rglob("*") if p.is_file())
    listing = json.dumps([{"md5": md5, "relpath": name} for name, md5 in files], sort_keys=True)
    md5 = dvc_md5(source)
    put(_file(tmp_path / "listing", listing.encode()), dvc_object(remote, md5))
    for name, own in files:
        put(source / name, dvc_object(remote, own))
    cache = tmp_path / "cache"
    monkeypatch.setenv(KEPT, str(cache))
    # A killed task has left the beginning of one object, and of another something else.
    begun, wrong = (Path(dvc_object(str(cache), own)) for _, own in files[:2])
    for place, left in ((begun, (source / files[0][0]).read_bytes()[:3]), (wrong, b"?" * 500)):
        place.parent.mkdir(parents=True, exist_ok=True)
        _file(place.with_name(f"{place.name}.part"), left)
    assert dvc_md5(fetch_dvc(remote, md5, tmp_path / "first")) == md5
    assert "bytes=3-" in breaking.ranges and not list(cache.rglob("*.part"))
    asked = len(breaking.ranges)
    assert dvc_md5(fetch_dvc(remote, md5, tmp_path / "second")) == md5
    assert len(breaking.ranges) == asked  # from the cache alone
    begun.write_bytes(b"damaged")
    assert dvc_md5(fetch_dvc(remote, md5, tmp_path / "third")) == md5
    assert len(breaking.ranges) == asked + 1
    begun.unlink()
    put(_file(tmp_path / "other", b"other"), dvc_object(remote, files[0][1]))
    with pytest.raises(UserError, match="has md5"):
        fetch_dvc(remote, md5, tmp_path / "fourth")
    assert not (tmp_path / "fourth").exists() and not begun.exists()


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
