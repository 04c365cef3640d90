"""Engine for a running vLLM server, which receives prompt embeddings through its OpenAI-compatible API.

The workarounds were measured on vLLM 0.32. Check them again when the pinned version changes:

- The completions API accepts embeddings without token ids, so repetition penalties would read stale rows (vllm#57719).
  They are rejected.
- The server rejects `prompt_logprobs` and `echo` together with embeddings. An answer is forced token by token instead:
  each token is the only allowed one, and the reported log-probability is from before the mask.
- The server does not check that embeddings and logits are finite. Embeddings are checked here. NaN logits lead to
  answers that consist of token 0 or end with it. Such requests are repeated with log-probabilities, for which the
  server reports NaN as an error.
- Sampling defaults come from the model's `generation_config.json`, so every parameter is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from sweep.engines.base import Engine, Failure, Generation, ModelFiles, Origin, Request
from sweep.engines.request_errors import request_error
from sweep.engines.server.config import ServerConfig, api_key
from sweep.engines.server.event_loop import ServerLoop
from sweep.engines.server.handshake import perform_handshake
from sweep.engines.server.in_flight import InFlight

if TYPE_CHECKING:
    import torch


class ServerEngine(Engine):
    """A connected vLLM server that fits the sweep.

    Owned by the thread that opened it. An event loop on a daemon thread sends the requests.
    """

    def __init__(self, config: ServerConfig, model: ModelFiles, max_model_len: int) -> None:
        import torch

        self._config, self._window, self._max_model_len = config, config.max_in_flight, max_model_len
        self._dtype: torch.dtype = getattr(torch, model.dtype)
        self._loop: ServerLoop | None = ServerLoop(config, api_key())
        try:
            self._handshake = self._loop.run(perform_handshake(self._loop.http, config, model, max_model_len))
        except BaseException:
            self.close()
            raise
        self.version = self._handshake.origin.engine

    @property
    def origin(self) -> Origin:
        """The origin that the server reported at the handshake."""
        return self._handshake.origin

    def generate(self, requests: Iterable[Request]) -> Iterator[Generation | Failure]:
        """Answer requests, many at a time; see `Engine.generate`."""
        assert self._loop is not None, "the engine is closed"
        waiting, in_flight = iter(requests), InFlight(self._loop, self._config, self._handshake)
        try:
            while True:
                while in_flight.size < self._window and (request := next(waiting, None)) is not None:
                    reason = request_error(request, self._handshake.hidden_size, self._dtype)
                    if reason := reason or self._unsupported(request):
                        yield Failure(request.key, reason)
                    else:
                        in_flight.send(request, self._max_model_len - len(request.token_ids))
                if not in_flight.size:
                    return
                yield in_flight.receive()
        finally:
            in_flight.drop()

    def close(self) -> None:
        """Close the connections. The server keeps running."""
        if self._loop is not None:
            loop, self._loop = self._loop, None
            loop.close()

    def _unsupported(self, request: Request) -> str | None:
        """Return why the server cannot answer a request correctly; None if it can."""
        length = len(request.token_ids)
        if length >= self._max_model_len:
            return f"its {length} tokens leave no room for an answer; engine.max_model_len is {self._max_model_len}"
        if request.embeds is not None and request.sampling.repetition_penalty != 1:
            return "the server would apply its repetition penalty without the tokens of the prompt"
        return None
