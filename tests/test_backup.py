"""Checkpoints in a real S3 server over HTTP, through a proxy that refuses, hangs, answers 503, cuts and delays."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_proxy import FaultProxy, fault_proxy
from s3_server import S3, serve_s3, settle
from small_run import annotations, small_params, write_params, write_raw
from test_reliability import Killed, assert_same_bits, at_step, kill, saved, terminate
from torch import nn
from training_kit import run, small_store, tiny

from components import backup
from components.backup import MINUTES, PLACE, backed_up
from components.params import load_params
from components.preprocess import preprocess
from model.errors import Stopped, UserError
from model.store import Store
from model.train import FitResult
from pipeline.workspace import ROOT

PATIENT = backup.CLIENT


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return small_store(tmp_path_factory.mktemp("data") / "store")


@pytest.fixture(scope="module")
def straight(store: Store, tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    return run(tiny(0.3), store, tmp_path_factory.mktemp("straight"))


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with serve_s3() as s3:
        yield s3


@pytest.fixture
def kept(server: S3, request: pytest.FixtureRequest) -> Path:
    """The folder of the server that holds the objects of this test's training."""
    return server.folder / "bucket" / "some" / re.sub(r"\W", "-", request.node.name) / "run"


@pytest.fixture
def proxy(server: S3, kept: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Before the server; uploads follow each other."""
    with fault_proxy(server.endpoint) as proxy:
        for name, value in {**server.environment, "AWS_ENDPOINT_URL": proxy.address}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv(PLACE, f"s3://{kept.parent.relative_to(server.folder)}/")
        monkeypatch.setenv(MINUTES, "0.0002")
        monkeypatch.setattr(backup, "FIRST_RETRY", 0.05)
        yield proxy


def objects(kept: Path) -> list[str]:
    return sorted(path.name.split(".")[0] for path in kept.glob("*"))


def trained(net: nn.Module, store: Store, folder: Path) -> FitResult:
    with backed_up(folder):
        return run(net, store, folder, save_steps=1)


def begun(store: Store, folder: Path) -> None:
    """A training killed in the sixth of its twelve steps; then the disk is lost."""
    with pytest.raises(Killed):
        trained(at_step(tiny(0.3), 6, kill), store, folder)
    shutil.rmtree(folder)


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that gives up after two seconds, once."""
    monkeypatch.setattr(backup, "CLIENT", {"read_timeout": 2, "retries": {"total_max_attempts": 1}})
    monkeypatch.setattr(backup, "PATIENCE", 3.0)


def wait_until(true: Callable[[], object]) -> float:
    limit = time.monotonic() + 120
    while not true():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.01)
    return 1.0


def test_a_lost_disk_costs_no_bit(
    store: Store, straight: FitResult, proxy: FaultProxy, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun(store, tmp_path / "run")
    assert objects(kept) == ["epoch-0001-step-000001"], "former ones are removed once the new one was read back"
    assert_same_bits(trained(tiny(0.3), store, tmp_path / "run"), straight)
    said = capsys.readouterr().err
    assert said.count("backup:") == 1 and "fetched, since there is no checkpoint here" in said
    assert "going on after step 1 of epoch 2 of 3" in said
    assert objects(kept) == ["epoch-0003"]


@pytest.mark.parametrize("fault", ["refuse", "hang", "error", "cut", "lose answers"])
def test_faults_of_s3_stop_nothing_and_spoil_nothing(
    store: Store, straight: FitResult, proxy: FaultProxy, kept: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fault: str,
) -> None:  # fmt: skip
    """In the middle of a training, to its end; then the disk is lost and S3 is there again."""
    folder = tmp_path / "run"
    begun(store, folder)
    impatient(monkeypatch)
    proxy.cut_after = 10_000  # within the object

    def break_s3() -> float:
        proxy.fault = fault
        return 1.0

    assert_same_bits(trained(at_step(tiny(0.3), 2, break_s3), store, folder), straight)
    assert proxy.faults > 0
    said = capsys.readouterr().err
    assert said.count("cannot be reached") == 1, said
    assert said.count("lacks the last checkpoint, which is") == 1
    proxy.fault = ""
    monkeypatch.setattr(backup, "CLIENT", PATIENT)
    shutil.rmtree(folder)
    assert_same_bits(trained(tiny(0.3), store, folder), straight)
    said = capsys.readouterr().err
    assert "fetched, since" in said and "damaged" not in said, "there is no half object"


@pytest.mark.parametrize("fault", ["refuse", "hang", "error"])
def test_s3_away_at_the_start_and_back_in_the_middle(
    store: Store, straight: FitResult, proxy: FaultProxy, kept: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fault: str,
) -> None:  # fmt: skip
    proxy.fault = fault
    impatient(monkeypatch)

    def mend() -> float:
        proxy.fault = ""
        return wait_until(lambda: objects(kept))

    assert_same_bits(trained(at_step(tiny(0.3), 8, mend), store, tmp_path / "run"), straight)
    said = capsys.readouterr().err
    assert said.count("cannot be reached") == said.count("can be written again") == 1, said
    assert objects(kept) == ["epoch-0003"]


def test_slow_s3_does_not_slow_training(
    store: Store, straight: FitResult, proxy: FaultProxy, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some uploads are left out, the last one is waited for."""
    monkeypatch.setattr(backup.Backup, "fetch", lambda self: setattr(proxy, "delay", 0.1))
    assert_same_bits(trained(tiny(0.3), store, tmp_path / "run"), straight)
    assert objects(kept) == ["epoch-0003"]


def test_a_trickle_is_not_waited_for(
    store: Store, straight: FitResult, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    begun(store, tmp_path / "run")
    monkeypatch.setattr(backup, "FETCHING", 0.2)
    proxy.delay = 0.3
    assert_same_bits(trained(tiny(0.3), store, tmp_path / "run"), straight)
    assert "cannot be reached (no answer within 0 s); nothing is fetched" in capsys.readouterr().err


def test_a_damaged_object_gives_way_to_the_former(
    store: Store, straight: FitResult, proxy: FaultProxy, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun(store, tmp_path / "run")
    (whole,) = kept.iterdir()
    half = whole.with_name(whole.name.replace("epoch-0001-step-000001", "epoch-0002"))
    half.write_bytes(whole.read_bytes()[:-1000])
    settle()
    assert_same_bits(trained(tiny(0.3), store, tmp_path / "run"), straight)
    said = capsys.readouterr().err
    assert f"{half.name}: damaged, passed over" in said and "going on after step 1 of epoch 2" in said
    assert objects(kept) == ["epoch-0003"]


def test_what_s3_keeps_wrong_does_not_replace_the_former(
    store: Store, proxy: FaultProxy, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    begun(store, tmp_path / "run")
    monkeypatch.setattr(backup, "fits_name", lambda name, data: not name.startswith("epoch-0003"))
    trained(tiny(0.3), store, tmp_path / "run")
    assert "epoch-0003" in (held := objects(kept)) and len(held) == 2
    assert "reads back differently from what was written" in capsys.readouterr().err


def test_sigterm_saves_to_s3(store: Store, proxy: FaultProxy, kept: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        trained(at_step(tiny(0.3), 3, terminate), store, tmp_path / "run")
    assert objects(kept) == saved(tmp_path / "run") == ["epoch-0000-step-000003"]


def test_refused_credentials_are_told_once(
    store: Store, proxy: FaultProxy, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    trained(tiny(), store, tmp_path / "run")
    said = capsys.readouterr().err
    assert said.count("Check bucket, credentials, AWS_ENDPOINT_URL") == 1 and not objects(kept)


def test_mistaken_variables_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLACE, "bucket/prefix")
    monkeypatch.setenv(MINUTES, "soon")
    with (
        pytest.raises(UserError, match="SIXSTREAM_BACKUP_MINUTES: 'soon' must be a number of minutes"),
        backed_up(tmp_path),
    ):
        pass
    monkeypatch.setenv(MINUTES, "5")
    with pytest.raises(UserError, match="s3://bucket/key"), backed_up(tmp_path):
        pass


def test_a_pod_killed_with_its_disk_ends_the_same(server: S3, kept: Path, tmp_path: Path, database: Path) -> None:
    """SIGKILL of the real command, whose folder is lost but for parameters and data."""
    parameters = small_params()
    parameters["datasets"]["small"]["recipe"] |= {"checkpoint_steps": 1, "epochs": 3, "repeats": 4}
    environment = {
        **os.environ,
        **server.environment,
        PLACE: f"s3://{kept.relative_to(server.folder)}",
        MINUTES: "0.0002",
    }
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "pipeline.cli", "train", "--member", "joint", "--data", "packed", "--out", "train"]
    raw = write_raw(tmp_path / "raw", annotations())
    bits = []
    for name in ("straight", "killed", "elsewhere"):
        place = tmp_path / name
        place.mkdir()
        write_params(place, parameters)
        preprocess(load_params(place / "params.yaml"), raw, place / "packed")
        shutil.copyfile(database, place / "mlflow.db")
        used = {**environment, PLACE: ""} if name == "straight" else environment
        with subprocess.Popen(line, cwd=place, env=used, stderr=subprocess.PIPE, text=True) as process:
            if name == "killed":
                wait_until(lambda: list(kept.glob("*/epoch-0000-step-*")))
                process.kill()
            said = process.communicate()[1]
        assert process.returncode == (-signal.SIGKILL if name == "killed" else 0), said
        if name != "killed":
            bits.append([(place / "train" / file).read_bytes() for file in ("best.pt", "last.pt")])
    assert "fetched, since" in said and "going on after" in said
    assert bits[0] == bits[1]
