"""Worker pool interface and its results."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sweep.config.schema import SweepConfig
from sweep.core.values import Floats
from sweep.errors import SweepError
from sweep.planning.results import Finished
from sweep.processes.child import CallLoss
from sweep.storage.archive import Archive, Archived
from sweep.util.compact import compact

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sweep.engines.base import Request
    from sweep.inputs.prompt_set import PromptSet
    from sweep.planning.request_builder import Measured


class WorkerLost(SweepError):
    """A pool process died during a task, or could not be given the task.

    Attributes:
        loss: state of the task when it was lost.
    """

    def __init__(self, reason: str, loss: CallLoss) -> None:
        super().__init__(f"A pool process, which builds requests and scores points, {reason}.")
        self.loss = loss


@compact
@dataclass(frozen=True, slots=True)
class Built:
    """A request that was built, with its perturbation measures.

    Attributes:
        request: its key is the number of the prompt. It has no embeddings if they were only measured.
        measured: perturbation of the embeddings.
        seconds: time to build the request.
        transform_seconds: the part of `seconds` spent in transforms.
    """

    request: Request
    measured: Measured
    seconds: float
    transform_seconds: float


@dataclass(frozen=True, slots=True)
class Unbuilt:
    """A request that could not be built: the reason and the traceback."""

    reason: str
    traceback: str | None


@dataclass(frozen=True, slots=True)
class Scored:
    """A point that was scored and archived.

    Attributes:
        values: see `PointResult`.
        seconds: time to score and archive the point.
    """

    archived: Archived
    values: Mapping[str, Floats]
    seconds: float


class WorkerPool(Protocol):
    """Builds requests and scores points in the background, in any order.

    `build` and `score` are called on the main thread, which also feeds the engine.
    """

    def prepare(self) -> None:
        """Start the processes or threads. Optional: the first task starts them too."""

    def build(
        self,
        corpus: PromptSet,
        config: SweepConfig,
        prompts: Sequence[int],
        measure_only: frozenset[int],
        max_rows: int,
    ) -> Future[list[Built | Unbuilt]]:
        """Build requests of one point.

        Args:
            corpus: the prompts and the model's embedding table.
            config: the point's configuration.
            prompts: numbers of the prompts.
            measure_only: numbers of the prompts whose embeddings are measured but not returned.
            max_rows: largest number of rows that leaves room for an answer.

        Raises (by the future):
            WorkerLost: pool processes died during the task.
            ConfigError: the model's embedding table cannot be read.
        """

    def score(self, corpus: PromptSet, finished: Finished, archive: Archive) -> Future[Scored]:
        """Score a point and archive it.

        Raises (by the future):
            WorkerLost: pool processes died during the task.
            JournalError: see `Archive.add`.
        """

    def close(self) -> None:
        """End threads or processes without waiting for their tasks. Closing twice is allowed."""
