"""HTTP client for one server: sends bodies of any size in chunks, limits the time and size of replies.

The timeouts of httpx apply to single reads and writes, and a server that sends a byte now and then never exceeds them.
So each call has a limit for its total time.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import torch

from sweep.engines.server.replies import (
    ERROR_BYTES,
    IDENTITY,
    Reply,
    error_message,
    parse,
    printable_line,
    read_body,
    retry_after,
)
from sweep.util.redaction import MASK, redact

CHUNK_BYTES = 3 << 18  # of a tensor per write; a multiple of 3, because base64 turns three bytes into four
IDLE_SECONDS = 2.0  # for which an idle connection is kept; servers keep it longer, so it is open when used again
MAX_GET_BYTES = 1 << 22  # of a reply to GET


logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every request


class ConnectionLost(Exception):
    """No reply was received.

    Attributes:
        refused: whether the connection itself failed.
    """

    def __init__(self, reason: str, refused: bool) -> None:
        super().__init__(reason)
        self.refused = refused


class HttpClient:
    """The connections to one server. Owned by the thread of the event loop."""

    def __init__(self, url: str, key: str | None, connect: float, read: float, connections: int) -> None:
        """Create the client without connecting.

        Args:
            url: the server's address.
            key: API key to send. It is removed from all messages.
            connect: seconds to establish a connection.
            read: seconds from the connection to the end of the reply.
            connections: maximum number of connections.
        """
        self.url, self.has_key, self._key = url, key is not None, key
        self._seconds = connect + read
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={"Accept-Encoding": IDENTITY} | ({"Authorization": f"Bearer {key}"} if key else {}),
            timeout=httpx.Timeout(read, connect=connect, pool=None),
            limits=httpx.Limits(
                max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=IDLE_SECONDS
            ),
        )

    async def get(self, path: str, seconds: float) -> Reply:
        """Send a GET request and wait up to `seconds` for the whole reply.

        Raises:
            ConnectionLost: no reply was received.
        """
        return await self._request("GET", path, seconds, MAX_GET_BYTES)

    async def post(
        self,
        path: str,
        fields: dict[str, Any],
        embeds: torch.Tensor | None = None,
        *,
        max_bytes: int,
        seconds: float | None = None,
    ) -> Reply:
        """Send a POST request with a JSON object, and embeddings as its field `prompt_embeds`.

        Args:
            path: path of the URL.
            fields: fields of the JSON object.
            embeds: (tokens, hidden_size), any dtype.
            max_bytes: maximum size of the reply.
            seconds: limit until the end of the reply; None: the sum of `connect` and `read`.

        Raises:
            ConnectionLost: no reply was received.
        """
        seconds = self._seconds if seconds is None else seconds
        head = json.dumps(fields, ensure_ascii=True, allow_nan=False).encode()
        headers = {"Content-Type": "application/json"}
        if embeds is None:
            return await self._request("POST", path, seconds, max_bytes, headers=headers, content=head)
        tensor = _serialise(embeds)
        head, tail = head[:-1] + b', "prompt_embeds": "', b'"}'
        length = len(head) + 4 * -(-len(tensor) // 3) + len(tail)
        headers["Content-Length"] = str(length)
        chunks = _chunks(head, tensor, tail)
        return await self._request("POST", path, seconds, max_bytes, headers=headers, content=chunks)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _request(self, method: str, path: str, seconds: float, max_bytes: int, **arguments: Any) -> Reply:
        try:
            async with asyncio.timeout(seconds), self._client.stream(method, path, **arguments) as response:
                body, problem = await read_body(response, max_bytes if response.is_success else ERROR_BYTES)
        except TimeoutError as error:
            raise ConnectionLost(f"no complete answer within {seconds:g} s", refused=False) from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
            refused = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol))
            reason = f"{type(error).__name__}: {error}".removesuffix(": ")
            raise ConnectionLost(self._first_line(reason), refused) from error
        content, parse_problem = ({}, problem) if problem else parse(body)
        if response.is_success:
            problem = self._first_line(problem or parse_problem)
            return Reply(response.status_code, content, "", problem, retry_after(response))
        reason = self._first_line(error_message(response, body, content))
        return Reply(response.status_code, content, reason, "", retry_after(response))

    def _first_line(self, text: str) -> str:
        """Return the first line of a text, without secrets."""
        if self._key:
            text = text.replace(self._key, MASK)
        return printable_line(redact(text))


def _serialise(tensor: torch.Tensor) -> memoryview:
    """Return a tensor in PyTorch's file format; of a copy, because PyTorch saves the whole storage of a view."""
    file = io.BytesIO()
    torch.save(tensor.detach().cpu().clone(memory_format=torch.contiguous_format), file)
    return file.getbuffer()


async def _chunks(head: bytes, tensor: memoryview, tail: bytes) -> AsyncIterator[bytes]:
    yield head
    for start in range(0, len(tensor), CHUNK_BYTES):
        yield base64.b64encode(tensor[start : start + CHUNK_BYTES])
    yield tail
