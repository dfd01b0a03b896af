"""docs/DATA.md does what it says: its generator, its import and its check."""

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

TEXT = (Path(__file__).parent.parent / "docs" / "DATA.md").read_text(encoding="utf-8")


def test_every_reader_and_verb_is_in_the_document():
    assert re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE) == list(READERS)
    for verb in re.findall(r"sixstream (data [a-z]+|[a-z-]+)", TEXT):
        assert verb.replace(" ", "-") in SUMMARIES, verb


def test_the_example_is_imported_and_sound(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, small_params())
    generator = textwrap.dedent(re.search(r"<<'END'\n(.*)\n    END", TEXT, re.DOTALL)[1])
    subprocess.run([sys.executable, "-c", generator], check=True)
    assert main(["data", "import", "mine", "--name", "mine", "--write"]) == 0
    assert main(["data", "check", "mine"]) == 0
    said = capsys.readouterr().out
    assert "60 clips of 3 classes" in said and "error" not in said and "warning" not in said
    entry = yaml.safe_load(Path("params.yaml").read_text())["datasets"]["mine"]
    assert entry["split"] == {"name": "official", "train": "train", "test": ["test"]}


def test_the_layout_of_the_document_is_one():
    from model.layouts import layout_from_dict

    content = re.search(r'\{"joints": \["hip".*\}', TEXT)[0]
    try:
        assert layout_from_dict(yaml.safe_load(content), "DATA.md").mirror == (0, 1, 3, 2)
    except UserError as error:
        raise AssertionError(str(error)) from None
