"""A Kubeflow Pipelines server for tests: the v2beta1 contract over HTTP, runs executed for real by kfp's local runner.

Every run is a process of its own (this file as a script), with kfp's cache shared by all runs as on a cluster.
"""

import json
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

ROOT = Path(__file__).resolve().parent.parent
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
BEGUN = re.compile(r"Executing task '?([\w-]+)'?")
DONE = re.compile(r"Task '?([\w-]+)'? finished with status (\w+)")


@dataclass
class Run:
    """One run; `tasks` holds state and log by task that ran (what comes from the cache does not)."""

    about: dict[str, Any]
    package: Path
    state: str = "PENDING"
    message: str = ""
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    process: Any = None

    def answer(self) -> dict[str, Any]:
        details = []
        for name, task in self.tasks.items():
            driver, pods = f"{name}-driver", [{"pod_name": f"wf-{name}"}]
            details.append({"task_id": driver, "display_name": driver, "state": "SUCCEEDED"})
            details.append({"task_id": name, "display_name": name, "state": task["state"], "child_tasks": pods})
        error = {"error": {"code": 2, "message": self.message}} if self.message else {}
        return {**self.about, "state": self.state, "run_details": {"task_details": details}, **error}


class KfpServer:
    """State of the server, and the faults to inject: `faults` maps `METHOD path-pattern` to a status, or to the word
    hang; each is used up by one request unless its count in `again` says more."""

    def __init__(self, folder: Path, token: str = "", multi_user: bool = False, **env: str) -> None:
        self.folder, self.token, self.multi_user, self.env = folder, token, multi_user, env
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, Run] = {}
        self.requests: list[tuple[str, str, str]] = []  # method, path, authorization
        self.faults: dict[str, int | str] = {}
        self.again: dict[str, int] = {}
        self.lose_after = ""  # a task behind which the node of the run is lost, once
        self.forget = False  # a lost run is unknown to the server
        self.cancel_after = ""
        self.lock = Lock()
        self.address = ""

    def fault(self, method: str, path: str) -> int | str | None:
        with self.lock:
            for pattern, fault in self.faults.items():
                if re.fullmatch(pattern, f"{method} {path}"):
                    left = self.again.get(pattern, 1) - 1
                    self.again[pattern] = left
                    if left >= 0:
                        return fault
        return None

    def start(self, body: dict[str, Any]) -> Run:
        version = self.versions[body["pipeline_version_reference"]["pipeline_version_id"]]
        run_id = str(uuid.uuid4())
        about = {key: value for key, value in body.items() if value is not None} | {"run_id": run_id}
        run = self.runs[run_id] = Run(about, Path(version["file"]))
        Thread(target=self.execute, args=(run,), daemon=True).start()
        return run

    def execute(self, run: Run) -> None:
        root = self.folder / run.about["run_id"]
        root.mkdir(parents=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **self.env}
        environment.pop("MLFLOW_TRACKING_URI", None)  # the package says it
        command = [sys.executable, __file__, str(run.package), str(root), str(self.folder / "cache")]
        run.process = subprocess.Popen(
            command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        run.state = "RUNNING"
        current = ""
        assert run.process.stdout is not None
        for line in run.process.stdout:
            line = COLOUR.sub("", line)
            if begun := BEGUN.search(line):
                current = begun[1]
                run.tasks[current] = {"state": "RUNNING", "log": ""}
            elif current:
                run.tasks[current]["log"] += line
            if done := DONE.search(line):
                run.tasks[done[1]]["state"] = "SUCCEEDED" if done[2] == "SUCCESS" else "FAILED"
                current = ""  # what the runner itself prints behind a task is not the task's
                if done[1] == self.cancel_after:
                    run.state = "CANCELED"
                    self.kill(run)
                elif done[1] == self.lose_after:
                    self.lose_after = ""
                    run.message, run.state = "node was lost", "FAILED"
                    self.kill(run)
                    if self.forget:
                        del self.runs[run.about["run_id"]]
        code = run.process.wait()
        (self.folder / f"{run.about['run_id']}.code").write_text(str(code))
        if run.state == "RUNNING":
            run.state = "SUCCEEDED" if code == 0 else "FAILED"

    def kill(self, run: Run) -> None:
        import signal

        if run.process is not None and run.process.poll() is None:
            os.killpg(run.process.pid, signal.SIGKILL)

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        """(status, JSON) of a request behind the checks of token and faults."""
        if path == "healthz":
            return 200, {"multi_user": self.multi_user}
        if (method, path) == ("GET", "pipelines"):
            return 200, {"pipelines": _matching(self.pipelines, query)}
        if (method, path) == ("POST", "pipelines/upload"):
            if any(one["display_name"] == query["name"] for one in self.pipelines.values()):
                return 409, {"code": 6, "message": f"pipeline {query['name']} already exists"}
            pipeline = {"pipeline_id": str(uuid.uuid4()), "display_name": query["name"]}
            self.pipelines[pipeline["pipeline_id"]] = pipeline
            self._version(pipeline["pipeline_id"], query["name"], body)
            return 200, pipeline
        if (method, path) == ("POST", "pipelines/upload_version"):
            taken = [one for one in self.versions.values() if one["pipeline_id"] == query["pipelineid"]]
            if any(one["display_name"] == query["name"] for one in taken):
                return 409, {"code": 6, "message": f"version {query['name']} already exists"}
            return 200, self._version(query["pipelineid"], query["name"], body)
        if method == "GET" and (found := re.fullmatch(r"pipelines/([^/]+)/versions", path)):
            mine = {key: one for key, one in self.versions.items() if one["pipeline_id"] == found[1]}
            return 200, {"pipeline_versions": _matching(mine, query)}
        if (method, path) == ("GET", "experiments"):
            return 200, {"experiments": _matching(self.experiments, query)}
        if (method, path) == ("POST", "experiments"):
            made = {**body, "experiment_id": str(uuid.uuid4())}
            self.experiments[made["experiment_id"]] = made
            return 200, made
        if (method, path) == ("GET", "runs"):
            return 200, {"runs": [run.answer() for run in self.runs.values()]}
        if (method, path) == ("POST", "runs"):
            return 200, self.start(body).answer()
        if found := re.fullmatch(r"runs/([^/:]+)(:terminate)?", path):
            run = self.runs.get(found[1])
            if run is None:
                return 404, {"code": 5, "message": f"run {found[1]} not found"}
            if method == "POST":
                run.state = "CANCELED"
                self.kill(run)
                return 200, {}
            return 200, run.answer()
        return 404, {"code": 5, "message": "Not Found"}

    def _version(self, pipeline: str, name: str, content: bytes) -> dict[str, Any]:
        version = {"pipeline_id": pipeline, "pipeline_version_id": str(uuid.uuid4()), "display_name": name}
        file = self.folder / f"{version['pipeline_version_id']}.yaml"
        file.write_bytes(content)
        documents = list(yaml.safe_load_all(content))
        assert documents[0]["pipelineInfo"]["name"]
        self.versions[version["pipeline_version_id"]] = {**version, "file": str(file)}
        return version


def _matching(items: dict[str, dict[str, Any]], query: dict[str, str]) -> list[dict[str, Any]]:
    predicates = json.loads(query["filter"])["predicates"] if query.get("filter") else []
    chosen = []
    for item in items.values():
        if all(item[one["key"]] == one["stringValue"] for one in predicates):
            chosen.append({key: value for key, value in item.items() if key != "file"})
    return chosen


@contextmanager
def serve_kfp(folder: Path, **options: Any) -> Iterator[KfpServer]:
    """A server on a free port of this machine; its runs are killed at the end."""
    state = KfpServer(folder, **options)
    folder.mkdir(parents=True, exist_ok=True)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def send(self, status: int, content: bytes, kind: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def handle_any(self) -> None:
            parts = urlsplit(self.path)
            path = unquote(parts.path)
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            state.requests.append((self.command, path, self.headers.get("Authorization", "")))
            fault = state.fault(self.command, path)
            if fault == "hang":
                time.sleep(3)
                self.close_connection = True
                return
            if fault == "page":
                self.send(200, b"<html>Log in to Your Account</html>", "text/html")
                return
            if fault is not None:
                self.send(int(fault), json.dumps({"code": 13, "message": f"injected {fault}"}).encode())
                return
            if state.token and self.headers.get("Authorization") != f"Bearer {state.token}":
                self.send(401, json.dumps({"code": 16, "message": "Unauthenticated"}).encode())
                return
            if log := re.fullmatch(r"/apis/v1alpha1/runs/([^/]+)/nodes/wf-([^/]+)/log", path):
                self.send(200, state.runs[log[1]].tasks[log[2]]["log"].encode(), "text/plain")
                return
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            body: Any = None
            if self.headers.get("Content-Type", "").startswith("multipart/"):
                head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
                (part,) = message_from_bytes(head + content).get_payload()
                body = part.get_payload(decode=True)
            elif content:
                body = json.loads(content)
            try:
                status, answer = state.answer(self.command, path.removeprefix("/apis/v2beta1/"), query, body)
            except Exception as error:
                status, answer = 500, {"code": 13, "message": f"{type(error).__name__}: {error}"}
            self.send(status, json.dumps(answer).encode())

        do_GET = do_POST = do_DELETE = handle_any

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    state.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        for run in state.runs.values():
            state.kill(run)
        server.shutdown()
        server.server_close()


def execute(package: str, root: str, cache: str) -> None:
    """Run a package by kfp's local runner."""
    from kfp import components, local

    local.init(
        local.SubprocessRunner(use_venv=False), pipeline_root=root, enable_caching=True, cache_root=cache,
        raise_on_error=True,
    )  # fmt: skip
    components.load_component_from_file(package)()


if __name__ == "__main__":
    execute(*sys.argv[1:])
