"""docs/DATA.md does what it says: its generator, its import and its check."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import yaml
from small_run import small_params, write_params

from components.readers import READERS
from model.errors import UserError
from pipeline.cli import SUMMARIES, main
from pipeline.workspace import ROOT, fill_workspace

TEXT = (Path(__file__).parent.parent / "docs" / "DATA.md").read_text(encoding="utf-8")


def generator() -> str:
    """The program at the end of the document."""
    return textwrap.dedent(re.search(r"<<'END'\n(.*)\n    END", TEXT, re.DOTALL)[1])


def test_every_reader_and_verb_is_in_the_document():
    assert re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE) == list(READERS)
    for verb in re.findall(r"sixstream (data [a-z]+|[a-z-]+)", TEXT):
        assert verb.replace(" ", "-") in SUMMARIES, verb


def test_the_example_is_imported_and_sound(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, small_params())
    subprocess.run([sys.executable, "-c", generator()], check=True)
    assert main(["data", "import", "mine", "--name", "mine", "--write"]) == 0
    assert main(["data", "check", "mine"]) == 0
    said = capsys.readouterr().out
    assert "60 clips of 3 classes" in said and "error" not in said and "warning" not in said
    entry = yaml.safe_load(Path("params.yaml").read_text())["datasets"]["mine"]
    assert entry["split"] == {"name": "official", "train": "train", "test": ["test"]}


def test_the_walk_from_own_data_to_a_registered_model(tmp_path, monkeypatch):
    """The commands at the top, in their order, with the one member of the document and two epochs."""
    place = tmp_path / "clone"
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    fill_workspace(place, content | yaml.safe_load(re.search(r"```yaml\n(.*?)```", TEXT, re.DOTALL)[1]))
    subprocess.run([sys.executable, "-c", generator()], check=True, cwd=place)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    walk = re.findall(r"^    sixstream (.*?)\s*#", TEXT[: TEXT.index("## What is read")], re.MULTILINE)
    said = {}
    for command in walk:
        if command == "run":
            content = yaml.safe_load((place / "params.yaml").read_text())
            content["dataset"] = "mine"
            content["datasets"]["mine"]["recipe"]["epochs"] = 2
            (place / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        line = [sys.executable, "-m", "pipeline.cli", *command.split()]
        done = subprocess.run(line, cwd=place, env=environment, capture_output=True, text=True)
        allowed = (0, 1) if command.startswith("lineage") else (0,)  # 1: this code is not committed
        assert done.returncode in allowed, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        said[command.split()[0]] = done.stdout
    assert list(said) == ["data", "run", "predict", "lineage"] and "kick_59" in said["predict"]
    md5 = yaml.safe_load((place / "data" / "raw" / "mine.dvc").read_text())["outs"][0]["md5"]
    assert f"{md5}, data/raw/mine (in DVC's cache)" in said["lineage"]


def test_the_layout_of_the_document_is_one():
    from model.layouts import layout_from_dict

    content = re.search(r'\{"joints": \["hip".*\}', TEXT)[0]
    try:
        assert layout_from_dict(yaml.safe_load(content), "DATA.md").mirror == (0, 1, 3, 2)
    except UserError as error:
        raise AssertionError(str(error)) from None
