"""A vLLM server that somebody else runs, own or shared, fed with prompt embeddings over its OpenAI-compatible API.

What is peculiar here was measured on vLLM 0.32; check it again when the pin moves:

- Completions take embeddings without token ids, so repetition penalties would read stale rows (vllm#57719): refused.
- The server refuses `prompt_logprobs` and `echo` beside embeddings.  An answer is forced token by token instead: each
  is the only one allowed after those before it, and its log-probability is that of before the mask.
- The server checks neither finiteness of embeddings nor of logits.  The former is checked here; the latter shows in
  answers that are all token 0, or end in it, which are asked again with log-probabilities, in which NaN is an error.
- Defaults of sampling come from the model's `generation_config.json`: each parameter is said.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from sweep.checks import require
from sweep.engines.base import Engine, EngineConfig, Failure, Generation, ModelFiles, Request, Sampling
from sweep.engines.faults import fault
from sweep.errors import ConfigError
from sweep.redaction import redact

if TYPE_CHECKING:
    from sweep.engines.server_talk import Talk

KEY_VARIABLE = "VLLM_API_KEY"  # which the server itself reads, too

_ADDRESS = re.compile(r"https?://(?:\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::\d{1,5})?(?:/[\w.~/-]*)?")


@dataclass(frozen=True, slots=True)
class ServerConfig(EngineConfig):
    """A vLLM server.  An API key is taken from the environment's VLLM_API_KEY, and nowhere else.

    Attributes:
        url: its address, with or without `/v1`.
        served_model: the name under which it serves the model; None: the only one that it has.
        max_in_flight: requests that it is given at a time.
        connect_timeout: seconds until a connection must stand.
        read_timeout: seconds until a request must be answered, from when it was sent.
        patience: seconds to wait for a server that is away or overloaded, before the sweep ends.
    """

    name: ClassVar[str] = "server"

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
        named = self.served_model is None or bool(self.served_model.strip())
        require(named, "engine.served_model", "must not be empty", None)
        rule = (
            "must be an address such as http://127.0.0.1:8000, without a user, a password or a query; "
            f"a key is taken from ${KEY_VARIABLE}"
        )
        require(_ADDRESS.fullmatch(self.url) is not None, "engine.url", rule, redact(self.url))

    @property
    def base_url(self) -> str:
        """The address without `/v1`."""
        return self.url.rstrip("/").removesuffix("/v1").rstrip("/")

    def open(self, model: ModelFiles, max_model_len: int, cache_dir: Path) -> Engine:
        """Meet the server, and see whether it is the right one; see `EngineConfig.open`."""
        return ServerEngine(self, model, max_model_len)

    def check(self, sampling: Sampling) -> None:
        """Refuse penalties; see `EngineConfig.check`."""
        rule = "must be 1 with engine=server, whose penalties do not see the prompt's tokens"
        require(sampling.repetition_penalty == 1, "sampling.repetition_penalty", rule, sampling.repetition_penalty)

    def reach(self) -> None:
        """See whether the server is there; see `EngineConfig.reach`."""
        from sweep.engines.server_meeting import greet
        from sweep.engines.server_talk import Talk

        talk = Talk(self, api_key())
        try:
            talk.run(greet(talk.http, self))
        finally:
            talk.close()

    def tags(self) -> dict[str, str]:
        """Return the server's address; the hardware is its own, and not known."""
        return {"sweep.server": self.base_url, "sweep.hardware": "the server's"}


class ServerEngine(Engine):
    """A server that has been found to be the right one."""

    def __init__(self, config: ServerConfig, model: ModelFiles, max_model_len: int) -> None:
        import torch

        from sweep.engines.server_meeting import meet
        from sweep.engines.server_talk import Talk

        self._window, self._max_model_len = config.max_in_flight, max_model_len
        self._dtype: torch.dtype = getattr(torch, model.dtype)
        self._talk: Talk | None = Talk(config, api_key())
        try:
            self._met = self._talk.run(meet(self._talk.http, config, model, max_model_len))
        except BaseException:
            self.close()
            raise
        self.version = self._met.version

    def generate(self, requests: Iterable[Request]) -> Iterator[Generation | Failure]:
        """Answer requests, many at a time; see `Engine.generate`."""
        assert self._talk is not None, "the engine is closed"
        waiting, flight = iter(requests), self._talk.flight(self._met)
        try:
            while True:
                while flight.size < self._window and (request := next(waiting, None)) is not None:
                    if wrong := fault(request, self._met.hidden_size, self._dtype) or self._refusal(request):
                        yield Failure(request.key, wrong)
                    else:
                        flight.send(request, self._max_model_len - len(request.token_ids))
                if not flight.size:
                    return
                yield flight.receive()
        finally:
            flight.drop()

    def close(self) -> None:
        """Leave the server alone; it goes on running."""
        if self._talk is not None:
            talk, self._talk = self._talk, None
            talk.close()

    def _refusal(self, request: Request) -> str | None:
        """Say what cannot be asked of the server, or would be answered wrongly."""
        length = len(request.token_ids)
        if length >= self._max_model_len:
            return f"its {length} tokens leave no room for an answer; engine.max_model_len is {self._max_model_len}"
        if request.embeds is not None and request.sampling.repetition_penalty != 1:
            return "a repetition penalty would not see the tokens of its prompt"
        return None


def api_key() -> str | None:
    """Return the server's key, from the environment.

    Raises:
        ConfigError: it cannot be sent.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"${KEY_VARIABLE} is no key: it has spaces or characters in it that cannot be sent.")
    return key or None
