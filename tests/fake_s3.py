"""The part of the S3 protocol that storage uses, over HTTP and in memory."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


@contextmanager
def serve_s3() -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (address, objects by `bucket/key`)."""
    objects: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        @property
        def name(self) -> str:
            return unquote(urlsplit(self.path).path).lstrip("/")

        def answer(self, status: int, body: bytes = b"", length: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}"')
            self.end_headers()
            self.wfile.write(body)

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if "aws-chunked" in self.headers.get("Content-Encoding", ""):
                body = _unchunked(body)
            objects[self.name] = body
            self.answer(200)

        def do_HEAD(self) -> None:
            found = objects.get(self.name)
            self.answer(404) if found is None else self.answer(200, length=len(found))

        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            if "list-type" in query:
                self.answer(200, _listing(objects, f"{self.name}/", query.get("prefix", [""])[0]).encode())
            elif self.name in objects:
                self.answer(200, objects[self.name])
            else:
                self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", objects
    finally:
        server.shutdown()
        server.server_close()


def _listing(objects: dict[str, bytes], bucket: str, prefix: str) -> str:
    keys = sorted(name.removeprefix(bucket) for name in objects if name.startswith(bucket + prefix))
    items = "".join(f"<Contents><Key>{escape(key)}</Key><Size>1</Size></Contents>" for key in keys)
    return f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>"


def _unchunked(body: bytes) -> bytes:
    """The content of the signed chunks in which boto3 sends a stream."""
    content = b""
    while body:
        head, _, rest = body.partition(b"\r\n")
        size = int(head.split(b";")[0], 16)
        if size == 0:
            return content
        content, body = content + rest[:size], rest[size + 2 :]
    return content
