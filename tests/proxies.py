"""Proxies in front of servers for tests: they lose replies, disturb requests, or refuse connections."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler

from servers import LocalServer, free_port


@contextmanager
def losing_replies(server: str, lost: dict[str, int]) -> Iterator[str]:
    """Run a proxy that answers 502 to so many requests whose path has a text in it, after they were carried out.

    Args:
        server: the address of what it stands before.
        lost: counted down by text.
    """

    class Handler(Forwarder):
        target = server

        def pass_on(self) -> None:
            status, kind, answer = self.forward(self.body())
            text = next((text for text, left in lost.items() if left and text in self.path), None)
            if text is not None and self.command != "GET":
                lost[text] -= 1
                status, answer = 502, b"{}"
            self.answer(status, kind, answer)

    with _proxy(Handler) as url:
        yield url


class Forwarder(BaseHTTPRequestHandler):
    """Request handler that passes requests on to `target`, the address of a server."""

    target: str

    def do_GET(self) -> None:
        self.pass_on()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def pass_on(self) -> None:
        """Answer with the server's answer."""
        self.answer(*self.forward(self.body()))

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def forward(self, body: bytes) -> tuple[int, str | None, bytes]:
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        request = urllib.request.Request(self.target + self.path, body or None, headers, method=self.command)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.headers["Content-Type"], response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers["Content-Type"], error.read()

    def answer(self, status: int, kind: str | None, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind or "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        with suppress(BrokenPipeError, ConnectionResetError):  # who asked may not wait for it
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def _proxy(handler: type[Forwarder]) -> Iterator[str]:
    with LocalServer(("127.0.0.1", 0), handler) as proxy:
        proxy.begin()
        yield f"http://127.0.0.1:{proxy.server_port}"
        proxy.shutdown()


Fault = int | str
"""A status, `drop` (the connection, without an answer), `cut` (the answer, after half of it) or `wait` (a second)."""


@contextmanager
def disturbing(server: str, fault_of: Callable[[bytes], Fault | None]) -> Iterator[str]:
    """Run a proxy that lets something befall the requests that are posted.

    Args:
        server: the address of what it stands before.
        fault_of: called with each body; None passes it on.  503 asks to be left alone for a second.
    """

    class Handler(Forwarder):
        target = server

        def pass_on(self) -> None:
            body = self.body()
            fault = fault_of(body) if self.command == "POST" else None
            if fault == "wait":
                time.sleep(1)
            if isinstance(fault, int):
                self.answer(fault, None, b'{"error": {"message": "the proxy says so"}}', **{"Retry_After": "1"})
                return
            status, kind, answer = (0, None, b"") if fault == "drop" else self.forward(body)
            if fault in ("drop", "cut"):
                if fault == "cut":
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer[: len(answer) // 2])
                self.close_connection = True
                return
            self.answer(status, kind, answer)

    with _proxy(Handler) as url:
        yield url


class Door:
    """Proxy that can be closed: connections are then refused, as if the server had ended.

    Attributes:
        url: address, the same each time that it opens. It is closed at first; `contextlib.closing` closes it at the end.
    """

    def __init__(self, server: str) -> None:
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._handler = type("Handler", (Forwarder,), {"target": server})
        self._proxy: LocalServer | None = None

    def open(self) -> None:
        """Pass requests on from now on."""
        self._proxy = LocalServer(("127.0.0.1", self._port), self._handler)
        self._proxy.begin()

    def close(self) -> None:
        """Refuse connections from now on."""
        if self._proxy is not None:
            self._proxy.shutdown()
            self._proxy.server_close()
            self._proxy = None
