"""The schema: what a configuration may say, and what each value may be.

Frozen dataclasses, whose `__post_init__` checks ranges; `parsing` makes them of what Hydra has composed.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from sweep.checks import require, require_choice
from sweep.engines import EngineConfig
from sweep.errors import TooManyFailures
from sweep.objective import Objective
from sweep.transforms import Pipeline


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which model.  `id` is a hub id, a local folder, or `demo` for the embedded one."""

    id: str = "demo"
    revision: str | None = None
    dtype: str = "auto"  # auto: the checkpoint's
    trust_remote_code: bool = False
    embedder: str = "safetensors"

    def __post_init__(self) -> None:
        require(bool(self.id.strip()), "model.id", "must name a hub id or a folder", self.id)
        require_choice("model.dtype", self.dtype, ("auto", "float32", "bfloat16", "float16"))
        require_choice("model.embedder", self.embedder, ("safetensors", "transformers"))


@dataclass(frozen=True, slots=True)
class PromptsConfig:
    """Which prompts: read from the file at `path`, else those listed in `items`.

    `placeholders` are the names whose `{name}` stays in the text as a unit of its own, for a transform to replace.
    """

    items: list[Any] | None = None
    path: str | None = None
    chat: bool = True
    system: str | None = None
    limit: int | None = None
    id_key: str = "id"
    prompt_key: str = "prompt"
    reference_key: str = "reference"
    placeholders: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require(self.items is not None or self.path is not None, "prompts", "needs items or a path", None)
        require(self.limit is None or self.limit >= 1, "prompts.limit", "must be at least 1", self.limit)


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How tokens are drawn.  Temperature 0 is greedy."""

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    repetition_penalty: float = 1.0
    seed: int = 0
    n: int = 1
    stop: list[str] = field(default_factory=list)
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        require(self.max_tokens >= 1, "sampling.max_tokens", "must be at least 1", self.max_tokens)
        finite = math.isfinite(self.temperature)
        require(finite and self.temperature >= 0, "sampling.temperature", "must be 0 or more", self.temperature)
        require(0 < self.top_p <= 1, "sampling.top_p", "must be in (0, 1]", self.top_p)
        require(self.top_k >= 0, "sampling.top_k", "must be 0 (all) or more", self.top_k)
        penalty = self.repetition_penalty
        require(0 < penalty < math.inf, "sampling.repetition_penalty", "must be above 0", penalty)
        require(self.n >= 1, "sampling.n", "must be at least 1", self.n)
        alike = self.temperature > 0 or self.n == 1
        require(alike, "sampling.n", "above 1 needs sampling.temperature above 0: greedy samples are all alike", self.n)
        require(all(self.stop), "sampling.stop", "must not hold an empty string", self.stop)


@dataclass(frozen=True, slots=True)
class ScoringConfig:
    """How measures are taken and summarised.

    Attributes:
        confidence: of the intervals.
        nearest_rows: embedding rows of a point whose nearest tokens are looked up; 0: none.
        noise_floor: run each control a second time, in other company of the batch.
        logprobs: how many of the most probable tokens are reported at each step, to compare distributions; 0: none.
        teacher_forced: ask how probable the control's answer is under each point's prompt, and the other way round.
        quality: measures of answers against references; names of ours, and functions of the user's own, as
            `module.function`, from a generation and its references to a number.
    """

    confidence: float = 0.95
    nearest_rows: int = 256
    noise_floor: bool = True
    logprobs: int = 0
    teacher_forced: bool = False
    quality: list[str] = field(
        default_factory=lambda: ["exact_match", "normalised_exact_match", "contains", "token_f1"]
    )

    def __post_init__(self) -> None:
        require(0 < self.confidence < 1, "scoring.confidence", "must be in (0, 1)", self.confidence)
        require(0 <= self.logprobs <= 20, "scoring.logprobs", "must be in [0, 20]", self.logprobs)
        require(self.nearest_rows >= 0, "scoring.nearest_rows", "must be 0 or more", self.nearest_rows)

    @property
    def modules(self) -> list[str]:
        """The modules of the user's own functions among the measures."""
        own = (name.rpartition(":" if ":" in name else ".") for name in self.quality)
        return [module for module, _, function in own if module and function]


@dataclass(frozen=True, slots=True)
class TrackingConfig:
    """Where MLflow keeps the runs.  Without a URI: an SQLite file in `sweep.dir`.

    Attributes:
        traces: log each generation as a trace too, with its scores, for MLflow's comparison row by row.
        patience: seconds to wait at the end for a tracker that does not answer.
        in_process: publish from this process, which takes less memory and more of the engine's time.
    """

    uri: str | None = None
    experiment: str = "sweep"
    traces: bool = False
    patience: float = 60.0
    in_process: bool = False

    def __post_init__(self) -> None:
        require(0 <= self.patience < math.inf, "tracking.patience", "must be 0 or more seconds", self.patience)
        require(bool(self.experiment.strip()), "tracking.experiment", "must not be empty", self.experiment)


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """The invocation: where it writes, what it is called, and what it does about what is there already or fails.

    Attributes:
        resume: `true` goes on with what the same command has begun; `false` begins anew; `force` goes on although
            another version of the engine began.
        on_error: `stop` ends the sweep with the first point that fails.
        max_failures: points that may fail before the sweep ends; None: all.
        objective: what an optimising sweeper looks for; see `sweep.objective`.
        helpers: processes that build requests and score points beside the engine's; 0: threads of this one, which takes
            less memory and more of the engine's time; None: one for every four cores, up to four, and one on two cores.
    """

    dir: str = "outputs"
    name: str | None = None
    dry_run: bool = False
    resume: str = "true"
    on_error: str = "continue"
    max_failures: int | None = None
    objective: str | None = None
    helpers: int | None = None

    def __post_init__(self) -> None:
        require(self.helpers is None or 0 <= self.helpers <= 64, "sweep.helpers", "must be in [0, 64]", self.helpers)
        require(bool(self.dir.strip()), "sweep.dir", "must name a folder", self.dir)
        require_choice("sweep.resume", self.resume.lower(), ("true", "false", "force"))
        require_choice("sweep.on_error", self.on_error, ("continue", "stop"))
        most = self.max_failures
        require(most is None or most >= 0, "sweep.max_failures", "must be 0 or more", most)
        if self.objective is not None:
            Objective.parse(self.objective)

    def bear(self, failed: int) -> None:
        """Raise `TooManyFailures` if more points have failed than `on_error` and `max_failures` allow."""
        if self.on_error == "stop" and failed:
            raise TooManyFailures(f"{failed} points failed, more than sweep.on_error=stop allows.")
        if self.max_failures is not None and failed > self.max_failures:
            raise TooManyFailures(f"{failed} points failed, more than sweep.max_failures allows.")

    @property
    def root(self) -> Path:
        """The absolute folder under which everything lies that a run writes."""
        return Path(self.dir).expanduser().resolve()


@dataclass(frozen=True, slots=True)
class SweepConfig:
    """One point's whole configuration, or the base that all points of a sweep share."""

    model: ModelConfig
    prompts: PromptsConfig
    transform: Pipeline
    sampling: SamplingConfig
    engine: EngineConfig
    scoring: ScoringConfig
    tracking: TrackingConfig
    sweep: SweepSettings
    seed: int = 0
    verbose: bool = False
    plugins: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Return the configuration as plain values, of which `parsing` makes it again."""
        return {field.name: self.plain_section(field.name) for field in fields(self)}

    def plain_section(self, key: str) -> Any:
        """Return one section, or one value of the top level, as plain values."""
        value = getattr(self, key)
        match key:
            case "transform":
                return self.transform.config()
            case "engine":
                return {"name": self.engine.name, **asdict(self.engine)}
            case "plugins":
                return list(self.plugins)
        return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "prompts": PromptsConfig,
    "sampling": SamplingConfig,
    "scoring": ScoringConfig,
    "tracking": TrackingConfig,
    "sweep": SweepSettings,
}
