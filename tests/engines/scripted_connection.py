"""Server engines on a scripted server, with short time limits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from conftest import MAX_MODEL_LEN
from scripted_server import ScriptedServer
from sweep.engines import ServerConfig
from sweep.engines.base import Engine
from sweep.inputs.checkpoint import Checkpoint

MODELS, VERSION, COMPLETIONS = "/v1/models", "/version", "/v1/completions"
SECONDS = 0.4  # of each time limit in tests that exceed it
SHORT = {"connect_timeout": SECONDS, "read_timeout": SECONDS, "patience": SECONDS}
IN_TIME = 8.0


def shorten_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses between attempts, and remove the API key."""
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setattr("sweep.engines.server.in_flight.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("sweep.engines.server.handshake.PAUSE", 0.01)


@contextmanager
def engines_on(server: ScriptedServer, checkpoint: Checkpoint, folder: Path) -> Iterator[Callable[..., Engine]]:
    """Yield a function that opens an engine on the server; close all of them at the end."""
    opened: list[Engine] = []

    def open_it(**changes: Any) -> Engine:
        limits = {"connect_timeout": IN_TIME, "read_timeout": IN_TIME, "patience": 20.0}
        config = ServerConfig(url=server.url, **limits | changes)
        opened.append(config.open(checkpoint.files, MAX_MODEL_LEN, folder))
        return opened[-1]

    yield open_it
    for engine in opened:
        engine.close()


def always(*pieces: bytes) -> Callable[[dict[str, Any]], Iterable[bytes]]:
    return lambda body: pieces


def endless(body: dict[str, Any]) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    while True:
        yield b"10000\r\n" + b" " * 0x10000 + b"\r\n"
