"""Prompts of forced answers: given answers, and a control's answers, follow a point's transformed prompts.

The worker pool builds a point's prompts once, for its own answers. They are kept until the control's answers are known.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from sweep.engines.base import Request, Sampling
from sweep.execution.prefetch import chunks
from sweep.inputs.embedding_table import EmbeddingTable
from sweep.planning.plan import PlannedPoint
from sweep.workers.base import Built, Unbuilt, WorkerLost, WorkerPool

# Embedding entries that are kept, a quarter of a gigabyte in bf16. A control with a long answer holds up many points.
# Prompts beyond the limit are built again, by the worker pool.
MAX_KEPT_ENTRIES = 2**27

EmbeddedPrompt = tuple[tuple[int, ...], torch.Tensor]  # token ids, and rows: (tokens, hidden) in the engine's dtype


def forced_request(key: Hashable, prompt: EmbeddedPrompt, answer: tuple[int, ...], table: EmbeddingTable) -> Request:
    """Return the request that scores an answer after a prompt.

    Args:
        key: identifies the request.
        prompt: the prompt.
        answer: token ids of the answer.
        table: the model's embedding table.
    """
    ids, rows = prompt
    embeds = torch.cat([rows, table.rows(answer).to(rows.dtype)])
    sampling, adapter = Sampling(max_tokens=1), table.adapter_folder
    return Request(key, ids + answer, embeds, sampling, scored=len(answer), adapter=adapter)


class KeptPrompts:
    """The transformed prompts of begun points, until the control's answers are forced on them.

    Owned by the main thread.
    """

    def __init__(self, pool: WorkerPool, max_rows: int) -> None:
        """Create an empty collection.

        Args:
            pool: builds prompts that were not kept.
            max_rows: the most rows of a prompt that leave room for an answer.
        """
        self._pool, self._max_rows = pool, max_rows
        self._kept: dict[int, dict[int, EmbeddedPrompt]] = {}
        self._entries = 0

    def keep(self, run: int, prompt: int, request: Request) -> None:
        """Keep the prompt of a request, unless it has no embeddings or the limit is reached.

        Args:
            run: index of the run.
            prompt: index of the prompt.
            request: the request for the point's own answer.
        """
        if request.embeds is not None and self._entries + request.embeds.numel() <= MAX_KEPT_ENTRIES:
            self._kept.setdefault(run, {})[prompt] = request.token_ids, request.embeds
            self._entries += request.embeds.numel()

    def drop(self, run: int) -> dict[int, EmbeddedPrompt]:
        """Remove the prompts of a run and return them by index."""
        prompts = self._kept.pop(run, {})
        self._entries -= sum(rows.numel() for _, rows in prompts.values())
        return prompts

    def take(self, run: int, planned: PlannedPoint, needed: Sequence[int]) -> dict[int, EmbeddedPrompt | Unbuilt]:
        """Remove the prompts of a run, and return the needed ones by index. Waits for those that are built again.

        Raises:
            ConfigError: see `WorkerPool.build`.
        """
        prompts: dict[int, EmbeddedPrompt | Unbuilt] = {**self.drop(run)}
        missing = [j for j in needed if j not in prompts]
        corpus, config = planned.corpus, planned.point.config
        building = [
            (chunk, self._pool.build(corpus, config, chunk, frozenset(), self._max_rows))
            for chunk in chunks(missing, planned.prompts, corpus.table.hidden_size)
        ]
        for chunk, future in building:
            try:
                prompts |= {j: _prompt_of(built) for j, built in zip(chunk, future.result(), strict=True)}
            except WorkerLost as error:
                prompts |= dict.fromkeys(chunk, Unbuilt(str(error), None))
        return prompts


def _prompt_of(built: Built | Unbuilt) -> EmbeddedPrompt | Unbuilt:
    if isinstance(built, Unbuilt):
        return built
    assert built.request.embeds is not None
    return built.request.token_ids, built.request.embeds
