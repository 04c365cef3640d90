"""The schema: what a configuration may say, and what each value may be.

Hydra composes `conf/` over the node `schema` in its ConfigStore, which refuses unknown keys and wrong types.  `parse`
then makes the frozen values that the rest of the program reads; their `__post_init__` checks ranges.  `transform` and
`engine` are plain mappings until then, whose `name` decides which registered class reads the rest: so a class that came
in through `plugins` is checked exactly like one of ours.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, cast

from hydra.core.config_store import ConfigStore
from omegaconf import BooleanNode, DictConfig, IntegerNode, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep.checks import require, require_choice
from sweep.engines import ENGINES, EngineConfig
from sweep.errors import ConfigError
from sweep.transforms import TRANSFORMS, Transform

T = TypeVar("T")


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
    """Which prompts: read from the file at `path`, else those listed in `items`."""

    items: list[Any] | None = None
    path: str | None = None
    chat: bool = True
    system: str | None = None
    limit: int | None = None
    id_key: str = "id"
    prompt_key: str = "prompt"
    reference_key: str = "reference"

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
    """How measures are summarised."""

    confidence: float = 0.95

    def __post_init__(self) -> None:
        require(0 < self.confidence < 1, "scoring.confidence", "must be in (0, 1)", self.confidence)


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
    transform: Transform
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


def register() -> None:
    """Put the schema into Hydra's ConfigStore."""
    root: dict[str, Any] = {key: _writable(section) for key, section in SECTIONS.items()}
    root |= {"transform": None, "engine": None, "seed": IntegerNode(0), "verbose": BooleanNode(False)}
    root["plugins"] = ListConfig([], element_type=str)
    ConfigStore.instance().store(name="schema", node=OmegaConf.create(root))


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
        transform=build("transform", plain["transform"], TRANSFORMS),
        engine=build("engine", plain["engine"], ENGINES),
        seed=plain["seed"],
        verbose=plain["verbose"],
        plugins=tuple(plain["plugins"]),
        **{key: _read(section, key, plain[key]) for key, section in SECTIONS.items()},
    )


def without_hydra(composed: DictConfig) -> DictConfig:
    """Return what is ours of a composed configuration."""
    return OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])


def build(key: str, values: Any, registry: Mapping[str, type[T]]) -> T:
    """Make the registered class that `values["name"]` names from the other entries of `values`.

    Raises:
        ConfigError: no or an unknown name, an unknown parameter, or a value of the wrong type or out of range.
    """
    if not isinstance(values, dict) or "name" not in values:
        raise ConfigError(f"{key} must be one of {', '.join(sorted(registry))}; got {values!r}.")
    parameters = dict(values)
    name = parameters.pop("name")
    require_choice(f"{key}.name", name, sorted(registry))
    known = [parameter.name for parameter in fields(registry[name])]  # type: ignore[arg-type]
    for parameter in parameters:
        require_choice(key, parameter, known, what=f"parameter of {name}")
    return _read(registry[name], key, parameters)


def _read(section: type[T], key: str, values: dict[str, Any]) -> T:
    try:
        made: Any = OmegaConf.to_object(OmegaConf.merge(_writable(section), values))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}.{one_line(error)}") from error
    return cast(T, made)


def _writable(section: type) -> DictConfig:
    """Return a class as a node; OmegaConf makes those of frozen dataclasses read-only, which overrides cannot have."""
    node: DictConfig = OmegaConf.structured(section)
    OmegaConf.set_readonly(node, None)
    return node


def _import_plugin(module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"plugins: the module {module!r} cannot be imported: {error}.") from error


def one_line(error: OmegaConfBaseException) -> str:
    """Return an OmegaConf error as `key: what is wrong with it`."""
    message = str(error.msg or error).split("\n")[0]
    return f"{error.full_key}: {message}" if error.full_key else message
