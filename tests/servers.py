"""Servers and a browser for tests: on loopback, on free ports, ended by the tests that start them."""

from __future__ import annotations

import base64
import getpass
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class LocalServer(ThreadingHTTPServer):
    """HTTP server that answers each connection in a thread of its own."""

    request_queue_size = 128  # more than an engine's window; with the default of 5, connections are reset under load

    def begin(self) -> None:
        """Serve in a thread until `shutdown`, which is noticed quickly."""
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def mlflow_server(folder: Path, database: Path, artifacts: Path, port: int | None = None) -> Iterator[str]:
    """Run MLflow's server on a store, which it makes if there is none, and yield its address."""
    port = port or free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = [f"--backend-store-uri=sqlite:///{database}", f"--artifacts-destination={artifacts}"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen([*command, *store], env=environment, stdout=log, stderr=log, cwd=folder)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                time.sleep(0.2)
        else:
            pytest.fail((folder / "server.log").read_text())
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


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


class ScriptedServer:
    """A server on loopback that speaks as vLLM's does, and wrongly where a test says so.

    Attributes:
        url: its address.
        version: what it says of itself; `root` and `room` of its model.
        replies: what stands in the place of its own replies, by path: called with the request's JSON, returns pieces of
            raw HTTP, or None for the server's own reply.
        asked: the bodies of all requests for completions.
        over: set when the server ends; slow replies wait for it.
    """

    def __init__(self) -> None:
        self.url, self.version, self.root, self.room = "", "0.32.0", "/models/tiny", 256
        self.replies: dict[str, Callable[[dict[str, Any]], Iterable[bytes] | None]] = {}
        self.asked: list[dict[str, Any]] = []
        self.over = threading.Event()

    def reply(self, path: str, body: dict[str, Any]) -> Iterable[bytes]:
        """Return the pieces of a reply."""
        if path == "/v1/completions":
            self.asked.append(body)
        given = self.replies[path](body) if path in self.replies else None
        return [self.own_reply(path, body)] if given is None else given

    def own_reply(self, path: str, body: dict[str, Any]) -> bytes:
        """Return what vLLM would say."""
        if path == "/v1/models":
            return as_http({"data": [{"id": "tiny", "root": self.root, "parent": None, "max_model_len": self.room}]})
        if path == "/version":
            return as_http({"version": self.version})
        if "request_id" not in body:
            return as_http({"error": {"message": "must be the model's dtype torch.float32"}}, 400)
        return as_http(self.completion(body))

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return an answer: token 7 as often as it was asked for."""
        prompt, count, tokens = body.get("prompt"), body.get("n", 1), body["max_tokens"]
        length = len(prompt) if prompt is not None else _rows(body["prompt_embeds"])
        step = {f"token_id:{token}": -0.5 - token for token in (7, 8)}
        choice = {
            "text": "x" * tokens,
            "token_ids": [7] * tokens,
            "finish_reason": "length",
            "prompt_token_ids": prompt or [0] * length,
            "logprobs": None if body.get("logprobs") is None else {"top_logprobs": [step] * tokens},
        }
        return {
            "id": f"cmpl-{body['request_id']}",
            "model": "tiny",
            "system_fingerprint": f"vllm-{self.version}-0123abcd",
            "choices": [{"index": index} | choice for index in range(count)],
            "usage": {"prompt_tokens": length, "completion_tokens": tokens * count},
        }

    def drip(self, reply: bytes, at_once: int = 0) -> Iterator[bytes]:
        """Yield a reply a byte at a time, slowly, after its first bytes."""
        yield reply[:at_once]
        for byte in reply[at_once:]:
            if self.over.wait(0.05):
                return
            yield bytes([byte])


def as_http(content: object, status: int = 200, head: str = "Content-Type: application/json\r\n") -> bytes:
    """Return a reply of some JSON, or of bytes as they are."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    head += f"Content-Length: {len(body)}\r\nConnection: close\r\n"
    return f"HTTP/1.1 {status} Said\r\n{head}\r\n".encode() + body


def _rows(embeds: str) -> int:
    return int(torch.load(io.BytesIO(base64.b64decode(embeds)), weights_only=True).shape[0])


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    """Run a server that a test has speak wrongly."""
    script = ScriptedServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with suppress(BrokenPipeError, ConnectionResetError):  # who asked may not wait for it
                for piece in script.reply(self.path, json.loads(body) if body else {}):
                    self.wfile.write(piece)
            self.close_connection = True

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with LocalServer(("127.0.0.1", 0), Handler) as server:
        script.url = f"http://127.0.0.1:{server.server_port}"
        server.begin()
        try:
            yield script
        finally:
            script.over.set()
            server.shutdown()


class VLLMServer:
    """vLLM's own server on a model, on a port of its own that it keeps when it is started again.

    Args:
        model: folder of the model.
        folder: folder for its log.
        cache: folder in which vLLM keeps what it has found out about models' classes, which takes it 10 s.
        options: further options of its command line.
        key: API key that it wants.

    Attributes:
        url: its address.
    """

    def __init__(self, model: Path, folder: Path, cache: Path, *options: str, key: str | None = None) -> None:
        port = free_port()
        self.url, self._folder = f"http://127.0.0.1:{port}", folder
        self._command = [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--dtype", "float32"),
            *("--host", "127.0.0.1", "--port", str(port), "--max-model-len", "256", "--max-num-seqs", "8"),
            *("--enforce-eager", "--kv-cache-memory-bytes", str(64 << 20), "--no-enable-prefix-caching"),
            *("--distributed-executor-backend", "vllm.v1.executor.uniproc_executor.UniProcExecutor", *options),
        ]
        own = {"OMP_NUM_THREADS": "1", "TORCH_COMPILE_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1"}
        own |= {"VLLM_HOST_IP": "127.0.0.1", "VLLM_CACHE_ROOT": str(cache), "HF_HUB_OFFLINE": "1"}
        own |= {} if key is None else {"VLLM_API_KEY": key}
        # Not what an engine in this process has set for itself.
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")} | own
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, as yet without waiting for it."""
        with (self._folder / "vllm.log").open("a") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        """Wait until it answers."""
        assert self._process is not None
        until = time.monotonic() + 300
        while time.monotonic() < until and self._process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=2)
                return
            except OSError:
                time.sleep(0.25)
        pytest.fail((self._folder / "vllm.log").read_text()[-4000:])

    def metric(self, name: str, label: str = "") -> float:
        """Return the sum of one of its metrics over all labels, or over those with a text such as `reason="stop"`."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        own = [line for line in lines if line.startswith((f"{name}{{", f"{name} ")) and label in line]
        return sum(float(line.rsplit(" ", 1)[1]) for line in own)

    def kill(self) -> None:
        """End it and its core at once."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(30)


@contextmanager
def vllm_server(model: Path, folder: Path, cache: Path, *options: str, key: str | None = None) -> Iterator[VLLMServer]:
    """Run vLLM's server, once it answers; see `VLLMServer`."""
    server = VLLMServer(model, folder, cache, *options, key=key)
    try:
        server.start()
        server.wait()
        yield server
    finally:
        server.kill()


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run a headless Chromium; a test that needs one is skipped where there is none, but not in CI."""
    if CHROMIUM is None and "CI" not in os.environ:
        pytest.skip("there is no chromium on PATH to look at the page with")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def postgresql() -> Iterator[str]:
    """Run a PostgreSQL of its own and yield the address of an empty database; skip where there is none, but not in CI."""
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
    if binaries is None and "CI" not in os.environ:
        pytest.skip("PostgreSQL is not installed (Debian's package is `postgresql`)")
    assert binaries is not None
    # Its server refuses to be root's; and it must be able to reach its folder.
    user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    name = "postgres" if user else getpass.getuser()
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        if user:
            shutil.chown(folder, "postgres")
        data, port = Path(folder) / "data", free_port()

        def run(command: str, *arguments: str) -> None:
            subprocess.run([*user, str(binaries / command), *arguments], check=True, capture_output=True, cwd="/")

        run("initdb", "-D", str(data), "-A", "trust", "-U", name, "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        run("pg_ctl", "-D", str(data), "-w", "-o", options, "-l", str(data / "log"), "start")
        try:
            run("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", name, "sweep")
            yield f"postgresql://{name}@127.0.0.1:{port}/sweep"
        finally:
            run("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
