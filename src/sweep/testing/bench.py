"""Test bench for engines: prompts, and reference answers from `transformers`, computed one by one without a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sweep.engines.base import Completion, Engine, Generation, Request, Sampling
from sweep.inputs.checkpoint import Checkpoint
from sweep.inputs.embedding_loader import open_table
from sweep.inputs.embedding_table import EmbeddingTable
from sweep.inputs.model_class import auto_class

if TYPE_CHECKING:
    from psutil import Process  # type: ignore[import-untyped]

PROMPTS = [tuple(range(5, 5 + length)) for length in (3, 17, 40, 8, 25, 11)]
GREEDY = Sampling(max_tokens=8, ignore_eos=True)
RANDOM = Sampling(max_tokens=8, ignore_eos=True, temperature=1.0, seed=11)
END_TIMEOUT = 10.0  # seconds to detect a killed engine, and for the processes of a closed engine to end


@dataclass(frozen=True)
class EngineBench:
    """An engine to test and its reference model.

    Attributes:
        open: starts the engine with the checkpoint.
        checkpoint: a small model in float32 with a vocabulary of at least 64 tokens.
        max_model_len: the engine's maximum sequence length in tokens, at least 64.
        window: maximum number of requests that the engine draws ahead of its answers.
        penalties: whether the engine supports repetition penalties. If not, `EngineConfig.check` rejects them.
        reference: returns the expected logits (tokens, vocabulary) for embedding rows (tokens, hidden_size). None: use
            the checkpoint in `transformers`.
    """

    open: Callable[[], Engine]
    checkpoint: Checkpoint
    max_model_len: int
    window: int
    penalties: bool = True
    reference: Callable[[Tensor], Tensor] | None = None

    def start(self) -> Started:
        """Open the engine."""
        before = set(_children())
        engine = self.open()
        return Started(engine, [process for process in _children() if process not in before])

    @cached_property
    def table(self) -> EmbeddingTable:
        """The model's embedding table."""
        return open_table(self.checkpoint)

    @cached_property
    def model(self) -> Any:
        """The model in `transformers`."""
        folder = self.checkpoint.folder
        return auto_class(folder).from_pretrained(folder, dtype=self.checkpoint.dtype).eval()

    def request(
        self, key: object, ids: Sequence[int], sampling: Sampling = GREEDY, factor: float = 1.0, scored: int = 0
    ) -> Request:
        """Return a request with the embeddings of tokens, multiplied by a factor."""
        rows = (self.table.rows(ids) * factor).to(self.table.dtype)
        return Request(str(key), tuple(ids), rows, sampling, scored)

    def requests(self, sampling: Sampling = GREEDY, factor: float = 1.0) -> list[Request]:
        """Return one request per prompt; the keys are the prompts' numbers."""
        return [self.request(i, ids, sampling, factor) for i, ids in enumerate(PROMPTS)]

    def logits(self, rows: Tensor) -> Tensor:
        """Return the logits of the token after each row: (len(rows), vocabulary), float32."""
        if self.reference is not None:
            return self.reference(rows).float()
        with torch.inference_mode():
            logits: Tensor = self.model(inputs_embeds=rows[None], use_cache=False).logits[0]
        return logits.float().clone()  # a clone, because inference tensors cannot be modified

    def logprobs(self, rows: Tensor) -> Tensor:
        """Return the log-probabilities of the token after each row: (len(rows), vocabulary), float32."""
        return self.logits(rows).log_softmax(-1)

    def greedy(self, request: Request) -> tuple[int, ...]:
        """Return the tokens of the expected greedy answer to a request with embeddings."""
        assert request.embeds is not None
        rows, tokens, penalty = request.embeds, list[int](), request.sampling.repetition_penalty
        for _ in range(request.sampling.max_tokens):
            logits, seen = self.logits(rows)[-1], sorted({*request.token_ids, *tokens})
            logits[seen] = torch.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
            tokens.append(int(logits.argmax()))
            rows = torch.cat([rows, self.table.rows(tokens[-1:]).to(rows.dtype)])
        return tuple(tokens)


@dataclass(frozen=True)
class Started:
    """A started engine and the processes that it started."""

    engine: Engine
    processes: list[Process]

    def close(self) -> None:
        """Close the engine twice and check that its processes end."""
        import psutil

        self.engine.close()
        self.engine.close()
        _, alive = psutil.wait_procs(self.processes, timeout=END_TIMEOUT)
        assert not alive, f"these processes of the closed engine still run: {[process.cmdline() for process in alive]}"


def generations_of(engine: Engine, requests: Iterable[Request]) -> Iterator[Generation]:
    """Yield the generations for requests and check that no request fails."""
    for answer in engine.generate(requests):
        assert isinstance(answer, Generation), f"{answer.key!r} failed: {answer.reason}"
        yield answer


def answers_of(engine: Engine, requests: Iterable[Request]) -> dict[object, tuple[Completion, ...]]:
    """Return the completions by the keys of their requests."""
    return {generation.key: generation.completions for generation in generations_of(engine, requests)}


def tokens_of(answers: dict[object, tuple[Completion, ...]]) -> dict[object, tuple[tuple[int, ...], ...]]:
    """Return the token ids of completions by the keys of their requests."""
    return {key: tuple(completion.token_ids for completion in completions) for key, completions in answers.items()}


def _children() -> list[Process]:
    """Return this process's descendants without Python's resource tracker."""
    import psutil

    return [
        child
        for child in psutil.Process().children(recursive=True)
        if "resource_tracker" not in " ".join(child.cmdline())
    ]
