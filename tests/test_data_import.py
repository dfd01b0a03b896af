"""Data from anywhere: import → entry of params.yaml → check → train → predict, for every form."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import yaml
from pose_files import write_coco, write_labels, write_mediapipe, write_openpose, write_table
from s3_server import serve_s3
from small_run import annotations, small_params, write_params, write_raw
from test_readers import raw_folder

from components.bundle import BundleMember, load_bundle, write_bundle
from components.detect import detect_reader
from components.params import load_params
from components.storage import dvc_md5, put
from components.tracked import preparation
from model.errors import UserError
from model.layouts import load_layout
from model.store import open_store
from pipeline.cli import main

NTU = [f"S001C00{c}P00{p}R001A0{a:02}" for c in (1, 2) for p in (1, 3) for a in (1, 2)]


@pytest.fixture()
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, small_params())
    return tmp_path


def ntu_zip(folder: Path) -> None:
    folder.mkdir()
    files = folder.parent / "files"
    files.mkdir()
    raw_folder(files, NTU)
    with zipfile.ZipFile(folder / "nturgbd.zip", "w") as archive:
        for file in files.iterdir():
            archive.write(file, f"nturgb+d_skeletons/{file.name}")


FORMS: dict[str, tuple[Any, str, str]] = {
    "openpose": (write_openpose, "openpose", "train"),
    "coco": (lambda f: write_coco(f, "dataset"), "coco", "train"),
    "coco results": (lambda f: write_coco(f, "results"), "coco", "train"),
    "mediapipe": (lambda f: write_mediapipe(f, "json"), "mediapipe", "train"),
    "mediapipe arrays": (lambda f: write_mediapipe(f, "npz"), "mediapipe", "train"),
    "table": (lambda f: write_table(f, list(load_layout("coco").joints), ["x", "y"]), "table", "train"),
    "columns": (lambda f: write_table(f, list(load_layout("coco").joints), ["x", "y", "z"], "npz"), "table", "train"),
    "pickle": (lambda f: write_raw(f, annotations()), "annotations", "a_train"),
    "zip": (ntu_zip, "ntu_raw", "xsub_train"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_found_out_imported_checked_and_packed(place, form, capsys):
    write, reader, train = FORMS[form]
    write(place / "own")
    assert detect_reader(place / "own") == reader
    before = Path("params.yaml").read_text()
    assert main(["data", "import", "own", "--name", "mine", "--write"]) == 0
    after = Path("params.yaml").read_text()
    assert after.startswith(before) and "dataset: small" in after
    entry = load_params("params.yaml").datasets["mine"]
    assert (entry.data.reader, entry.split.train) == (reader, train)
    kept = sorted(path.name for path in Path("data/raw/mine").rglob("*") if path.is_file())
    assert kept == sorted(path.name for path in (place / "own").rglob("*") if path.is_file())
    assert not [path for path in Path("data/raw").iterdir() if path.name.startswith(".import")]
    assert main(["data", "check", "mine", "--out", "seen"]) == 0, capsys.readouterr().out
    Path("params.yaml").write_text(after.replace("dataset: small", "dataset: mine"))
    assert main(["preprocess", "--raw", "data/raw/mine", "--out", "packed"]) == 0
    store = open_store("packed")
    assert len(store) == json.loads(Path("seen/check.json").read_text())["clips"]
    assert set(entry.split.test) <= set(store.splits)


def test_a_file_brings_what_lies_beside_and_the_entry_is_printed(place, capsys):
    write_coco(place / "own", "dataset")
    (place / "own" / "notes.txt").write_text("not asked for")
    line = ["--name", "mine", "--image-size", "480", "640", "--to", "openpose"]
    assert main(["data", "import", "own/person_keypoints.json", *line]) == 0
    assert sorted(path.name for path in Path("data/raw/mine").iterdir()) == ["labels.csv", "person_keypoints.json"]
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["mine"]["data"] == {"reader": "coco", "options": {"image_size": [480, 640]}, "to": "openpose"}
    assert printed["mine"]["recipe"]["normalise_2d"] == "mmaction2"
    assert printed["mine"]["split"] == {"name": "official", "train": "train", "test": ["test"]}
    assert "mine" not in Path("params.yaml").read_text()


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_data_come_from_a_bucket(place, monkeypatch, kind):
    write_table(place / "own", list(load_layout("penn13").joints), ["x", "y"])
    with serve_s3() as server:
        for variable, value in server.environment.items():
            monkeypatch.setenv(variable, value)
        with zipfile.ZipFile(place / "own.zip", "w") as archive:
            for file in (place / "own").iterdir():
                archive.write(file, f"own/{file.name}")
        put(place / "own", "s3://bucket/own")
        put(place / "own.zip", "s3://bucket/own.zip")
        uri = "s3://bucket/own" + (".zip" if kind == "file" else "")
        assert main(["data", "import", uri, "--name", "mine", "--write"]) == 0
    kept = sorted(path.name for path in Path("data/raw/mine").iterdir())
    assert kept == (["own.zip"] if kind == "file" else ["labels.csv", "poses.csv"])
    assert main(["data", "check", "mine"]) == 0


def test_what_cannot_be_imported_leaves_nothing(place, capsys):
    write_openpose(place / "own")
    for arguments, words in (
        (["nowhere", "--name", "a"], "nowhere: no such"),
        (["own", "--name", "../a"], "use letters"),
        (["own", "--name", "small", "--write"], "has an entry 'small' already"),
        (["own", "--name", "a", "--reader", "octopus"], "'octopus' is none of"),
        (["own", "--name", "a", "--to", "handmp"], "no joint of 'handmp'"),
    ):
        assert main(["data", "import", *arguments]) == 2
        assert (
            words in capsys.readouterr().err
            and list(Path("data/raw").iterdir() if Path("data/raw").is_dir() else []) == []
        )
    (place / "own" / "labels.csv").unlink()
    assert main(["data", "import", "own", "--name", "a"]) == 2
    assert "write labels.csv there" in capsys.readouterr().err
    write_labels(place / "own")
    assert main(["data", "import", "own", "--name", "a"]) == 0
    assert main(["data", "import", "own", "--name", "a"]) == 2
    assert "is there already" in capsys.readouterr().err


def test_unknown_forms_are_named(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match="holds none of"):
        detect_reader(tmp_path)
    (tmp_path / "a.json").write_text('{"what": 1}')
    with pytest.raises(UserError, match="a.json: neither COCO"):
        detect_reader(tmp_path)


def test_import_ends_with_an_artifact_that_dvc_tracks(place):
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], check=True, env=environment)
    write_table(place / "own", list(load_layout("penn13").joints), ["x", "y"])
    assert main(["data", "import", "own", "--name", "mine", "--write"]) == 0
    (out,) = yaml.safe_load(Path("data/raw/mine.dvc").read_text())["outs"]
    assert out["path"] == "mine" and out["md5"] == dvc_md5("data/raw/mine")
    assert main(["preprocess", "--raw", "data/raw/mine", "--out", "packed"]) == 2  # `small` is still what runs
    text = Path("params.yaml").read_text().replace("dataset: small", "dataset: mine")
    Path("params.yaml").write_text(text)
    assert main(["preprocess", "--raw", "data/raw/mine", "--out", "packed"]) == 0
    assert open_store("packed").data_hash == out["md5"]


@contextmanager
def web_server(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("kind", ["http", "s3 folder", "s3 file"])
def test_an_address_becomes_an_import_url_entry(place, monkeypatch, kind):
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}

    def dvc(*arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "dvc", *arguments], check=True, env={**environment, **os.environ})

    dvc("init", "-q", "--no-scm")
    with web_server(place / "served") as web, serve_s3() as server:
        for variable, value in server.environment.items():
            monkeypatch.setenv(variable, value)
        served = place / "served" if kind == "http" else server.folder / "bucket"
        served.mkdir(exist_ok=True)
        write_table(place / "own", list(load_layout("penn13").joints), ["x", "y"])
        if kind == "s3 folder":
            uri = "s3://bucket/own"
            changed = Path(shutil.copytree(place / "own", served / "own")) / "labels.csv"
        else:
            uri = f"{web}/own.zip" if kind == "http" else "s3://bucket/own.zip"
            changed = served / "own.zip"
            with zipfile.ZipFile(changed, "w") as archive:
                for file in (place / "own").iterdir():
                    archive.write(file, f"own/{file.name}")
        assert main(["data", "import", uri, "--name", "mine", "--write"]) == 0
        entry = yaml.safe_load(Path("data/raw/mine.dvc").read_text())
        assert entry["deps"][0]["path"] == uri and entry["frozen"]
        # An archive is one tracked file, whatever it holds.
        assert entry["outs"][0]["path"] == ("mine" if kind == "s3 folder" else "mine/own.zip")
        assert entry["outs"][0].get("nfiles", 1) == (2 if kind == "s3 folder" else 1)
        before = dvc_md5("data/raw/mine")
        shutil.rmtree("data/raw/mine")
        dvc("checkout", "-q")
        assert dvc_md5("data/raw/mine") == before
        changed.write_bytes(changed.read_bytes() + b"\n")
        dvc("update", "-q", "data/raw/mine.dvc")
        assert dvc_md5("data/raw/mine") != before
        assert (Path("data/raw/mine") / changed.name).read_bytes() == changed.read_bytes()
    assert sorted(path.name for path in Path("data/raw").iterdir()) == ["mine", "mine.dvc"]


def test_a_download_cut_short_or_missing_leaves_nothing(place, capsys):
    class Short(SimpleHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"clip,")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Short)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        uri = f"http://127.0.0.1:{server.server_address[1]}/poses.csv"
        assert main(["data", "import", uri, "--name", "mine"]) == 2
        assert "poses.csv: cannot be read" in capsys.readouterr().err
    finally:
        server.shutdown()
        server.server_close()
    assert main(["data", "import", uri, "--name", "mine"]) == 2
    assert list(Path("data/raw").iterdir()) == []


def ntu_folder(folder: Path) -> None:
    folder.mkdir()
    raw_folder(folder, NTU)


@pytest.mark.parametrize("form", ["openpose", "pickle", "zip", "folder", "table"])
def test_from_files_to_predictions(place, capsys, database, form):
    shutil.copyfile(database, place / "mlflow.db")
    {**{name: write for name, (write, _, _) in FORMS.items()}, "folder": ntu_folder}[form](place / "own")
    size = ["--image-size", "480", "640"] if form in ("openpose", "table") else []
    assert main(["data", "import", "own", "--name", "mine", *size, "--write"]) == 0
    assert main(["data", "check", "mine"]) == 0
    content = yaml.safe_load(Path("params.yaml").read_text())
    content["dataset"], content["protocol"] = "mine", "last"
    recipe = content["datasets"]["mine"]["recipe"]
    recipe |= {"epochs": 1, "clip_length": 8, "test_clips": 1, "batch_size": 2}
    recipe["network"] = content["datasets"]["small"]["recipe"]["network"]
    recipe["streams"] = content["datasets"]["small"]["recipe"]["streams"]
    write_params(place, content)
    assert main(["preprocess", "--raw", "data/raw/mine", "--out", "packed"]) == 0
    assert main(["train", "--member", "joint", "--data", "packed", "--out", "joint/train"]) == 0
    bundle = write_bundle(
        place / "bundle", "mine", [BundleMember("joint", Path("joint/train/last.pt"))], open_store("packed"),
        preparation(load_params("params.yaml")),
    )  # fmt: skip
    capsys.readouterr()
    assert main(["predict", str(bundle), "own", "--as-json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert sorted(answer["id"] for answer in answers) == sorted(open_store("packed").ids)
    assert {answer["class"] for answer in answers} <= set(open_store("packed").classes)
    same = load_bundle(bundle, "cpu").score(open_store("packed"), np.arange(len(answers)), "all")
    expected = dict(zip(same.ids, same.scores.tolist(), strict=True))
    assert all(np.allclose(answer["scores"], expected[answer["id"]], atol=1e-5) for answer in answers)
