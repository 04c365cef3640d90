"""The schema: what a configuration may say, and what each value may be.

Hydra composes `conf/` over the node `schema` in its ConfigStore, which refuses unknown keys and wrong types.  `parse`
then makes the frozen values that the rest of the program reads; their `__post_init__` checks ranges.  `transform` and
`engine` are plain mappings until then, whose `name` decides which registered class reads the rest: so a class that came
in through `plugins` is checked exactly like one of ours.  The options of `transform=` are made of the classes
themselves, so that a default or a parameter stands in one place.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import BooleanNode, DictConfig, IntegerNode, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep.building import COMPOSE, build, build_pipeline, one_line, read, writable
from sweep.checks import require, require_choice
from sweep.engines import ENGINES, EngineConfig
from sweep.errors import ConfigError
from sweep.transforms import TRANSFORMS, Pipeline


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


@dataclass(frozen=True, slots=True)
class TrackingConfig:
    """Where MLflow keeps the runs.  Without a URI: an SQLite file in `sweep.dir`."""

    uri: str | None = None
    experiment: str = "sweep"

    def __post_init__(self) -> None:
        require(bool(self.experiment.strip()), "tracking.experiment", "must not be empty", self.experiment)


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """The invocation: where it writes and what it is called."""

    dir: str = "outputs"
    name: str | None = None
    dry_run: bool = False

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


SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "prompts": PromptsConfig,
    "sampling": SamplingConfig,
    "scoring": ScoringConfig,
    "tracking": TrackingConfig,
    "sweep": SweepSettings,
}


def register(plugins: Sequence[str] = ()) -> None:
    """Put the schema and an option for each registered transform into Hydra's ConfigStore.

    Args:
        plugins: modules that may register transforms, to be imported first.

    Raises:
        ConfigError: one of them cannot be imported.
    """
    for module in plugins:
        _import_plugin(module)
    store = ConfigStore.instance()
    for name, transform in TRANSFORMS.items():
        values = OmegaConf.to_container(writable(transform))
        assert isinstance(values, dict)
        node = {"name": name, **values, "span": transform.default_span, "control": None}
        store.store(group="transform", name=name, node=node)
    store.store(group="transform", name=COMPOSE, node={"name": COMPOSE})
    root: dict[str, Any] = {key: writable(section) for key, section in SECTIONS.items()}
    root |= {"transform": None, "engine": None, "seed": IntegerNode(0), "verbose": BooleanNode(False)}
    root["plugins"] = ListConfig([], element_type=str)
    store.store(name="schema", node=OmegaConf.create(root))


def parse(composed: DictConfig) -> SweepConfig:
    """Check a composed configuration and return it as frozen values.

    Raises:
        ConfigError: a value of the wrong type or out of range, an unknown transform, engine, parameter or plugin.
    """
    try:
        plain: Any = OmegaConf.to_container(without_hydra(composed), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(one_line(error)) from error
    for module in plain["plugins"]:
        _import_plugin(module)
    return SweepConfig(
        transform=build_pipeline(plain["transform"]),
        engine=build("engine", plain["engine"], ENGINES),
        seed=plain["seed"],
        verbose=plain["verbose"],
        plugins=tuple(plain["plugins"]),
        **{key: read(section, key, plain[key]) for key, section in SECTIONS.items()},
    )


def without_hydra(composed: DictConfig) -> DictConfig:
    """Return what is ours of a composed configuration."""
    return OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])


def _import_plugin(module: str) -> None:
    if (here := os.getcwd()) not in sys.path:  # where `python -m sweep` looks, and the command `sweep` would not
        sys.path.append(here)
    try:
        importlib.import_module(module)
    except SyntaxError as error:
        raise ConfigError(f"plugins: {error.filename}:{error.lineno}: {error.msg}.") from error
    except Exception as error:  # it is the user's, and may raise anything
        reason = str(error).split("\n")[0]
        what = f"{type(error).__name__}: {reason}"
        raise ConfigError(f"plugins: the module {module!r} cannot be imported: {what}") from error
