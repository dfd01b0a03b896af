"""Files in folders and in S3: fetched and put whole, and checked by the md5 that DVC records.

A folder's md5 is that of DVC: of the list of its files' md5s and paths, ending in `.dir`. Credentials and
region are boto3's own; the end point of another S3 server is read from AWS_ENDPOINT_URL.
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from components.download import CHUNK, download
from components.files import staged_dir
from components.journal import locked
from model.errors import UserError

KEPT = "SIXSTREAM_CACHE"  # variable: a folder in which fetched objects are kept by their md5, for any number of tasks


def file_md5(path: str | Path) -> str:
    """md5 of the bytes of a file."""
    digest = hashlib.md5(usedforsecurity=False)
    with Path(path).open("rb") as stream:
        while block := stream.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def dvc_md5(path: str | Path) -> str:
    """The md5 that DVC 3 records in dvc.lock for a file or folder (`<32 hex>` or `<32 hex>.dir`).

    Empty folders leave no trace in it, as in DVC. What .dvcignore would leave out is counted.
    Raises UserError when there is nothing at `path`.
    """
    path = Path(path)
    if path.is_file():
        return file_md5(path)
    if not path.is_dir():
        raise UserError(f"{path}: neither a file nor a folder")
    listing = [{"md5": file_md5(file), "relpath": name} for name, file in _files(path)]
    text = json.dumps(listing, sort_keys=True).encode()
    return hashlib.md5(text, usedforsecurity=False).hexdigest() + ".dir"


def fetch(uri: str, to: str | Path, md5: str | None = None) -> Path:
    """Copy a file or folder from `uri` to `to`, whole or not at all; a path, file://, s3://bucket/key, or http(s)://.

    With `md5` (as `dvc_md5` gives it) the copy is checked, and a matching one that is already there is
    kept. Raises UserError naming the URI when nothing is there or the md5 differs.
    """
    to = Path(to)
    if md5 and to.exists() and dvc_md5(to) == md5:
        return to
    with tempfile.TemporaryDirectory(prefix=f".{to.name}.", dir=_made(to.parent)) as aside:
        copy = Path(aside) / "copy"
        if uri.startswith("s3://"):
            _download(uri, copy)
        elif uri.startswith(("http://", "https://")):
            _download_web(uri, copy)
        else:
            source = local_path(uri)
            if not source.exists():
                raise UserError(f"{uri}: no such file or folder")
            _copy(source, copy)
        found = dvc_md5(copy) if md5 else None
        if found != md5:
            raise UserError(f"{uri}: has md5 {found}, not {md5}; fetch the version that was recorded")
        _move_into_place(copy, to)
    return to


def put(path: str | Path, uri: str) -> str:
    """Copy a file or folder to `uri`, and give its md5. Raises UserError when there is nothing at `path`."""
    path = Path(path)
    md5 = dvc_md5(path)
    if uri.startswith("s3://"):
        bucket, key = bucket_and_key(uri)
        client = s3_client()
        pairs = [(f"{key}/{name}", file) for name, file in _files(path)] if path.is_dir() else [(key, path)]
        try:
            for name, file in pairs:
                client.upload_file(str(file), bucket, name)
        except _s3_errors() as error:
            raise _unreachable(uri, "written", error) from None
        return md5
    to = local_path(uri)
    with tempfile.TemporaryDirectory(prefix=f".{to.name}.", dir=_made(to.parent)) as aside:
        copy = Path(aside) / "copy"
        _copy(path, copy)
        _move_into_place(copy, to)
    return md5


def dvc_object(remote: str, md5: str) -> str:
    """Where a DVC remote keeps the object with this md5."""
    return f"{remote.rstrip('/')}/files/md5/{md5[:2]}/{md5[2:]}"


def fetch_dvc(remote: str, md5: str, to: str | Path) -> Path:
    """Fetch what dvc.lock records as `md5` from a DVC remote (a folder or s3://), without DVC.

    With the variable SIXSTREAM_CACHE the objects are kept in that folder, and `to` has links to them.
    Raises UserError naming the object that is missing or damaged.
    """
    to = Path(to)
    if to.exists() and dvc_md5(to) == md5:
        return to
    if not md5.endswith(".dir"):
        return _fetch_object(remote, md5, to)
    with tempfile.TemporaryDirectory(prefix=f".{to.name}.", dir=_made(to.parent)) as aside:
        listing = _fetch_object(remote, md5, Path(aside) / "listing")
        entries = json.loads(listing.read_text(encoding="utf-8"))
        with staged_dir(to) as folder:
            for entry in entries:
                name = entry["relpath"]
                file = (folder / name).resolve()
                if not file.is_relative_to(folder.resolve()):
                    raise UserError(f"{dvc_object(remote, md5)}: lists {name}, outside its folder")
                _fetch_object(remote, entry["md5"], file)
    return to


def _fetch_object(remote: str, md5: str, to: Path) -> Path:
    """Fetch one object, a file or the listing of a folder, by way of the cache if there is one."""
    uri, digest = dvc_object(remote, md5), md5.removesuffix(".dir")
    folder = os.environ.get(KEPT)
    if not folder:
        return fetch(uri, to, digest)
    kept = Path(dvc_object(folder, md5)).absolute()
    _made(kept.parent)
    with locked(kept.parent / "lock"):
        if not kept.exists() or file_md5(kept) != digest:
            _fill(uri, digest, kept)
    to.unlink(missing_ok=True)
    _made(to.parent)
    to.symlink_to(kept)
    return to


def _fill(uri: str, md5: str, kept: Path) -> None:
    """Fetch an object into the cache; what a killed task left of it is gone on with."""
    part = kept.with_name(f"{kept.name}.part")
    for _ in range(2):  # what was left may be of no use: once more from the beginning
        begun = part.exists()
        if uri.startswith("s3://"):
            bucket, key = bucket_and_key(uri)
            try:
                download(s3_client(), bucket, key, part)
            except _s3_errors() as error:
                raise _unreachable(uri, "read", error) from None
        else:
            fetch(uri, part)
        found = file_md5(part)
        if found == md5:
            os.replace(part, kept)
            return
        part.unlink()
        if not begun:
            break
    raise UserError(f"{uri}: has md5 {found}, not {md5}; fetch the version that was recorded")


def local_path(uri: str) -> Path:
    """The path that a plain path or file:// URI means. Raises UserError for any other scheme."""
    parts = urlsplit(uri)
    if parts.scheme == "file":
        from urllib.request import url2pathname

        return Path(url2pathname(parts.path))
    if "://" in uri:
        raise UserError(f"{uri}: only paths, file://, s3:// and, to read from, http(s):// are understood")
    return Path(uri)


def _files(folder: Path) -> list[tuple[str, Path]]:
    """The files of a folder with their names inside it, in DVC's order: by name, as plain text."""
    return sorted((file.relative_to(folder).as_posix(), file) for file in folder.rglob("*") if file.is_file())


def s3_client(config: Any = None) -> Any:
    """A client of S3, with a botocore Config of its own if need be."""
    import boto3
    from botocore.config import Config

    # Some servers send the checksum of the whole object with a part of it; ours is the md5.
    ours = Config(response_checksum_validation="when_required")
    config = ours.merge(config) if config is not None else ours
    # A session of its own: boto3's common one keeps the first credentials it saw.
    endpoint = os.environ.get("AWS_ENDPOINT_URL") or None
    return boto3.Session().client("s3", endpoint_url=endpoint, config=config)


def _s3_errors() -> tuple[type[Exception], ...]:
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    return Boto3Error, BotoCoreError, ClientError


def _unreachable(uri: str, verb: str, error: Exception) -> UserError:
    return UserError(f"{uri}: cannot be {verb} ({error}); check the bucket, the credentials and AWS_ENDPOINT_URL")


def bucket_and_key(uri: str) -> tuple[str, str]:
    """The parts of s3://bucket/key. Raises UserError when one is missing."""
    parts = urlsplit(uri)
    key = parts.path.strip("/")
    if not parts.netloc or not key:
        raise UserError(f"{uri}: write it as s3://bucket/key")
    return parts.netloc, key


def _download(uri: str, to: Path) -> None:
    """A single object, or every object below the key as a folder."""
    bucket, key = bucket_and_key(uri)
    client = s3_client()
    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
        names = [item["Key"] for page in pages for item in page.get("Contents", [])]
        if key in names:
            download(client, bucket, key, to)
            return
        inside = [name for name in names if name.startswith(f"{key}/") and not name.endswith("/")]
        if not inside:
            raise UserError(f"{uri}: no such object")
        for name in inside:
            file = to / name.removeprefix(f"{key}/")
            file.parent.mkdir(parents=True, exist_ok=True)
            download(client, bucket, name, file)
    except _s3_errors() as error:
        raise _unreachable(uri, "read", error) from None


def _download_web(uri: str, to: Path) -> None:
    """A single file; one cut short is refused."""
    from urllib.error import URLError
    from urllib.request import urlretrieve

    try:
        urlretrieve(uri, to)
    except (URLError, OSError) as error:
        raise UserError(f"{uri}: cannot be read ({error}); check the address and try again") from None


def _copy(source: Path, to: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, to)
    else:
        shutil.copyfile(source, to)


def _move_into_place(copy: Path, to: Path) -> None:
    if copy.is_dir():
        with staged_dir(to) as folder:
            folder.rmdir()
            os.replace(copy, folder)
    else:
        os.replace(copy, to)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
