"""What an engine is tried with, and what is right: computed with `transformers`, one prompt at a time, uncached."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sweep.engines.base import Completion, Engine, Generation, Request, Sampling
from sweep.inputs.checkpoint import Checkpoint
from sweep.inputs.embedding import EmbeddingTable, open_table

if TYPE_CHECKING:
    from psutil import Process  # type: ignore[import-untyped]

PROMPTS = [tuple(range(5, 5 + length)) for length in (3, 17, 40, 8, 25, 11)]
GREEDY = Sampling(max_tokens=8, ignore_eos=True)
RANDOM = Sampling(max_tokens=8, ignore_eos=True, temperature=1.0, seed=11)
END_TIMEOUT = 10.0  # seconds in which a killed engine is to be noticed, and a closed one to be gone


@dataclass(frozen=True)
class EngineBench:
    """An engine to be tried, and what is right.

    Attributes:
        open: starts the engine on the checkpoint.
        checkpoint: of a small model in fp32, whose vocabulary has 64 tokens or more.
        max_model_len: with which it is started, 64 or more.
        window: how many requests it may have drawn that it has not answered.
        penalties: whether it has repetition penalties; one that has not refuses such sweeps by `EngineConfig.check`.
    """

    open: Callable[[], Engine]
    checkpoint: Checkpoint
    max_model_len: int
    window: int
    penalties: bool = True

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
        """The model, in `transformers`."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.checkpoint.folder, dtype=self.checkpoint.dtype).eval()

    def request(
        self, key: object, ids: Sequence[int], sampling: Sampling = GREEDY, factor: float = 1.0, scored: int = 0
    ) -> Request:
        """Return a request with the embeddings of some tokens, times a factor."""
        rows = (self.table.rows(ids) * factor).to(self.table.dtype)
        return Request(str(key), tuple(ids), rows, sampling, scored)

    def requests(self, sampling: Sampling = GREEDY, factor: float = 1.0) -> list[Request]:
        """Return a request for each prompt, whose keys are their numbers."""
        return [self.request(i, ids, sampling, factor) for i, ids in enumerate(PROMPTS)]

    def logits(self, rows: Tensor) -> Tensor:
        """Return the logits of the token after each row, [len(rows), vocabulary] in fp32."""
        with torch.inference_mode():
            logits: Tensor = self.model(inputs_embeds=rows[None], use_cache=False).logits[0]
        return logits.float().clone()  # which is no inference tensor

    def logprobs(self, rows: Tensor) -> Tensor:
        """Return the log-probabilities of the token after each row, [len(rows), vocabulary] in fp32."""
        return self.logits(rows).log_softmax(-1)

    def greedy(self, request: Request) -> tuple[int, ...]:
        """Return the tokens that are the greedy answer to a request."""
        assert request.embeds is not None
        rows, said, penalty = request.embeds, list[int](), request.sampling.repetition_penalty
        for _ in range(request.sampling.max_tokens):
            logits, seen = self.logits(rows)[-1], sorted({*request.token_ids, *said})
            logits[seen] = torch.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
            said.append(int(logits.argmax()))
            rows = torch.cat([rows, self.table.rows(said[-1:]).to(rows.dtype)])
        return tuple(said)


@dataclass(frozen=True)
class Started:
    """A started engine and the processes that it has started, if any."""

    engine: Engine
    processes: list[Process]

    def close(self) -> None:
        """Close it, twice; its processes are to end."""
        import psutil

        self.engine.close()
        self.engine.close()
        _, alive = psutil.wait_procs(self.processes, timeout=END_TIMEOUT)
        assert not alive, f"closed, the engine leaves processes: {[process.cmdline() for process in alive]}"


def generations_of(engine: Engine, requests: Iterable[Request]) -> Iterator[Generation]:
    """Yield the answers, all of which are to be generations."""
    for answer in engine.generate(requests):
        assert isinstance(answer, Generation), f"{answer.key!r} fails: {answer.reason}"
        yield answer


def answers_of(engine: Engine, requests: Iterable[Request]) -> dict[object, tuple[Completion, ...]]:
    """Return the answers by their keys."""
    return {generation.key: generation.completions for generation in generations_of(engine, requests)}


def tokens_of(answers: dict[object, tuple[Completion, ...]]) -> dict[object, tuple[tuple[int, ...], ...]]:
    """Return what answers have of tokens, by their keys."""
    return {key: tuple(completion.token_ids for completion in own) for key, own in answers.items()}


def _children() -> list[Process]:
    """Return this process's descendants, but for the one in which Python keeps track of what processes share."""
    import psutil

    return [
        child
        for child in psutil.Process().children(recursive=True)
        if "resource_tracker" not in " ".join(child.cmdline())
    ]
