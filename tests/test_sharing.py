"""docs/DATA.md, `Sharing`: its commands, run by real DVC, over a folder, over S3 with keys, with one cache for two."""

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from s3_server import serve_s3
from small_run import annotations, small_params, write_params, write_raw

from model.store import open_store
from pipeline.cli import main

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "DATA.md").read_text(encoding="utf-8")
PULL = ("dvc", "pull", "--allow-missing")
GRAPH = {"stages": {"count": {
    "cmd": "wc -c data/raw/mine/a.csv > counted",
    "deps": ["data/raw/mine"], "outs": ["counted"],
}}}  # fmt: skip


def commands(heading: str) -> list[list[str]]:
    """The commands under a heading of the document."""
    section = re.split(r"\n#+ ", TEXT[TEXT.index(f"# {heading}\n") + 2 :])[0]
    return [line.split() for line in re.findall(r"^    (\S.*)$", section, re.MULTILINE)]


def run(folder: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments] if arguments[0] == "dvc" else list(arguments)
    # Keys and end points come from DVC's configuration only.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment = {**kept, "DVC_NO_ANALYTICS": "1", "DVC_GLOBAL_CONFIG_DIR": str(folder.parent / "no-config")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert not check or done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done


def git(folder: Path, *arguments: str) -> None:
    run(folder, "git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments)


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A clone with this repository's DVC configuration, imported data and a stage that has run."""
    place = tmp_path / "first"
    (place / "data" / "raw" / "mine").mkdir(parents=True)
    git(place, "init", "-q")
    run(place, "dvc", "init", "-q")
    shutil.copyfile(ROOT / ".dvc" / "config", place / ".dvc" / "config")
    for name in ("a.csv", "b.csv"):
        (place / "data" / "raw" / "mine" / name).write_text(name * 10)
    (place / "dvc.yaml").write_text(yaml.safe_dump(GRAPH))
    run(place, "dvc", "add", "-q", "data/raw/mine")
    run(place, "dvc", "repro", "-q")
    git(place, "add", "-A")
    git(place, "commit", "-qm", "data")
    return place


def clone(first: Path, name: str) -> Path:
    git(first.parent, "clone", "-q", str(first), name)
    return first.parent / name


def assert_nothing_to_do(folder: Path, first: Path) -> None:
    assert content(folder / "data/raw/mine") == content(first / "data/raw/mine")
    done = run(folder, "dvc", "repro")
    assert "up to date" in done.stdout + done.stderr and "Running stage" not in done.stdout


def test_without_a_word_data_go_to_the_folder_beside(first: Path) -> None:
    run(first, "dvc", "push")
    assert (first.parent / "sixstream-data" / "files" / "md5").is_dir()
    second = clone(first, "second")
    run(second, *PULL)
    assert_nothing_to_do(second, first)


def test_s3_with_keys_and_without(first: Path) -> None:
    with serve_s3() as server:
        keys = server.environment
        given = {
            "s3://BUCKET/sixstream": "s3://bucket/sixstream", "http://s3.example:9000": server.endpoint,
            "KEY": keys["AWS_ACCESS_KEY_ID"], "SECRET": keys["AWS_SECRET_ACCESS_KEY"],
        }  # fmt: skip
        listed = [[given.get(word, word) for word in command] for command in commands("Sharing")]
        assert listed[-1] == ["dvc", "push"] and len(listed) == 6
        for command in listed[:-1]:
            run(first, *command)
        git(first, "commit", "-qam", "remote")
        assert given["SECRET"] not in (first / ".dvc" / "config").read_text()

        def refused(folder: Path, *command: str) -> None:
            run(folder, "dvc", "remote", "modify", "--local", "lab", "secret_access_key", "wrong")
            before = content(folder)
            done = run(folder, *command, check=False)
            assert done.returncode != 0 and "ERROR" in done.stderr
            after = {name: found for name, found in content(folder).items() if not name.startswith(".dvc/tmp/")}
            assert after.items() <= before.items()
            run(folder, *listed[-2])

        refused(first, *listed[-1])
        assert content(server.folder) == {}
        run(first, *listed[-1])
        assert any(name.startswith("bucket/sixstream/files/md5/") for name in content(server.folder))

        second = clone(first, "second")
        for command in listed[3:-1]:
            run(second, *command)
        refused(second, *PULL)
        assert not (second / "data/raw/mine").exists()
        run(second, *PULL)
        assert_nothing_to_do(second, first)


def test_one_cache_for_the_workstations_of_a_lab(first: Path) -> None:
    shared = first.parent / "srv" / "dvc-cache"
    given = {"/srv/dvc-cache": str(shared), "GROUP": str(os.getgid())}
    listed = [
        [given.get(word, word) for word in command] for command in commands("One cache for the workstations of a lab")
    ]
    umask = os.umask(0o002)
    try:
        second = clone(first, "second")
        for command in listed[:3]:
            run(first, *command)
        for command in [*listed[3:-1], ["dvc", "commit", "--force"], listed[-1]]:  # it holds data already
            run(first, *command)
        for command in listed[3:]:
            run(second, *command)
        (second / "data" / "raw" / "more").mkdir()
        (second / "data" / "raw" / "more" / "c.csv").write_text("new")
        run(second, "dvc", "add", "-q", "data/raw/more")
        run(second, *listed[-1])
    finally:
        os.umask(umask)
    assert_nothing_to_do(second, first)
    for file in (second / "data/raw/mine/a.csv", second / "data/raw/more/c.csv", second / "counted"):
        assert _is_link(file, shared), file
        if not _reflinks(first.parent):
            assert not stat.S_IMODE(file.stat().st_mode) & 0o222, f"{file} is writable"
    for folder in (path for path in [shared, *shared.rglob("*")] if path.is_dir() and "tmp" not in path.parts):
        assert stat.S_IMODE(folder.stat().st_mode) & 0o070 == 0o070, f"{folder} is not the group's to write"
        assert folder.stat().st_gid == os.getgid()


def _is_link(file: Path, cache: Path) -> bool:
    """Whether a file's bytes are the cache's own."""
    md5 = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
    return file.samefile(cache / "files" / "md5" / md5[:2] / md5[2:]) or _reflinks(cache.parent)


def _reflinks(folder: Path) -> bool:
    """Whether this file system can share the blocks of two files, which then differ in all that can be asked."""
    (folder / "probe").write_text("x")
    command = ["cp", "--reflink=always", str(folder / "probe"), str(folder / "probe-2")]
    return subprocess.run(command, capture_output=True).returncode == 0


def test_linked_read_only_data_are_packed_and_the_store_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a workstation has them: raw data linked from a cache, the store in a folder that nobody may write to."""
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, small_params())
    cache = write_raw(tmp_path / "cache", annotations())
    Path("raw").mkdir()
    for file in cache.iterdir():
        file.chmod(0o444)
        (tmp_path / "raw" / file.name).symlink_to(file)
    assert main(["preprocess", "--raw", "raw", "--out", "packed"]) == 0
    before = content(Path("packed"))
    for path in [*Path("packed").iterdir(), Path("packed")]:
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        store = open_store("packed")
        with pytest.raises(ValueError, match="read-only"):
            store.joints[0] = 0
        with pytest.raises(ValueError, match="read-only"):
            store.clip(0)[...] = 0
        assert content(Path("packed")) == before
    finally:
        Path("packed").chmod(0o755)
