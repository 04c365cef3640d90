"""A server for tests that speaks as vLLM's does, and wrongly where a test says so."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from typing import Any

import torch

from servers import LocalServer


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
