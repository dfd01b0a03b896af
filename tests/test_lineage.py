"""From a registered model to its data, code and runs, and back; what is gone is said with a remedy."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_register import EXPERIMENT, NAME, candidate, gate
from tiny_bundle import tiny_store

from components.environment import code_commit
from components.registration import MemberEntry, register, register_import
from components.storage import dvc_md5
from components.tracking import Tracker, connect
from model.store import Store
from pipeline.cli import main
from pipeline.workspace import ROOT

HEAD = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
URI = f"models:/{NAME}@champion"


def dvc(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *arguments], check=True)


@pytest.fixture
def tracker(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "DVC_STAGE", "SIXSTREAM_STAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    shutil.copy(database, tmp_path)
    monkeypatch.chdir(tmp_path)
    return connect(tmp_path)


@pytest.fixture
def md5(tmp_path: Path, tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> str:
    """A workspace under DVC with raw data, a store of them, two trained members and their registered ensemble."""
    if not HEAD:
        pytest.skip("not a git checkout")
    dvc("init", "-q", "--no-scm")
    raw = tmp_path / "data" / "raw" / "tiny"
    raw.mkdir(parents=True)
    for name in ("a.csv", "b.csv"):
        (raw / name).write_text(name)
    dvc("add", "-q", str(raw))
    md5 = str(yaml.safe_load((raw.parent / "tiny.dvc").read_text())["outs"][0]["md5"])
    store = _store(tmp_path / "data/packed/tiny", md5)
    parent = tracker.parent_run(EXPERIMENT, "pipeline", "pipeline/split", {"dataset": "tiny"})
    made = candidate(store, tmp_path, says=1)
    members = []
    for member in made.members:
        folder = tmp_path / "runs/tiny/development" / member.name
        for part in ("train", "scores"):
            (folder / part).mkdir(parents=True)
            (folder / part / "file").write_text(f"{member.name} {part}")
        dvc("add", "-q", *(str(folder / part) for part in ("train", "scores")))
        tags = {"mlflow.source.git.commit": HEAD}
        with tracker.member_run(EXPERIMENT, member.name, member.run_key, parent, tags, False) as run:
            run.log_params({"recipe": {"lr": 0.1}})
        outputs = {part: dvc_md5(folder / part) for part in ("train", "scores")}
        members.append(MemberEntry(**{**vars(member), "outputs": outputs}))
    monkeypatch.setenv("DVC_STAGE", "register")
    changed = {"members": members, "tags": {**made.tags, "code_commit": HEAD}}
    register(tracker, EXPERIMENT, parent, store, type(made)(**{**vars(made), **changed}), gate(store))
    return md5


def _store(folder: Path, md5: str) -> Store:
    store = tiny_store(folder, clips=36, labels=[0, 1, 2] * 12)
    about = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps({**about, "data_hash": md5}))
    from model.store import open_store

    assert store.folder == folder
    return open_store(folder)


def links(capsys: pytest.CaptureFixture[str], uri: str = URI) -> tuple[int, list[dict[str, Any]]]:
    capsys.readouterr()
    code = main(["lineage", uri, "--json"])
    return code, json.loads(capsys.readouterr().out)["links"]


def test_the_chain_is_whole_and_lost_links_are_named(
    md5: str, tracker: Tracker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = links(capsys)
    assert code == 0 and {link["state"] for link in found} == {"ok"}, found
    named = [(link["member"], link["what"]) for link in found]
    for member in ("joint", "bone"):
        for what in ("member", "checkpoint", "training", "scores", "run", "parameters", "code"):
            assert (member, what) in named
    own = {link["what"]: link for link in found if not link["member"]}
    assert list(own) == ["model", "pipeline", "run", "code", "store", "raw data"]
    assert own["raw data"]["name"] == f"{md5}, data/raw/tiny" and own["raw data"]["found"] == "in DVC's cache"
    assert "@champion" in own["model"]["found"] and own["code"]["name"] == HEAD
    assert "by dvc register" in own["pipeline"]["name"]
    # The store is not under DVC here, and lies in its folder.
    assert own["store"]["found"].startswith("in its folder")

    assert main(["lineage", URI]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(found) and all(line.startswith("ok ") for line in lines)

    _damage(tracker, tmp_path)
    code, found = links(capsys)
    lost = {(link["member"], link["what"]): link["remedy"] for link in found if link["state"] == "missing"}
    assert code == 1 and set(lost) == {("bone", "scores"), ("", "store"), ("", "raw data"), ("joint", "run")}
    assert "dvc pull" in lost["", "raw data"] and "restore it" in lost["joint", "run"]


def _damage(tracker: Tracker, folder: Path) -> None:
    """One file of the raw data and of the scores is lost everywhere, the store is another, a run was deleted."""
    (folder / "data/packed/tiny/store.json").write_text("{}")
    for lost in (folder / "data/raw/tiny/a.csv", folder / "runs/tiny/development/bone/scores/file"):
        object_ = dvc_md5(lost)
        lost.unlink()
        (folder / ".dvc/cache/files/md5" / object_[:2] / object_[2:]).unlink()
    run = tracker.client.get_model_version("tiny-split-protogcn-joint", "1").run_id
    tracker.client.delete_run(run)


def test_a_remote_keeps_what_the_workspace_lost(md5: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dvc("remote", "add", "-q", "-d", "store", str(tmp_path / "remote"))
    dvc("push", "-q")
    shutil.rmtree(".dvc/cache")
    shutil.rmtree("data/raw/tiny")
    _, found = links(capsys)
    raw = next(link for link in found if link["what"] == "raw data")
    assert raw["found"] == "on the remote store; `dvc pull -r store` brings it"


def test_data_lead_to_the_models_that_saw_them(md5: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = [f"models:/{NAME}/1", "models:/tiny-split-protogcn-bone/1", "models:/tiny-split-protogcn-joint/1"]
    for given in (md5, md5.removesuffix(".dir")):
        capsys.readouterr()
        assert main(["lineage", "--data", given, "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["models"] == expected and "ensemble/two" in {run["name"] for run in answer["runs"]}
    assert main(["lineage", "--data", md5]) == 0
    assert f"model  {expected[0]}" in capsys.readouterr().out
    assert main(["lineage", "--data", "0" * 32]) == 2
    assert "no model and no run saw it" in capsys.readouterr().err


def test_a_run_and_a_member_have_a_chain(md5: str, tracker: Tracker, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = links(capsys, "models:/tiny-split-protogcn-bone/1")
    assert code == 0 and [link["what"] for link in found if link["what"] in ("parameters", "scores")]
    run = tracker.client.get_model_version(NAME, "1").run_id
    code, found = links(capsys, f"runs:/{run}/ensemble")
    assert {link["what"] for link in found} >= {"run", "raw data", "pipeline"}
    assert next(link for link in found if link["what"] == "raw data")["state"] == "ok"


def test_what_does_not_exist_is_a_mistake(tracker: Tracker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["models:/none@champion"], "models:/none@champion: no such model"),
        (["models:/none/3"], "no such model"),
        (["runs:/0123"], "runs:/0123: no such model or run"),
        (["somewhere"], "write it as models:/NAME@ALIAS"),
        ([], "name a model"),
        (["models:/none/3", "--data", "0"], "name a model"),
    ):
        assert main(["lineage", *arguments]) == 2
        assert words in capsys.readouterr().err


def test_a_server_that_is_away_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for arguments in (["models:/a/1"], ["--data", "0"]):
        assert main(["lineage", *arguments]) == 2
        assert "127.0.0.1:9: cannot be read" in capsys.readouterr().err


def test_weights_from_elsewhere_say_so(tracker: Tracker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tiny_bundle import tiny_bundle

    bundle = tiny_bundle(tmp_path / "bundle", tiny_store(tmp_path / "store"), weights=(1.0,))
    uri = register_import(tracker, "given", bundle, {})
    code, found = links(capsys, uri)
    raw = next(link for link in found if link["what"] == "raw data")
    assert code == 1 and "came from elsewhere" in raw["remedy"]


def test_the_commit_counts_code_only(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    git("init", "-q")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.py").write_text("1")
    git("add", "-A")
    git("commit", "-qm", "first")
    (tmp_path / "dvc.lock").write_text("changes with every stage")
    assert len(code_commit(tmp_path)) == 40
    (tmp_path / "model" / "a.py").write_text("2")
    assert code_commit(tmp_path).endswith("-changed")
