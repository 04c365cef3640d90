"""HTTP with one server: bodies of any size sent in pieces, and replies told from silence."""

from __future__ import annotations

import base64
import io
import json
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import torch

from sweep.redaction import MASK, redact

PIECE = 3 << 18  # bytes of a tensor sent at a time; of three, base64 makes four
IDLE_SECONDS = 2.0  # that a connection is kept, shorter than servers keep it: else some are found closed when used
LONGEST_REASON = 300


logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of every request


class Lost(Exception):
    """There was no reply.

    Attributes:
        refused: whether there was no connection either.
    """

    def __init__(self, reason: str, refused: bool) -> None:
        super().__init__(reason)
        self.refused = refused


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server said.

    Attributes:
        status: HTTP's.
        content: the JSON object; empty if it was none.
        reason: of one that is an error: in the server's own words, without the key.
        retry_after: seconds that the server asks to be left alone.
    """

    status: int
    content: dict[str, Any]
    reason: str
    retry_after: float | None


class Http:
    """The connections to one server."""

    def __init__(self, url: str, key: str | None, connect: float, read: float, connections: int) -> None:
        """Connect to nothing yet.

        Args:
            url: the server's address.
            key: is sent along, and kept out of everything that is said.
            connect, read: seconds until a connection must stand, and until a reply must come.
            connections: the most at a time.
        """
        self.url, self.has_key, self._key = url, key is not None, key
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(read, connect=connect, pool=None),
            limits=httpx.Limits(
                max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=IDLE_SECONDS
            ),
        )

    async def get(self, path: str, timeout: float) -> Reply:
        """Ask for what is at a path.

        Raises:
            Lost: there was no reply.
        """
        return await self._request("GET", path, timeout=timeout)

    async def post(self, path: str, fields: dict[str, Any], embeds: torch.Tensor | None = None) -> Reply:
        """Send JSON, with embeddings as `prompt_embeds`.

        Raises:
            Lost: there was no reply.
        """
        head = json.dumps(fields, ensure_ascii=True, allow_nan=False).encode()
        headers = {"Content-Type": "application/json"}
        if embeds is None:
            return await self._request("POST", path, headers=headers, content=head)
        tensor = _saved(embeds)
        head, tail = head[:-1] + b', "prompt_embeds": "', b'"}'
        length = len(head) + 4 * -(-len(tensor) // 3) + len(tail)
        headers["Content-Length"] = str(length)
        return await self._request("POST", path, headers=headers, content=_pieces(head, tensor, tail))

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _request(self, method: str, path: str, **arguments: Any) -> Reply:
        try:
            response = await self._client.request(method, path, **arguments)
        except httpx.HTTPError as error:
            refused = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol))
            raise Lost(self._clean(f"{type(error).__name__}: {error}".removesuffix(": ")), refused) from error
        try:
            content = response.json()
        except ValueError:
            content = {}
        plain = content if isinstance(content, dict) else {}
        return Reply(response.status_code, plain, self._reason(response, plain), _retry_after(response))

    def _reason(self, response: httpx.Response, content: dict[str, Any]) -> str:
        if response.is_success:
            return ""
        error = content.get("error")
        said = error.get("message") if isinstance(error, dict) else error or content.get("detail")
        text = str(said or response.text).strip()
        return self._clean(f"HTTP {response.status_code}: {text}".removesuffix(": "))

    def _clean(self, text: str) -> str:
        """Return the first line without secrets."""
        if self._key:
            text = text.replace(self._key, MASK)
        return redact(text.split("\n")[0])[:LONGEST_REASON]


def _saved(tensor: torch.Tensor) -> memoryview:
    """Return a tensor's file; as a copy, since PyTorch saves of a part the whole."""
    file = io.BytesIO()
    torch.save(tensor.detach().cpu().clone(memory_format=torch.contiguous_format), file)
    return file.getbuffer()


async def _pieces(head: bytes, tensor: memoryview, tail: bytes) -> AsyncIterator[bytes]:
    yield head
    for start in range(0, len(tensor), PIECE):
        yield base64.b64encode(tensor[start : start + PIECE])
    yield tail


def _retry_after(response: httpx.Response) -> float | None:
    """Return the seconds that a reply's `Retry-After` says, in seconds or as a date (RFC 9110)."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
