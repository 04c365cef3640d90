"""Configuration of the server engine: `engine=server`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sweep.engines.base import Engine, EngineConfig, ModelFiles, Origin, Sampling
from sweep.engines.request_errors import require_temperature
from sweep.engines.settings import MAX_MODEL_LEN, Effect, changes, no_change
from sweep.errors import ConfigError
from sweep.util.redaction import redact
from sweep.util.validators import require, require_choice

KEY_VARIABLE = "VLLM_API_KEY"  # vLLM's server reads it, too

# Fields of the completions API from vLLM 0.26 on. A server ignores fields that it does not know.
SAMPLING_ARGS = (
    *("allowed_token_ids", "frequency_penalty", "include_stop_str_in_output", "logit_bias", "min_p", "min_tokens"),
    *("presence_penalty", "skip_special_tokens", "spaces_between_special_tokens", "stop_token_ids"),
    "structured_outputs",
)

_ADDRESS = re.compile(r"https?://(?:\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::\d{1,5})?(?:/[\w.~/-]*)?")


@dataclass(frozen=True, slots=True)
class ServerConfig(EngineConfig):
    """A vLLM server that runs already. An API key is read only from the environment variable VLLM_API_KEY.

    Attributes:
        url: Address of the server, such as http://127.0.0.1:8000, with or without /v1; no user, password or query.
        served_model: Name under which the server serves the model; null means the only model it has.
        max_in_flight: Requests sent to the server at a time; 1 or more.
        connect_timeout: Seconds to wait for a connection; above 0, at most 1e6.
        read_timeout: Seconds to wait for the complete answer to a request; above 0, at most 1e6.
        patience: Seconds to wait for a server that is unreachable or overloaded; above 0, at most 1e6.
    """

    name: ClassVar[str] = "server"
    packages: ClassVar[tuple[str, ...]] = ()  # the server reports its version
    effects: ClassVar[Mapping[str, Effect]] = {
        **MAX_MODEL_LEN,
        "url": no_change("It is only an address; the version and model that the server reports are compared instead."),
        "served_model": changes("It selects one of the server's models, some of which are adapters."),
        "max_in_flight": no_change("It only sets the size of the batch."),
        "connect_timeout": no_change("It is only a time limit."),
        "read_timeout": no_change("It is only a time limit."),
        "patience": no_change("It is only a time limit."),
    }

    is_remote: ClassVar[bool] = True

    url: str = "http://127.0.0.1:8000"
    served_model: str | None = None
    max_in_flight: int = 256
    connect_timeout: float = 10.0
    read_timeout: float = 900.0
    patience: float = 300.0

    def __post_init__(self) -> None:
        length = self.max_model_len
        require(length is None or length >= 1, "engine.max_model_len", "must be at least 1", length)
        require(self.max_in_flight >= 1, "engine.max_in_flight", "must be at least 1", self.max_in_flight)
        for key in ("connect_timeout", "read_timeout", "patience"):
            seconds = getattr(self, key)
            require(0 < seconds <= 1e6, f"engine.{key}", "must be above 0 seconds, and at most 1e6", seconds)
        has_name = self.served_model is None or bool(self.served_model.strip())
        require(has_name, "engine.served_model", "must not be empty", None)
        rule = (
            "must be an address such as http://127.0.0.1:8000, without user, password or query; "
            f"the API key is read from ${KEY_VARIABLE}"
        )
        require(_ADDRESS.fullmatch(self.url) is not None, "engine.url", rule, redact(self.url))

    @property
    def base_url(self) -> str:
        """The address without `/v1`."""
        return self.url.rstrip("/").removesuffix("/v1").rstrip("/")

    def open(self, model: ModelFiles, max_model_len: int, cache_dir: Path) -> Engine:
        """Connect to the server and check that it fits the sweep; see `EngineConfig.open`."""
        from sweep.engines.server.engine import ServerEngine

        return ServerEngine(self, model, max_model_len)

    def check(self, sampling: Sampling) -> None:
        """Reject penalties, and temperatures that vLLM would raise; see `EngineConfig.check`."""
        require_temperature(sampling, self.name)
        rule = "must be 1 with engine=server, because the server applies it without the prompt's tokens"
        require(sampling.repetition_penalty == 1, "sampling.repetition_penalty", rule, sampling.repetition_penalty)

    def check_args(self, args: Mapping[str, Any]) -> None:
        """Reject parameters that older servers ignore, or that the API does not have; see `EngineConfig.check_args`."""
        for name in args:
            require_choice("sampling.args", name, SAMPLING_ARGS, what="parameter that engine=server can send")

    def contact(self) -> Origin:
        """Return the origin that the server reports; see `EngineConfig.contact`."""
        from sweep.engines.server.event_loop import ServerLoop
        from sweep.engines.server.handshake import fetch_origin

        loop = ServerLoop(self, api_key())
        try:
            return loop.run(fetch_origin(loop.http, self))
        finally:
            loop.close()

    def tags(self) -> dict[str, str]:
        """Return the server's address. The server's hardware is unknown."""
        return {"sweep.server": self.base_url, "sweep.hardware": "unknown (remote server)"}


def api_key() -> str | None:
    """Return the server's API key from the environment.

    Raises:
        ConfigError: it contains characters that cannot be sent.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"${KEY_VARIABLE} is not an API key: it contains spaces, control characters or non-ASCII characters."
        )
    return key or None
