"""`sixstream kfp submit` against a real HTTP server that runs the package: ends, faults, exit codes."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kfp_server import KfpServer, serve_kfp

from model.errors import Stopped, UserError
from pipeline import kubeflow_submit
from pipeline.cli import main
from pipeline.kubeflow_api import Api
from pipeline.kubeflow_submit import kfp_submit
from pipeline.task import MISTAKE

IMAGE = "here/sixstream@sha256:" + "0" * 64
TOKEN = "s3cret-t0ken"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KF_PIPELINES_ENDPOINT", "SIXSTREAM_KFP_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def _package(folder: Path, third: str = "pass") -> Path:
    """Four tasks in a row; the third runs the statement `third`."""
    from kfp import compiler, dsl

    source = """
def work(number: int, before: str = "") -> str:
    import os, pathlib, sys
    counted = pathlib.Path(os.environ["COUNTED"])
    counted.write_text((counted.read_text() if counted.exists() else "") + str(number))
    print(f"this is task {number}")
    if number == 3:
        STATEMENT
    return f"{before}{number}"
""".replace("STATEMENT", third)
    import linecache

    linecache.cache["<work>"] = (len(source), None, source.splitlines(keepends=True), "<work>")
    scope: dict[str, Any] = {}
    exec(compile(source, "<work>", "exec"), scope)
    work = dsl.component(base_image=IMAGE, install_kfp_package=False)(scope["work"])

    @dsl.pipeline(name="four")
    def four() -> None:
        before = None
        for number in range(1, 5):
            before = work(number=number, before=before.output) if before else work(number=number)
            before.set_display_name(f"task {number}")

    folder.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(four, str(folder / "four.yaml"))
    return folder / "four.yaml"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[KfpServer]:
    with serve_kfp(tmp_path / "server", token=TOKEN, COUNTED=str(tmp_path / "counted")) as running:
        yield running


def _submit(server: KfpServer, package: Path, **options: Any) -> int:
    options = {"token": TOKEN, "poll": 0.2, "watch": True, **options}
    return kfp_submit(package, params=None, endpoint=server.address, **options)


def test_a_run_is_followed_to_its_end(
    server: KfpServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = _package(tmp_path)
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.address)
    words = ["kfp", "submit", str(package), "--token-file", str(file), "--watch", "--poll", "0.2"]
    words += ["--params", str(tmp_path / "none.yaml")]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert "work-4: SUCCEEDED" in shown.out and "SUCCEEDED" in shown.out.splitlines()[-1]
    assert TOKEN not in shown.out + shown.err
    assert {given for _, _, given in server.requests} == {f"Bearer {TOKEN}"}
    (run,) = server.runs
    rest = ["--token-file", str(file)]
    assert main(["kfp", "status", run, *rest]) == 0
    assert f"{run}: SUCCEEDED" in capsys.readouterr().out
    assert main(["kfp", "logs", run, "--task", "work-2", *rest]) == 0
    shown = capsys.readouterr()
    assert "this is task 2" in shown.out and "this is task 1" not in shown.out
    assert main(["kfp", "logs", run, "--task", "nothing", *rest]) == 2
    assert main(["kfp", "status", "nobody", *rest]) == 2
    assert "not found" in capsys.readouterr().err

    # The same package is the same version of the same pipeline, and all of it comes from the cache.
    assert main(words) == 0
    assert len(server.pipelines) == 1 and len(server.versions) == 2 and len(server.experiments) == 1
    assert (tmp_path / "counted").read_text() == "1234"


def test_a_failed_task_fails_the_run(server: KfpServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = _package(tmp_path, "raise SystemExit(7)")
    assert _submit(server, package) == 1
    shown = capsys.readouterr().out
    assert "work-3: FAILED" in shown, shown
    assert "this is task 3" in shown and "work-4" not in shown
    assert main(["kfp", "status", next(iter(server.runs)), "--endpoint", server.address, "--token", TOKEN]) == 1


def test_a_mistake_of_the_users_is_not_tried_again(
    server: KfpServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = _package(tmp_path, f"print({MISTAKE!r}); raise SystemExit(2)")
    assert _submit(server, package, resubmit=3) == 2
    assert len(server.runs) == 1 and "no retry mends" in capsys.readouterr().err


@pytest.mark.parametrize("forget", [False, True])
def test_a_lost_run_is_started_anew(server: KfpServer, tmp_path: Path, forget: bool) -> None:
    """What was finished comes from the cache: every task has run once."""
    package = _package(tmp_path)
    server.lose_after, server.forget = "work-2", forget
    assert _submit(server, package, resubmit=1) == 0
    assert len(server.runs) == 2 - forget
    counted = (tmp_path / "counted").read_text()
    assert counted in ("1234", "12234", "123234")  # the kill may come before the cache is written, or in the third task
    server.lose_after, server.forget = "work", False
    assert _submit(server, _package(tmp_path / "other", "print(0)")) == 1


def test_a_cancelled_run(server: KfpServer, tmp_path: Path) -> None:
    server.cancel_after = "work"
    assert _submit(server, _package(tmp_path), resubmit=2) == 3
    assert len(server.runs) == 1


@pytest.mark.parametrize(
    ("request_", "status", "error", "message"),
    [
        ("GET .*healthz", 403, UserError, r"may not .*\(403\)"),
        ("POST .*runs", 403, UserError, r"may not start the run .*kubeflow-edit"),
        ("POST .*upload_version", 409, UserError, r"there \(409\): injected 409; choose another"),
        ("POST .*runs", 400, UserError, r"refused to start the run"),
        ("GET .*healthz", 404, UserError, r"not found \(404\)"),
        ("GET .*healthz", 500, Stopped, r"\(500\): injected 500; try again"),
        ("POST .*runs", 503, Stopped, r"\(503\)"),
        ("GET .*healthz", "page", UserError, "log-in"),
    ],
)
def test_refusals_say_what_to_do(
    server: KfpServer, tmp_path: Path, request_: str, status: int | str, error: type[Exception], message: str
) -> None:
    server.faults[request_] = status
    with pytest.raises(error, match=message) as caught:
        _submit(server, _package(tmp_path))
    assert TOKEN not in str(caught.value) and not server.runs


def test_a_wrong_token(server: KfpServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = str(_package(tmp_path))
    assert main(["kfp", "submit", package, "--endpoint", server.address, "--token", "wr0ng"]) == 2
    shown = capsys.readouterr().err
    assert "(401)" in shown and "--token-file" in shown and "wr0ng" not in shown
    with pytest.raises(UserError, match="not both"):
        Api(server.address, "a", tmp_path / "token")
    with pytest.raises(UserError, match="no token can be read"):
        Api(server.address, "", tmp_path / "none")
    with pytest.raises(UserError, match="KF_PIPELINES_ENDPOINT"):
        Api("localhost:8888")


def test_a_server_that_is_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert main(["kfp", "submit", str(_package(tmp_path)), "--endpoint", address]) == 75
    assert "connection refused" in capsys.readouterr().err
    assert main(["kfp", "status", "x", "--endpoint", "http://no-such-host.invalid"]) == 75
    assert "no such host" in capsys.readouterr().err


def test_a_server_that_does_not_answer(server: KfpServer) -> None:
    server.faults["GET .*healthz"] = "hang"
    server.again["GET .*healthz"] = 9
    with pytest.raises(Stopped, match="no answer within 0.2 s"):
        Api(server.address, TOKEN, seconds=0.2).healthz()


def test_a_server_may_be_away_for_a_while(
    server: KfpServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.faults["GET .*runs/.*"], server.again["GET .*runs/.*"] = 500, 2
    assert _submit(server, _package(tmp_path)) == 0
    assert "waiting: " in capsys.readouterr().err
    monkeypatch.setattr(kubeflow_submit, "PATIENCE", 0.0)
    server.again["GET .*runs/.*"] = 99
    with pytest.raises(Stopped, match="the run goes on: `sixstream kfp status .* --watch`"):
        _submit(server, _package(tmp_path / "again", "print(1)"))


def test_several_users_need_a_namespace(tmp_path: Path) -> None:
    with serve_kfp(tmp_path / "server", multi_user=True, COUNTED=str(tmp_path / "counted")) as server:
        with pytest.raises(UserError, match="--namespace"):
            _submit(server, _package(tmp_path), token="")
        assert _submit(server, _package(tmp_path), token="", namespace="team", watch=False) == 0
        (experiment,) = server.experiments.values()
        assert experiment["namespace"] == "team"


def test_what_would_break_is_not_sent(server: KfpServer, tmp_path: Path) -> None:
    package = _package(tmp_path)
    package.write_text(package.read_text().replace("@sha256:" + "0" * 64, ":latest"))
    with pytest.raises(UserError, match="not submitted:\n.*has no digest"):
        _submit(server, package)
    assert not server.requests
    with pytest.raises(UserError, match="name a package"):
        kfp_submit(params=None, endpoint=server.address)
