"""A TCP proxy that injects faults between a client and a real server."""

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from select import select
from threading import Event, Thread
from urllib.parse import urlsplit

FAULTS = ("", "refuse", "hang", "error", "cut", "lose answers")


class FaultProxy:
    """Passes connections on to `target` (http://host:port); `fault` may be set at any time.

    refuse: connections are reset; hang: what comes is swallowed and never answered; error: every request is answered
    with 503; cut: a connection is reset after `cut_after` bytes to the server; lose answers: the server gets the
    request, and the connection is reset when it answers. `delay` is waited before every piece of data (64 KiB at most).
    `faults` counts what was injected.
    """

    def __init__(self, target: str, listener: socket.socket) -> None:
        parts = urlsplit(target)
        self.target = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.listener = listener
        self.address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.fault = ""
        self.cut_after = 0
        self.delay = 0.0
        self.faults = 0
        self.closing = Event()

    def serve(self) -> None:
        while not self.closing.is_set():
            if not select([self.listener], [], [], 0.05)[0]:
                continue
            client, _ = self.listener.accept()
            Thread(target=self._connection, args=(client,), daemon=True).start()

    def _connection(self, client: socket.socket) -> None:
        with client:
            if self.fault == "refuse":
                return self._reset(client)
            try:
                with socket.create_connection(self.target) as server:
                    self._pass_on(client, server)
            except OSError:
                return  # one of the two is gone

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        sent = 0
        while not self.closing.is_set():
            for source in select([client, server], [], [], 0.05)[0]:
                data = source.recv(1 << 16)
                if not data:
                    return
                if self.delay:
                    time.sleep(self.delay)
                up = source is client
                if self.fault in ("refuse", "hang", "error", "lose answers"):
                    if self.fault == "lose answers" and up:
                        server.sendall(data)
                        continue
                    return self._spoil(client, server)
                if self.fault == "cut" and up and sent + len(data) > self.cut_after:
                    server.sendall(data[: max(0, self.cut_after - sent)])
                    self._reset(server)
                    return self._reset(client)
                sent += len(data) if up else 0
                (server if up else client).sendall(data)

    def _spoil(self, client: socket.socket, server: socket.socket) -> None:
        """End a connection as `fault` says; a hanging one lasts until the fault changes."""
        if self.fault == "hang":
            self.faults += 1
            while self.fault == "hang" and not self.closing.wait(0.05):
                pass
            return
        if self.fault == "error":
            self.faults += 1
            client.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            client.shutdown(socket.SHUT_WR)
            while client.recv(1 << 16):  # a reset would take the answer away from a client that still sends
                pass
            return
        self._reset(client)

    def _reset(self, connection: socket.socket) -> None:
        self.faults += 1
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()


@contextmanager
def fault_proxy(target: str) -> Iterator[FaultProxy]:
    """A proxy before the server at `target`, at `proxy.address`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = FaultProxy(target, listener)
        thread = Thread(target=proxy.serve, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.closing.set()
            thread.join()
