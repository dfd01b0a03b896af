"""A small Kubernetes API over HTTP for tests: objects by path, access reviews, logs; every request is recorded."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml


class Kube:
    """`objects`: path → object. `lists`: path → items. `refused`: path → status. `allowed` answers access reviews."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self.lists: dict[str, list[Any]] = {}
        self.refused: dict[str, int] = {}
        self.texts: dict[str, str] = {}
        self.requests: list[tuple[str, str, Any]] = []
        self.denied: set[tuple[str, str]] = set()  # (verb, resource)
        self.made: Callable[[str, Any], None] = lambda path, body: None  # called for every object that is made
        self.lock = threading.Lock()
        self.address = ""

    def kubeconfig(self, path: Path) -> Path:
        content = {
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{"name": "it", "cluster": {"server": self.address}}],
            "users": [{"name": "it", "user": {"token": "t0ken"}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(content))
        return path

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        with self.lock:
            self.requests.append((method, path, body))
        if path in self.refused:
            return self.refused[path], _status(self.refused[path], "injected")
        if path.endswith("accessreviews"):
            asked = body["spec"]["resourceAttributes"]
            verb, resource = asked["verb"], asked["resource"]
            return 201, {**body, "status": {"allowed": (verb, resource) not in self.denied}}
        if method == "POST":
            made = f"{path}/{body['metadata']['name']}"
            if made in self.objects:
                return 409, _status(409, "AlreadyExists")
            new = self.objects[made] = {**body, "metadata": {**body["metadata"], "uid": f"uid-{len(self.objects)}"}}
            self.made(made, new)
            return 201, new
        if method == "DELETE":
            found = self.objects.pop(path, None)
            return (200, _status(200, "")) if found else (404, _status(404, "not found"))
        if path in self.texts:
            return 200, self.texts[path]
        if path in self.objects:
            return 200, self.objects[path]
        if path in self.lists:
            return 200, {"apiVersion": "v1", "kind": "List", "metadata": {}, "items": self.lists[path]}
        return 404, _status(404, f"{path} not found")


def _status(code: int, message: str) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}


@contextmanager
def serve_kube() -> Iterator[Kube]:
    """A server on a free port of this machine."""
    state = Kube()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def handle_any(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = urlsplit(self.path)
            body = json.loads(content) if content else None
            status, answer = state.answer(self.command, parts.path, parse_qs(parts.query), body)
            text = isinstance(answer, str)
            sent = answer.encode() if text else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if text else "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        do_GET = do_POST = do_DELETE = do_PATCH = handle_any

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    state.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
