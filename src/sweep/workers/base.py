"""What helpers are asked for, and what they answer."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sweep.config import SweepConfig
from sweep.disk.archive import Archive, Archived
from sweep.errors import SweepError
from sweep.outcome import Finished
from sweep.remote import Loss
from sweep.scoring.values import Floats

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sweep.engines.base import Request
    from sweep.inputs.corpus import Corpus
    from sweep.request import Measured


class HelperLost(SweepError):
    """A process has died of what it was asked to do, or cannot be asked."""

    def __init__(self, reason: str, loss: Loss) -> None:
        super().__init__(f"A process that builds requests and scores points {reason}.")
        self.loss = loss


@dataclass(frozen=True, slots=True)
class Built:
    """A request that has been built, and what its perturbation is.

    Attributes:
        request: whose key is the prompt's number; without embeddings, if they were not to be sent.
        seconds: that building took, of which transform_seconds in transforms.
    """

    request: Request
    measured: Measured
    seconds: float
    transform_seconds: float


@dataclass(frozen=True, slots=True)
class Unbuilt:
    """Why a request could not be built, and where."""

    reason: str
    traceback: str | None


@dataclass(frozen=True, slots=True)
class Scored:
    """A point that has been scored and archived.

    Attributes:
        values: as of `PointResult`.
        seconds: that it took.
    """

    archived: Archived
    values: Mapping[str, Floats]
    seconds: float


class Helpers(Protocol):
    """Builds requests and scores points, in any order, while its caller goes on."""

    def prepare(self) -> None:
        """Start what takes its time to start; nothing need be asked yet."""

    def build(
        self, corpus: Corpus, config: SweepConfig, prompts: Sequence[int], unsent: frozenset[int], most: int
    ) -> Future[list[Built | Unbuilt]]:
        """Have requests of one point built.

        Args:
            prompts: which ones, by number.
            unsent: those of them that are only measured.
            most: the most rows that leave room for an answer.

        Raises (when the result is asked for):
            HelperLost: processes have died of it.
            ConfigError: the model's table cannot be read.
        """

    def score(self, corpus: Corpus, finished: Finished, archive: Archive) -> Future[Scored]:
        """Have a point scored and archived.

        Raises (when the result is asked for):
            HelperLost: processes have died of it.
            JournalError: as of `Archive.add`.
        """

    def close(self) -> None:
        """End threads or processes, whatever they are in the middle of.  Closing twice is allowed."""
