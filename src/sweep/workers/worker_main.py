"""Pool process: the object that runs in it, and the format in which it returns requests."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from sweep.inputs.embedding_table import EmbeddingTable
from sweep.inputs.prompt_set import PromptSet
from sweep.planning.results import Finished
from sweep.storage.archive import Archive
from sweep.util.plugins import import_plugin
from sweep.workers import tasks
from sweep.workers.base import Built, Scored, Unbuilt

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray


class PoolWorker:
    """Executes tasks of a `ProcessPool` in a pool process. Prompt sets are identified by number.

    Owned by the main thread of the pool process.
    """

    def __init__(self, plugins: Sequence[str], threads: int, on_gpu: bool, corpora: dict[int, bytes]) -> None:
        """Import the plugins and PyTorch.

        Args:
            plugins: modules that register transforms.
            threads: PyTorch threads for scoring.
            on_gpu: whether scoring may use a GPU.
            corpora: pickled prompt sets by number.
        """
        import torch

        for module in plugins:
            import_plugin(module)
        self._threads, self._on_gpu, self._pickled = threads, on_gpu, corpora
        self._corpora: dict[int, PromptSet] = {}
        self._tables: WeakValueDictionary[bytes, EmbeddingTable] = WeakValueDictionary()
        self._config: tuple[bytes, Any] = b"", None
        torch.set_num_threads(1)

    def add_corpus(self, number: int, corpus: bytes) -> None:
        """Store a pickled prompt set under its number."""
        self._pickled[number] = corpus

    def remove_corpus(self, number: int) -> None:
        """Remove a prompt set, if it exists."""
        self._pickled.pop(number, None)
        self._corpora.pop(number, None)

    def build(
        self, number: int, config: bytes, prompts: Sequence[int], measure_only: frozenset[int], max_rows: int
    ) -> Packed:
        """Call `tasks.build_requests` with the prompt set of that number."""
        if self._config[0] != config:
            self._config = config, pickle.loads(config)
        return Packed.of(tasks.build_requests(self._corpus(number), self._config[1], prompts, measure_only, max_rows))

    def score(self, number: int, finished: Finished, archive: Archive) -> Scored:
        """Call `tasks.score` with the prompt set of that number."""
        import torch

        torch.set_num_threads(self._threads)  # the search for nearest tokens uses large matrix products
        try:
            return tasks.score(self._corpus(number), finished, archive, on_gpu=self._on_gpu)
        finally:
            torch.set_num_threads(1)

    def on_caller_gone(self) -> float:
        """End immediately: pending results are not needed."""
        return 0.0

    def _corpus(self, number: int) -> PromptSet:
        if number not in self._corpora:
            corpus = self._corpora[number] = pickle.loads(self._pickled.pop(number))
            # Prompt sets of one model share the embedding table and the data derived from it, also on a GPU.
            table_key = pickle.dumps(corpus.table.__reduce__()[1])
            corpus.table = self._tables.setdefault(table_key, corpus.table)
        return self._corpora[number]


@dataclass(frozen=True, slots=True)
class Packed:
    """Requests in the format that is sent between processes: all embeddings in one array of bytes.

    Attributes:
        built: the requests without embeddings.
        lengths: number of embedding rows of each request; None: without embeddings.
        array: (sum of lengths, hidden * bytes per entry), uint8: the concatenated rows. None if there are none.
    """

    built: list[Built | Unbuilt]
    lengths: list[int | None]
    array: NDArray[Any] | None

    @classmethod
    def of(cls, built: Sequence[Built | Unbuilt]) -> Packed:
        """Pack requests."""
        import torch

        embeds = [result.request.embeds if isinstance(result, Built) else None for result in built]
        present = [rows for rows in embeds if rows is not None]
        array = torch.cat(present).view(torch.uint8).numpy() if present else None
        lengths = [None if rows is None else len(rows) for rows in embeds]
        return cls([_with_embeds(result, None) for result in built], lengths, array)

    def unpack(self, dtype: torch.dtype) -> list[Built | Unbuilt]:
        """Return the requests, with embeddings of a dtype."""
        import torch

        if self.array is None:
            return self.built
        rows = torch.from_numpy(self.array).view(dtype)
        pieces = iter(torch.split(rows, [length for length in self.lengths if length is not None]))
        pairs = zip(self.built, self.lengths, strict=True)
        return [result if length is None else _with_embeds(result, next(pieces)) for result, length in pairs]


def _with_embeds(built: Built | Unbuilt, embeds: torch.Tensor | None) -> Built | Unbuilt:
    return replace(built, request=replace(built.request, embeds=embeds)) if isinstance(built, Built) else built
