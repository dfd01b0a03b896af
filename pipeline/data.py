"""`sixstream data import | check | diff`: data from anywhere, looked at before they are trusted, compared."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from components.data_check import as_text, check_store, guess_split, pack_raw
from components.data_diff import as_text as diff_text
from components.data_diff import diff_stores
from components.detect import detect_reader
from components.files import read_json, write_json, write_text
from components.labels import BESIDE
from components.params import Data, Dataset, parse_params, read_params
from components.readers import open_source
from components.storage import fetch
from model.errors import UserError
from model.store import Store, open_store
from pipeline.catalogue import expand, load_expanded

RAW, PACKED = Path("data/raw"), Path("data/packed")
BATCH = 16
# Narrow enough for a CPU, as the sample's; a released recipe is the choice for a GPU.
STARTING_NETWORK = {
    "base_channels": 24, "num_stages": 5, "inflate_stages": [3, 5], "down_stages": [3, 5], "num_prototypes": 20,
}  # fmt: skip
STARTING_RECIPE = {
    "clip_length": 32,
    "test_clips": 3,
    "epochs": 30,
    "lr": 0.05,
    "network": {"protogcn": STARTING_NETWORK},
}


def import_data(
    source: str,
    /,
    *,
    name: str,
    reader: str = "",
    to: str = "",
    image_size: list[int] | None = None,
    write: bool = False,
    file: Path = Path("params.yaml"),
) -> None:
    """Bring raw data to data/raw/NAME, track them with DVC, and print the entry of params.yaml that reads them.

    Args:
        source: a folder, archive or file, here (labels.csv and the like come with a file), at s3:// or http(s)://.
        name: name of the dataset.
        reader: form of the data; found out by itself if not given.
        to: layout to which the joints are mapped by their names.
        image_size: height and width of the images in pixels, where the data do not say.
        write: add the entry to the parameters in place of printing it.
        file: the file of parameters that --write adds to.

    Raises:
        UserError: nothing that a reader knows is there, or the name is taken.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(f"--name {name}: use letters, digits, '_', '-' and '.'")
    raw = RAW / name
    if raw.exists():
        raise UserError(f"{raw}: is there already; choose another name, or remove it first")
    if write and name in (read_params(file).get("datasets") or {}):
        raise UserError(f"{file}: has an entry {name!r} already; choose another name")
    with tempfile.TemporaryDirectory(prefix=".import-", dir=_made(RAW)) as aside:
        copy = Path(aside) / name
        _bring(source, copy)
        data = Data(
            reader=reader or detect_reader(copy), to=to, options={"image_size": image_size} if image_size else {}
        )
        entry = _entry(data, copy)
        os.replace(copy, raw)
    _track(raw, source)
    text = yaml.safe_dump({name: entry}, sort_keys=False, default_flow_style=None, width=110)
    if write:
        _add(file, text)
        print(f"{file}: entry {name!r} added; make it the one that runs with `dataset: {name}`", file=sys.stderr)
    else:
        print("# under `datasets:` in params.yaml")
        print(_indented(text), end="")


def check(target: str, /, *, out: Path | None = None, file: Path = Path("params.yaml")) -> int:
    """Look at the raw data of a dataset, or at a packed store, and write a page and a JSON of what was found.

    Args:
        target: entry of `datasets`, whose raw data are read without preparation, or the folder of a store.
        out: folder of check.html and check.json (default: reports/data/NAME).
        file: the parameters.

    Returns:
        0, or 2 when training on these data would be meaningless.
    """
    store_folder = Path(target)
    with tempfile.TemporaryDirectory(prefix="sixstream-") as scratch:
        if (store_folder / "store.json").is_file():
            store, name, split = open_store(store_folder), store_folder.resolve().name, None
            aside = store_folder / "excluded.json"
            excluded = read_json(aside) if aside.is_file() else []
        else:
            entry, name = _entry_of(target, file), target
            store, excluded = pack_raw(entry.data, RAW / target, Path(scratch) / "store")
            split = (entry.split.train, entry.split.test)
        folder = out or Path("reports/data") / name
        numbers = check_store(store, excluded, split, folder, name)
    print(as_text(numbers))
    print(f"{folder / 'check.html'} and check.json say more", file=sys.stderr)
    return 2 if any(finding["level"] == "error" for finding in numbers["findings"]) else 0


def diff(
    old: str, new: str = "", /, *, rev: str = "", out: Path | None = None, file: Path = Path("params.yaml")
) -> None:
    """Print the clips added, removed, relabelled and changed between two packed stores, or since a git revision.

    Args:
        old: a dataset's name, or the folder of its store.
        new: the other one.
        rev: git revision whose raw data of the dataset are compared with the present ones, in place of a second store.
        out: also write the whole difference to this JSON file.
        file: the parameters, which say how raw data are read.

    Raises:
        UserError: no such store, dataset or revision, or its data are neither in DVC's cache nor on the remote.
    """
    if bool(new) == bool(rev):
        raise UserError("data diff: name two stores, or one dataset and --rev REVISION")
    if rev:
        found = _diff_since(old, rev, file)
    else:
        found = diff_stores(_store(old), _store(new))
    if out is not None:
        write_json(out, found)
    print(diff_text(found))


def _diff_since(name: str, rev: str, file: Path) -> dict[str, Any]:
    """The difference between the raw data at a git revision and now, both read by the present entry."""
    data = _entry_of(name, file).data
    with tempfile.TemporaryDirectory(prefix="sixstream-") as scratch:
        aside = Path(scratch)
        _dvc(f"{name} at {rev}", "get", ".", str(RAW / name), "--rev", rev, "--out", str(aside / "raw"))
        before, _ = pack_raw(data, aside / "raw", aside / "before")
        after, _ = pack_raw(data, RAW / name, aside / "after")
        return diff_stores(before, after)


def _entry_of(name: str, file: Path) -> Dataset:
    datasets = load_expanded(file).datasets
    if name not in datasets:
        raise UserError(f"{name}: neither a packed store nor one of the datasets {', '.join(datasets)}")
    return datasets[name]


def _bring(source: str, to: Path) -> None:
    """Copy the source; of a single file also the labels, splits and description that lie beside it."""
    path = Path(source)
    if "://" in source:
        fetched = fetch(source, to.with_name("fetched"))
        if fetched.is_dir():
            os.replace(fetched, to)
        else:
            to.mkdir()
            os.replace(fetched, to / Path(source).name)
        return
    if not path.exists():
        raise UserError(f"{source}: no such file or folder")
    if path.is_dir():
        shutil.copytree(path, to)
        return
    to.mkdir()
    beside = [path.parent / name for name in BESIDE] + [path.with_suffix(".json")]
    for file in {path, *(other for other in beside if other.is_file())}:
        shutil.copyfile(file, to / file.name)


def _entry(data: Data, raw: Path) -> dict[str, Any]:
    """An entry that reads `raw`, with a split that its names tell and a recipe to start from."""
    source = open_source(data, raw)
    split = guess_split(source.splits)
    protocol = split[0].replace("train", "").strip("_") if split else ""
    if split is None:
        print(f"no training and test split among {', '.join(source.splits)}: name them in {BESIDE[1]}", file=sys.stderr)
    clip = next(iter(source.clips), None)
    if clip is None:
        raise UserError(
            f"{raw.name}: no clip can be used: {source.excluded[0][1] if source.excluded else 'none there'}"
        )
    recipe: dict[str, Any] = dict(STARTING_RECIPE)
    if source.channels[-1] == "z":
        own: dict[str, Any] = {"prepare": [{"name": "normalise_3d"}]}
    else:
        own = {}
        if clip.image_size is not None:
            recipe["normalise_2d"] = "mmaction2"
        else:
            print(
                "no image size is known, so pixels are not normalised; give --image-size HEIGHT WIDTH", file=sys.stderr
            )
    train, tests = split or ("train", ["test"])
    # A fifth of the training clips is held out to choose the epoch.
    recipe["batch_size"] = max(1, min(BATCH, len(source.splits.get(train, ())) * 4 // 5))
    return {
        "data": {**data.model_dump(exclude_defaults=True), **own},
        "split": {"name": protocol or "official", "train": train, "test": tests},
        "recipe": recipe,
    }


def _track(raw: Path, source: str) -> None:
    """`dvc add`, of an address `dvc import-url`, where this is a DVC repository."""
    if not any((folder / ".dvc").is_dir() for folder in (Path.cwd(), *Path.cwd().parents)):
        print(f"{raw}: not in a DVC repository, so not tracked", file=sys.stderr)
        return
    if "://" not in source:
        _dvc(f"{raw} is in place", "add", "--quiet", str(raw))
        print(f"{raw}.dvc: tracks it; `dvc push` shares it", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory(prefix=".import-", dir=RAW) as aside:
        _dvc(f"{raw} is in place", "import-url", "--quiet", "--no-download", source, str(Path(aside) / raw.name))
        entry = yaml.safe_load((Path(aside) / f"{raw.name}.dvc").read_text(encoding="utf-8"))
    del entry["md5"]  # of the entry itself, which `dvc commit` writes anew, with the md5 of the data
    single = [path.name for path in raw.iterdir()] if (raw / Path(source).name).is_file() else []
    entry["outs"][0]["path"] = "/".join([raw.name, *single])
    write_text(raw.with_name(f"{raw.name}.dvc"), yaml.safe_dump(entry, sort_keys=False))
    _dvc(f"{raw} is in place", "commit", "--quiet", "--force", f"{raw}.dvc")
    print(f"{raw}.dvc: tracks it; `dvc update {raw}.dvc` brings a new version from {source}", file=sys.stderr)


def _dvc(what: str, *arguments: str) -> None:
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{what}: dvc {arguments[0]} failed: {done.stderr.strip()}")


def _add(file: Path, text: str) -> None:
    """Add an entry at the end of `datasets:`, leaving every other line of the file as it is."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    start = next((i for i, line in enumerate(lines) if re.match(r"datasets:\s*(#.*)?$", line)), None)
    if start is None:
        raise UserError(f"{file}: has no line 'datasets:'; paste the entry by hand:\n{text}")
    end = next((i for i in range(start + 1, len(lines)) if re.match(r"[^\s#]", lines[i])), len(lines))
    if not lines[end - 1].endswith("\n"):
        lines[end - 1] += "\n"
    content = "".join([*lines[:end], "\n", _indented(text), *lines[end:]])
    parse_params(expand(yaml.safe_load(content), str(file)), str(file))
    write_text(file, content)


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())


def _store(name: str) -> Store:
    return open_store(name if (Path(name) / "store.json").is_file() else PACKED / name)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
