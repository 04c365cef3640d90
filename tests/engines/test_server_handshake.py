"""The handshake of the server engine: servers that are not vLLM, serve another model, or are slow are rejected in time."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_connection import (
    COMPLETIONS,
    IN_TIME,
    MODELS,
    SHORT,
    VERSION,
    always,
    endless,
    engines_on,
    shorten_pauses,
)

from scripted_server import ScriptedServer, as_http, scripted_server
from sweep.engines.base import Engine, Origin
from sweep.errors import ConfigError
from sweep.inputs.checkpoint import Checkpoint


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    shorten_pauses(monkeypatch)
    with scripted_server() as running:
        yield running


@pytest.fixture
def connect(server: ScriptedServer, checkpoint: Checkpoint, tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    with engines_on(server, checkpoint, tmp_path) as open_engine:
        yield open_engine


CARD = {"id": "tiny", "root": "/models/tiny", "max_model_len": 256}
DEEP = b'{"data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
SQUEEZED = gzip.compress(b'{"data": [' + b" " * (1 << 20) + b"]}")
HANDSHAKES: dict[str, tuple[Callable[[dict[str, Any]], Iterable[bytes]], str]] = {
    "endless": (endless, "its answer is larger than 4194304 bytes"),
    "compressed": (
        always(as_http(SQUEEZED, head="Content-Encoding: gzip\r\n")),
        r"its answer is compressed \(gzip\), which was not requested",
    ),
    "redirect": (
        always(as_http(b"", 307, "Location: http://127.0.0.1:9/v1/models\r\n")),
        "HTTP 307: it redirects to http://127.0.0.1:9/v1/models; set engine.url to the address of the server",
    ),
    "html": (
        always(as_http(b"<html>", head="Content-Type: text/html\r\n")),
        r"its answer is not JSON \(Expecting value",
    ),
    "no text": (always(as_http(b'{"data": "\xff"}')), r"its answer is not JSON \('utf-8' codec"),
    "deep": (always(as_http(DEEP)), "its answer is nested too deeply"),
    "nan": (always(as_http(b'{"data": NaN}')), r"its answer is not JSON \(it contains NaN\)"),
    "infinity": (always(as_http(b'{"data": -Infinity}')), r"its answer is not JSON \(it contains -Infinity\)"),
    "a list": (always(as_http([CARD])), "its answer is not an object but a list"),
    "no data": (always(as_http({"data": {"id": "tiny"}})), "it lists no models"),
    "no models": (always(as_http({"data": [None, 5, {"id": 5}, {"id": ""}, {}]})), "it lists no models"),
    "two models": (
        always(as_http({"data": [CARD, {"id": "\x1b[2Jother", "root": "/b"}]})),
        "the server has several models. Set it to one of: tiny, \N{REPLACEMENT CHARACTER}\\[2Jother",
    ),
    "a large head": (
        always(b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1 << 20) + b"\r\n\r\n"),
        "no server answers at this address .RemoteProtocolError",
    ),
    "half": (always(as_http({"data": [CARD]})[:-9]), "no server answers at this address .RemoteProtocolError"),
    "nothing": (always(), "no server answers at this address .RemoteProtocolError"),
    "not http": (always(b"\x00\x01 220 mail\r\n\r\n"), "no server answers at this address .RemoteProtocolError"),
}


@pytest.mark.parametrize("kind", HANDSHAKES)
def test_other_servers_are_rejected(server: ScriptedServer, connect: Callable[..., Engine], kind: str) -> None:
    server.replies[MODELS], reason = HANDSHAKES[kind]
    began = time.monotonic()
    with pytest.raises(ConfigError, match=reason) as caught:
        connect()
    assert time.monotonic() - began < IN_TIME and len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("path", [MODELS, VERSION, COMPLETIONS])
@pytest.mark.parametrize("at_once", [0, 60])
def test_a_handshake_with_a_slow_server_ends_in_time(
    server: ScriptedServer, connect: Callable[..., Engine], path: str, at_once: int
) -> None:
    """The server sends byte by byte and never exceeds the timeout of a single read."""
    server.replies[path] = lambda body: server.drip(server.own_reply(path, body), at_once)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"engine\.url: .*no complete answer within 0\.[48] s"):
        connect(**SHORT)
    assert time.monotonic() - began < IN_TIME


def test_an_unknown_model_name(server: ScriptedServer, connect: Callable[..., Engine]) -> None:
    with pytest.raises(ConfigError, match=r"engine\.served_model: the server does not serve 'other'. Available: tiny"):
        connect(served_model="other")


def test_the_origin_is_what_the_server_reports(server: ScriptedServer, connect: Callable[..., Engine]) -> None:
    assert connect().origin == Origin("vllm 0.32.0 (server)", "/models/tiny, max_model_len 256")
    server.version, server.root = "0.33.0+cpu", "/models/\x1b[31mother"
    assert connect().origin == Origin(
        "vllm 0.33.0 (server)", "/models/\N{REPLACEMENT CHARACTER}[31mother, max_model_len 256"
    )
    for content in ({"version": ["0.33.0"]}, {"version": None}, {}):
        server.replies[VERSION] = always(as_http(content))
        assert connect().origin.engine == "vllm of unknown version (server)"
