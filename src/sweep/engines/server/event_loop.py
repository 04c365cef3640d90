"""Event loop for one server: an asyncio loop on a daemon thread that owns the HTTP connections."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from sweep.engines.server.config import ServerConfig
from sweep.engines.server.http_client import HttpClient

T = TypeVar("T")

DROP_SECONDS = 5.0


class ServerLoop:
    """Event loop and connections of one server. Created and closed by the thread of the engine.

    Attributes:
        http: the connections; to be used only in the loop's thread.
        fingerprint: the server's `system_fingerprint`, which identifies its version and settings; None before the
            first answer.
    """

    def __init__(self, config: ServerConfig, key: str | None) -> None:
        self._config = config
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="server", daemon=True)
        self._thread.start()
        # Some more, to check that the server is alive when all connections are in use.
        connections = config.max_in_flight + 8
        self.fingerprint: str | None = None
        self.http = HttpClient(config.base_url, key, config.connect_timeout, config.read_timeout, connections)

    def run(self, work: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
        """Run a coroutine in the loop's thread and return its result.

        Raises:
            TimeoutError: it took longer than `seconds`.
        """
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Schedule a call of a function in the loop's thread."""
        self._loop.call_soon_threadsafe(function, *arguments)

    def close(self) -> None:
        """Close all connections and end the thread."""
        with suppress(TimeoutError):
            self.run(self.http.close(), DROP_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DROP_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()
