"""The engine of `sweep.testing.scripted` and the formula that computes its answers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sweep.console import signals
from sweep.engines.base import Engine, Failure, Generation, ModelFiles, Request
from sweep.engines.request_errors import request_error
from sweep.engines.transformers.decoding import Answer, Sample
from sweep.errors import EngineDied
from sweep.inputs.checkpoint import Checkpoint
from sweep.inputs.config import ModelConfig
from sweep.inputs.embedding_loader import open_table

if TYPE_CHECKING:
    from sweep.testing.scripted import ScriptedConfig

POLL_SECONDS = 0.02  # between two checks of the pause file


class ScriptedModel:
    """A fixed function from embedding rows to logits.

    The state after row t is s_t = DECAY · s_(t-1) + row_t, and the logits are GAIN · R tanh(W s_t / ‖s_t‖ · √width)
    with fixed random matrices W and R. Every row and its direction affect the logits. Nothing is learned.
    """

    DECAY, GAIN, SEED = 0.8, 2.0, 20240229

    def __init__(self, hidden_size: int, vocabulary: int) -> None:
        generator = torch.Generator().manual_seed(self.SEED)
        scale = hidden_size**-0.5
        self._mix = torch.randn(hidden_size, hidden_size, generator=generator) * scale
        self._read = torch.randn(vocabulary, hidden_size, generator=generator) * scale * self.GAIN

    def logits(self, rows: Tensor) -> Tensor:
        """Return the logits of the token after each row.

        Args:
            rows: (tokens, hidden_size).

        Returns:
            (tokens, vocabulary), float32.
        """
        states, state = [], torch.zeros(rows.shape[1])
        for row in rows.float():
            state = self.next_state(state, row)
            states.append(self.read(state))
        return torch.stack(states)

    def next_state(self, state: Tensor, row: Tensor) -> Tensor:
        """Return the state (hidden_size,) after one more row (hidden_size,)."""
        return self.DECAY * state + row

    def read(self, state: Tensor) -> Tensor:
        """Return the logits (vocabulary,) for a state (hidden_size,)."""
        # Not exactly normalised, because a scaled prompt must have a different answer.
        unit = state * (len(state) ** 0.5 / (1.0 + state.norm()))
        # Row by row, not in one batch, so that the bits of an answer do not depend on the other requests.
        logits: Tensor = self._read @ torch.tanh(self._mix @ unit)
        return logits


@dataclass(slots=True)
class _Running:
    """A sample that is being generated, and the state after its last token."""

    sample: Sample
    state: Tensor


class ScriptedEngine(Engine):
    """Answers requests token by token, all requests in flight together. Owned by one thread; starts no processes."""

    def __init__(self, config: ScriptedConfig, files: ModelFiles, max_model_len: int) -> None:
        self.version = config.installed()
        self._config, self._max_model_len = config, max_model_len
        checkpoint = Checkpoint(
            ModelConfig(id=str(files.folder), trust_remote_code=files.trust_remote_code), files.folder
        )
        self._tokenizer, self._table = checkpoint.tokenizer, open_table(checkpoint)
        self._dtype: torch.dtype = getattr(torch, files.dtype)
        self._model = ScriptedModel(checkpoint.hidden_size, self._table.size)
        eos = self._tokenizer.eos_token_id
        self._stop_ids = frozenset(() if eos is None else (eos,))
        self._answered = 0
        time.sleep(config.start_seconds)

    def generate(self, requests: Iterable[Request]) -> Iterator[Generation | Failure]:
        """Answer requests; see `Engine.generate`."""
        stream, in_flight = iter(requests), list[_Running]()
        while True:
            answers = {running.sample.answer for running in in_flight}
            while len(answers) < self._config.window and (request := next(stream, None)) is not None:
                if reason := self._request_error(request):
                    yield Failure(request.key, reason)
                    continue
                started = self._start(request)
                in_flight += started
                answers.add(started[0].sample.answer)
            if not in_flight:
                return
            if self._config.step_seconds:
                time.sleep(self._config.step_seconds)
            for running in in_flight:
                self._step(running)
            done = dict.fromkeys(r.sample.answer for r in in_flight if r.sample.done)
            in_flight = [running for running in in_flight if not running.sample.done]
            for answer in done:
                if (result := answer.result()) is not None:
                    self._follow_script()
                    self._answered += 1
                    yield result

    def close(self) -> None:
        """Do nothing; the engine has no processes."""

    def _start(self, request: Request) -> list[_Running]:
        """Process the prompt of a request and return its samples."""
        answer = Answer(request, self._tokenizer, self._stop_ids, self._max_model_len)
        rows = (self._rows(request.token_ids) if request.embeds is None else request.embeds).float()
        largest = self._config.die_above
        if largest is not None and float(rows.abs().max()) > largest:
            self._die(f"a request has an entry above {largest:g}")
        state = torch.zeros(rows.shape[1])
        scored = []
        for number, row in enumerate(rows):
            if number >= len(rows) - request.scored:
                token = request.token_ids[number]
                scored.append(float(self._model.read(state).log_softmax(-1)[token]))
            state = self._model.next_state(state, row)
        answer.scored = tuple(scored)
        return [_Running(sample, state) for sample in answer.samples]

    def _step(self, running: _Running) -> None:
        sample = running.sample
        if sample.token_ids:
            running.state = self._model.next_state(running.state, self._rows(sample.token_ids[-1:])[0])
        sample.draw(self._model.read(running.state))

    def _rows(self, ids: Iterable[int]) -> Tensor:
        """Return embedding rows (tokens, hidden_size), rounded to the engine's dtype; float32."""
        return self._table.rows(list(ids)).to(self._dtype).float()

    def _request_error(self, request: Request) -> str | None:
        """Return what is wrong with a request; None if it is valid."""
        length = len(request.token_ids)
        if not length:
            return "it has no tokens"
        if length >= self._max_model_len:
            return f"its {length} tokens leave no room for an answer: engine.max_model_len is {self._max_model_len}"
        if not 0 <= min(request.token_ids) <= max(request.token_ids) < self._table.size:
            return f"it has tokens outside the vocabulary of {self._table.size} tokens"
        return request_error(request, self._table.hidden_size, self._dtype)

    def _follow_script(self) -> None:
        """Wait or crash before the next answer, if the configuration says so."""
        config = self._config
        if config.die_at is not None and self._answered >= config.die_at:
            self._die(f"engine.die_at: crash after {config.die_at} answers")
        if config.pause_file is not None and self._answered == config.pause_at:
            path = Path(config.pause_file)
            with suppress(FileNotFoundError), path.open("a") as file:
                file.write(f"{os.getpid()}\n")
            while path.exists():
                signals.check()
                time.sleep(POLL_SECONDS)

    def _die(self, reason: str) -> None:
        if self._config.death == "process":
            os.kill(os.getpid(), signal.SIGKILL)
        raise EngineDied(f"The scripted engine crashed: {reason}")
