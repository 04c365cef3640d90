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
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

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
