"""The contract between the runner and an engine.

An engine is opened once for all points that share an `EngineSpec`, is handed one lazy stream of requests of all those
points, and gives each generation back as it finishes, in any order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of one request are drawn; the fields of `SamplingConfig`, with the request's own seed.

    Attributes:
        logprobs: how many of the most probable tokens are reported at each step, with the one that was drawn; 0: none.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt of one point.

    Attributes:
        key: names the request in the generations that come back; unique within one `generate` call.
        token_ids: the prompt's tokens, which penalties and prompt log-probabilities read.
        embeds: [len(token_ids), hidden_size] in the engine's dtype, finite; None sends the token ids themselves.
        scored: how many of the last tokens are an answer whose log-probabilities are wanted, given what stands before
            each (teacher forcing); such a request's own completions mean nothing.
    """

    key: Hashable
    token_ids: tuple[int, ...]
    embeds: Tensor | None
    sampling: Sampling
    scored: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer.

    Attributes:
        logprobs: at each step, the natural log-probabilities of the most probable tokens and of the one drawn, by token
            id, before temperature and penalties; empty unless they were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[dict[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Generation:
    """The engine's answer to a request: `sampling.n` completions, in the order of their seeds.

    Attributes:
        scored: the natural log-probability of each of the request's `scored` tokens.
        cached_tokens: how many of the prompt's tokens were found in the engine's prefix cache.
    """

    key: Hashable
    completions: tuple[Completion, ...]
    scored: tuple[float, ...] = ()
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """What becomes of a request that cannot be answered, though the others can.

    Attributes:
        reason: what was wrong with it, to be read after its name and a colon.
    """

    key: Hashable
    reason: str


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What an engine needs to know of the model: its files, and the dtype in which to run it."""

    folder: Path
    dtype: str
    trust_remote_code: bool


@dataclass(frozen=True, slots=True)
class EngineConfig(ABC):
    """How to run an engine; one subclass for each kind, whose fields are its keys in `conf/engine/`.

    Attributes:
        max_model_len: tokens of prompt and answer together; None: what the sweep needs, within the model's context.
    """

    name: ClassVar[str]
    max_model_len: int | None = None

    @abstractmethod
    def open(self, model: ModelFiles, max_model_len: int, cache_dir: Path) -> Engine:
        """Start the engine for sequences of up to `max_model_len` tokens.  Caches go under `cache_dir`.

        To be called in a thread that outlives the engine, whose processes may be tied to it.

        Raises:
            ConfigError: it is not there, or not what the configuration says.
            EngineError: it did not start; EngineOutOfMemory: for lack of memory.
        """

    def check(self, sampling: Sampling) -> None:  # noqa: B027 - most engines can do all of it
        """Refuse, before anything starts, what this engine cannot do.

        Raises:
            ConfigError: it cannot draw tokens like that.
        """

    def reach(self) -> None:  # noqa: B027 - most engines are where they are opened
        """Make sure, before anything is written, that an engine is there that somebody else runs.

        Raises:
            ConfigError: it is not.
        """

    def warm_up(self, cache_dir: Path) -> None:  # noqa: B027 - most take no time to speak of
        """Import what `open` would take long to import; what is wrong with it, `open` says."""

    def tags(self) -> dict[str, str]:
        """Return what is to be known of where points are answered, as tags."""
        return {}

    def fresh(self) -> EngineConfig:
        """Return the configuration for a start after a death, in a process that has seen nothing of it."""
        return self

    def smaller(self) -> EngineConfig | None:
        """Return a configuration that works on half as many requests at a time; None: that cannot be."""
        return None


class Engine(ABC):
    """A started engine."""

    version: str  # the library's name and version, as it is to be recorded

    @abstractmethod
    def generate(self, requests: Iterable[Request]) -> Iterator[Generation | Failure]:
        """Answer requests, drawing them a bounded window ahead of what is in flight.

        An iterator that has run out is asked again as long as requests are in flight: answers may lead to requests.

        A request that is itself at fault, such as one with embeddings of the wrong shape, fails alone.  What drawing a
        request raises passes through unchanged; whatever ends the stream early, except for its death, the engine
        forgets the requests in flight and stays usable.

        Raises:
            EngineDied: the engine died; it can only be closed.
        """

    def memory_gib(self) -> float | None:
        """Return the GPU memory that the engine holds; None: there is no GPU, or no knowing."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Release memory and end processes.  Closing twice is allowed."""
