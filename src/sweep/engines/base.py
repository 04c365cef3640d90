"""Engine interface: configuration, requests and generations.

An engine is opened once for all points that share an `EngineSpec`. It draws the requests of all those points from one
lazy stream and yields each generation as it finishes, in any order.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sweep.core.provenance import distributions_of, engine_version
from sweep.core.section import Section
from sweep.engines.settings import Effect
from sweep.errors import ConfigError
from sweep.inputs.model_files import ModelFiles as ModelFiles  # part of the contract
from sweep.util.compact import compact

if TYPE_CHECKING:
    from torch import Tensor


@compact
@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters of one request: the fields of `SamplingConfig` with the seed of the request.

    Attributes:
        logprobs: number of most probable tokens whose log-probabilities are reported at each step, in addition to the
            sampled token. 0: no log-probabilities.
        args: further parameters as JSON, see `sampling_args`; empty if there are none.
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
    args: str = ""


@compact
@dataclass(frozen=True, slots=True)
class Request:
    """One prompt of one point.

    Attributes:
        key: identifies the request in the generations; unique within one `generate` call.
        token_ids: tokens of the prompt. Penalties and prompt log-probabilities read them.
        embeds: (len(token_ids), hidden_size) in the engine's dtype, finite. None: send the token ids instead.
        scored: number of tokens at the end of the prompt that are a forced answer (teacher forcing). The engine reports
            the log-probability of each, given the tokens before it. The completions of such a request are meaningless.
        adapter: folder of the LoRA adapter with which to answer; None: the model alone.
        finite: whether all entries of `embeds` are known to be finite, so that the engine can skip the check. For a
            large model the check takes a millisecond per request on the thread that feeds the engine.
    """

    key: Hashable
    token_ids: tuple[int, ...]
    embeds: Tensor | None
    sampling: Sampling
    scored: int = 0
    finite: bool = False
    adapter: str | None = None


@compact
@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer.

    Attributes:
        logprobs: natural log-probabilities by token id at each step, before temperature and penalties: the most
            probable tokens and the sampled one. Empty unless requested.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[dict[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Generation:
    """Result of a request: `sampling.n` completions, in the order of their seeds.

    Attributes:
        scored: natural log-probability of each of the request's `scored` tokens.
        cached_tokens: number of prompt tokens found in the engine's prefix cache.
    """

    key: Hashable
    completions: tuple[Completion, ...]
    scored: tuple[float, ...] = ()
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """Result of a request that failed without affecting other requests.

    Attributes:
        reason: the cause, worded to follow the name of the request and a colon.
    """

    key: Hashable
    reason: str


@dataclass(frozen=True, slots=True)
class Origin:
    """Provenance of generations. It is recorded with them and compared before generations are combined.

    Attributes:
        engine: name and version of the engine's software.
        served: the model as a server describes it; empty if the model's files are read on this machine.
    """

    engine: str
    served: str = ""

    def __str__(self) -> str:
        return f"{self.engine} with {self.served}" if self.served else self.engine


@dataclass(frozen=True, slots=True)
class EngineConfig(Section, ABC):
    """Base class of engine configurations; the fields of a subclass are its keys in `conf/engine/`.

    Attributes:
        effects: for each field, whether it changes generations, and why.
        variables: the same for environment variables that the engine's libraries read.
        packages: distributions to read the engine's version from; the first installed one counts. None: the
            distributions that contain the module of the configuration class.
        not_here: names of keys that only other engines have, each with an explanation that continues its name.
        has_adapters: whether requests may name LoRA adapters.
        is_remote: whether the engine is run by someone else, so that only the engine itself knows its version.
        max_model_len: Longest sequence of prompt and answer, in tokens; 1 or more, null means what the sweep needs.
    """

    name: ClassVar[str]
    effects: ClassVar[Mapping[str, Effect]]
    variables: ClassVar[Mapping[str, Effect]] = {}
    packages: ClassVar[tuple[str, ...] | None] = None
    not_here: ClassVar[Mapping[str, str]] = {"args": "passes arguments to vLLM in this process. Use engine=vllm"}
    has_adapters: ClassVar[bool] = False
    is_remote: ClassVar[bool] = False
    max_model_len: int | None = None

    @abstractmethod
    def open(self, model: ModelFiles, max_model_len: int, cache_dir: Path) -> Engine:
        """Start the engine for sequences of up to `max_model_len` tokens, with caches in `cache_dir`.

        Call it in a thread that outlives the engine: the engine's processes may end with that thread.

        Raises:
            ConfigError: the engine is unavailable or differs from its configuration.
            EngineError: the engine did not start.
            EngineOutOfMemory: there is not enough memory to start it.
        """

    @classmethod
    def installed(cls) -> str:
        """Return the name and version of the engine's software, such as `vllm 0.32.0`, without importing it.

        A resumed sweep compares it with the recorded version. If the engine does not belong to a distribution, this
        is the name alone. In that case, override the method, or the comparison waits until the engine is open.
        """
        if cls.packages is None:
            return engine_version(cls.name, distributions_of(cls.__module__))
        return engine_version(cls.name, cls.packages)

    def check(self, sampling: Sampling) -> None:
        """Reject sampling parameters that the engine does not support, before anything starts.

        Raises:
            ConfigError: the engine does not support them.
        """

    def check_args(self, args: Mapping[str, Any]) -> None:
        """Reject further sampling parameters (`sampling.args`) that the engine does not have, before anything starts.

        Raises:
            ConfigError: names the first such parameter.
        """
        for name in args:
            raise ConfigError(f"sampling.args.{name} is not available with engine={self.name}. Use engine=vllm.")

    def context(self, trained: int) -> int:
        """Return the longest sequence that the model allows, for the number of tokens that it was trained for."""
        return trained

    def check_model(self, model: ModelFiles, cache_dir: Path) -> None:
        """Reject a model if a package that the engine needs for it is missing, before anything starts.

        Raises:
            ConfigError: the engine cannot run this model on this machine.
        """

    def contact(self) -> Origin | None:
        """Check that a remote engine is available, before anything is written.

        Returns:
            The origin that the engine reports. None: the engine is not remote.

        Raises:
            ConfigError: the engine is unavailable.
        """
        return None

    def warm_up(self, cache_dir: Path) -> None:
        """Import slow libraries before `open` needs them; `open` reports their errors."""

    def tags(self) -> dict[str, str]:
        """Return tags that describe where the engine runs."""
        return {}

    def generation_settings(self) -> dict[str, Any]:
        """Return the settings that change generations: fields by name, set environment variables as `$NAME`.

        A field without a declaration in `effects` is included.
        """
        names = [f.name for f in fields(self) if f.name not in self.effects or self.effects[f.name].changes_generations]
        variables = [
            name for name, effect in self.variables.items() if effect.changes_generations and name in os.environ
        ]
        return {name: getattr(self, name) for name in names} | {f"${name}": os.environ[name] for name in variables}

    def for_restart(self) -> EngineConfig:
        """Return the configuration for a restart after a crash, with the engine in a new process."""
        return self

    def smaller(self) -> EngineConfig | None:
        """Return a configuration with half as many concurrent requests; None if there cannot be fewer."""
        return None


class Engine(ABC):
    """A started engine. Owned by the thread that opened it.

    Attributes:
        version: name and version of the engine's library, recorded with the generations.
    """

    version: str

    @property
    def origin(self) -> Origin:
        """The provenance of the engine's generations."""
        return Origin(self.version)

    @abstractmethod
    def generate(self, requests: Iterable[Request]) -> Iterator[Generation | Failure]:
        """Answer requests and yield each result as it finishes.

        Requests are drawn lazily, at most a bounded window ahead of the results. An exhausted iterator is asked again
        while requests are in flight, because results may lead to new requests.

        An invalid request, such as one with embeddings of the wrong shape, fails alone. Exceptions of the request
        iterator propagate unchanged. If the stream ends early, the engine discards the requests in flight and stays
        usable, unless it crashed.

        Raises:
            EngineDied: the engine crashed. The only call that remains valid is `close`.
        """

    def memory_gib(self) -> float | None:
        """Return the GPU memory that the engine holds, in GiB; None if there is no GPU or the value is unknown."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Release memory and end processes. Closing twice is allowed."""
