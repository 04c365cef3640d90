"""Servers and a browser for tests: on loopback, on free ports, ended by the tests that start them."""

from __future__ import annotations

import getpass
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def mlflow_server(folder: Path, database: Path, artifacts: Path, port: int | None = None) -> Iterator[str]:
    """Run MLflow's server on a store and yield its address."""
    port = port or free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = [f"--backend-store-uri=sqlite:///{database}", f"--artifacts-destination={artifacts}"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen([*command, *store], env=environment, stdout=log, stderr=log, cwd=folder)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
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

        def do_GET(self) -> None:
            status, kind, answer = self.forward(self.body())
            text = next((text for text, left in lost.items() if left and text in self.path), None)
            if text is not None and self.command != "GET":
                lost[text] -= 1
                status, answer = 502, b"{}"
            self.answer(status, kind, answer)

        do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    with _proxy(Handler) as url:
        yield url


class Forwarder(BaseHTTPRequestHandler):
    """Passes requests on to `target`, the address of a server."""

    target: str

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
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
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

        def do_GET(self) -> None:
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

        do_POST = do_GET

    with _proxy(Handler) as url:
        yield url


class VLLMServer:
    """vLLM's own server on a model, on a port of its own that it keeps when it is started again.

    Attributes:
        url: its address.
    """

    def __init__(self, model: Path, folder: Path, *options: str, key: str | None = None) -> None:
        port = free_port()
        self.url, self._folder = f"http://127.0.0.1:{port}", folder
        self._command = [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--dtype", "float32"),
            *("--host", "127.0.0.1", "--port", str(port), "--max-model-len", "256", "--max-num-seqs", "8"),
            *("--enforce-eager", "--kv-cache-memory-bytes", str(64 << 20), "--no-enable-prefix-caching"),
            *("--distributed-executor-backend", "vllm.v1.executor.uniproc_executor.UniProcExecutor", *options),
        ]
        own = {"OMP_NUM_THREADS": "1", "TORCH_COMPILE_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1"}
        own |= {"VLLM_HOST_IP": "127.0.0.1", "VLLM_CACHE_ROOT": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
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

    def metric(self, name: str) -> float:
        """Return the sum of a metric of its own over all labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))

    def kill(self) -> None:
        """End it and its core at once."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(30)


@contextmanager
def vllm_server(model: Path, folder: Path, *options: str, key: str | None = None) -> Iterator[VLLMServer]:
    """Run vLLM's server, once it answers."""
    server = VLLMServer(model, folder, *options, key=key)
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
