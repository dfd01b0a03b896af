"""A proxy in front of a real S3 server that breaks downloads off, and notes what was asked for."""

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit


class Faults:
    """`after`: key → bytes behind which an answer breaks off. `ranges`: the header Range of every download."""

    def __init__(self) -> None:
        self.after: dict[str, int] = {}
        self.ranges: list[str] = []


@contextmanager
def broken_downloads(endpoint: str) -> Iterator[tuple[str, Faults]]:
    """Yield (address, faults). Requests go on as they are, with the host that the client has signed."""
    faults, upstream = Faults(), urlsplit(endpoint).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            connection = http.client.HTTPConnection(upstream)
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                    self.send_header(name, value)
            self.send_header("Content-Length", answer.getheader("Content-Length") or str(len(content)))
            self.end_headers()
            parts = urlsplit(self.path)
            limit = len(content)
            if self.command == "GET" and "list-type" not in parts.query:
                faults.ranges.append(self.headers.get("Range", ""))
                limit = faults.after.get(parts.path.rpartition("/")[2], limit)
            self.wfile.write(content[:limit])
            self.close_connection = limit < len(content)
            connection.close()

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = forward

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", faults
    finally:
        server.shutdown()
        server.server_close()
