"""What lives in a helping process, and how what it makes travels."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sweep.disk.archive import Archive
from sweep.helpers import jobs
from sweep.helpers.base import Built, Scored, Unbuilt
from sweep.inputs.corpus import Corpus
from sweep.outcome import Finished

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray


class Helper:
    """Does what `Helpers` are asked for, with corpora that it knows by number."""

    def __init__(self, plugins: Sequence[str], threads: int, corpora: dict[int, bytes]) -> None:
        """Import what will be needed."""
        import torch

        for module in plugins:
            importlib.import_module(module)
        self._threads, self._pickled = threads, corpora
        self._corpora: dict[int, Corpus] = {}
        self._config: tuple[bytes, Any] = b"", None
        torch.set_num_threads(1)

    def take(self, number: int, corpus: bytes) -> None:
        """Know a corpus by its number."""
        self._pickled[number] = corpus

    def forget(self, number: int) -> None:
        """Know it no more."""
        self._pickled.pop(number, None)
        self._corpora.pop(number, None)

    def build(self, number: int, config: bytes, prompts: Sequence[int], unsent: frozenset[int], most: int) -> Packed:
        """Do `jobs.build_some`."""
        if self._config[0] != config:
            self._config = config, pickle.loads(config)
        return Packed.of(jobs.build_some(self._corpus(number), self._config[1], prompts, unsent, most))

    def score(self, number: int, finished: Finished, archive: Archive) -> Scored:
        """Do `jobs.score`."""
        import torch

        torch.set_num_threads(self._threads)  # nearest tokens are looked up by large products
        try:
            return jobs.score(self._corpus(number), finished, archive)
        finally:
            torch.set_num_threads(1)

    def left_alone(self) -> float:
        """End at once: what is not answered is not missed."""
        return 0.0

    def _corpus(self, number: int) -> Corpus:
        if number not in self._corpora:
            self._corpora[number] = pickle.loads(self._pickled.pop(number))
        return self._corpora[number]


@dataclass(frozen=True, slots=True)
class Packed:
    """Requests as they travel: their embeddings, whatever their dtype, as one array of bytes.

    Attributes:
        built: without embeddings.
        lengths: how many rows each one's have; None: they are not sent.
    """

    built: list[Built | Unbuilt]
    lengths: list[int | None]
    array: NDArray[Any] | None

    @classmethod
    def of(cls, built: Sequence[Built | Unbuilt]) -> Packed:
        """Pack."""
        import torch

        embeds = [own.request.embeds if isinstance(own, Built) else None for own in built]
        sent = [rows for rows in embeds if rows is not None]
        array = torch.cat(sent).view(torch.uint8).numpy() if sent else None
        lengths = [None if rows is None else len(rows) for rows in embeds]
        return cls([_with(own, None) for own in built], lengths, array)

    def unpack(self, dtype: torch.dtype) -> list[Built | Unbuilt]:
        """Return what was packed."""
        import torch

        if self.array is None:
            return self.built
        rows = torch.from_numpy(self.array).view(dtype)
        pieces = iter(torch.split(rows, [length for length in self.lengths if length is not None]))
        pairs = zip(self.built, self.lengths, strict=True)
        return [own if length is None else _with(own, next(pieces)) for own, length in pairs]


def _with(built: Built | Unbuilt, embeds: torch.Tensor | None) -> Built | Unbuilt:
    return replace(built, request=replace(built.request, embeds=embeds)) if isinstance(built, Built) else built
