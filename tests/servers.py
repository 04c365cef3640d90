"""Servers and a browser for tests: on loopback, on free ports, ended by the tests that start them."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
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
