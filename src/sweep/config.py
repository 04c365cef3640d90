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
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import BooleanNode, DictConfig, IntegerNode, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep.building import COMPOSE, build, build_pipeline, one_line, read, writable
from sweep.checks import did_you_mean, require, require_choice
from sweep.engines import ENGINES, EngineConfig
from sweep.errors import ConfigError
from sweep.signals import Interrupted
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
    """Where MLflow keeps the runs.  Without a URI: an SQLite file in `sweep.dir`.

    Attributes:
        traces: log each generation as a trace too, with its scores, for MLflow's comparison row by row.
        patience: seconds to wait at the end for a tracker that does not answer.
    """

    uri: str | None = None
    experiment: str = "sweep"
    traces: bool = False
    patience: float = 60.0

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
    """

    dir: str = "outputs"
    name: str | None = None
    dry_run: bool = False
    resume: str = "true"
    on_error: str = "continue"
    max_failures: int | None = None

    def __post_init__(self) -> None:
        require(bool(self.dir.strip()), "sweep.dir", "must name a folder", self.dir)
        require_choice("sweep.resume", self.resume.lower(), ("true", "false", "force"))
        require_choice("sweep.on_error", self.on_error, ("continue", "stop"))
        most = self.max_failures
        require(most is None or most >= 0, "sweep.max_failures", "must be 0 or more", most)

    @property
    def failures_allowed(self) -> float:
        """How many points may fail before the sweep ends."""
        if self.on_error == "stop":
            return 0
        return math.inf if self.max_failures is None else self.max_failures

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


IDENTITY = ("model", "prompts", "transform", "sampling", "seed")  # what decides what is generated
_UNSTABLE = re.compile(r"\$\{(now|hydra|oc\.env):")


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
        ConfigError: a value of the wrong type or out of range, an unknown transform, engine, parameter or plugin; a
            value that would be another one the next time, where it decides what is generated.
    """
    ours = without_hydra(composed)
    _require_stable(OmegaConf.to_container(ours))
    try:
        plain: Any = OmegaConf.to_container(ours, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(one_line(error)) from error
    return Parser().parse(plain)


class Parser:
    """Makes configurations of plain values; sections that it has seen before are not made again."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], tuple[Any, Any]] = {}
        self._equal: dict[tuple[str, str], Any] = {}

    def parse(self, plain: dict[str, Any]) -> SweepConfig:
        """Return a configuration of plain values, which must not be changed afterwards; errors as of `parse`."""
        known = [field.name for field in fields(SweepConfig)]
        for key in plain.keys() - known:  # Hydra lets `+key=value` add whatever it likes
            raise ConfigError(f"{key}: there is no such key. {did_you_mean(key, known)}")
        plugins = plain["plugins"]
        require(isinstance(plugins, list), "plugins", "must be a list of modules' names", str(plugins))
        for module in plugins:
            _import_plugin(module)
        return SweepConfig(
            transform=self._make("transform", plain, build_pipeline),
            engine=self._make("engine", plain, lambda values: build("engine", values, ENGINES)),
            seed=_whole("seed", plain["seed"]),
            verbose=_switch("verbose", plain["verbose"]),
            plugins=tuple(plugins),
            **{key: self._make(key, plain, partial(read, section, key)) for key, section in SECTIONS.items()},
        )

    def _make(self, key: str, plain: dict[str, Any], make: Callable[[Any], Any]) -> Any:
        values = plain[key]
        known = self._known.get((key, id(values)))
        if known is not None and known[0] is values:
            return known[1]
        text = repr(values)
        if (key, text) not in self._equal:
            self._equal[key, text] = make(values)
        # The values are kept too, lest another object get their id.
        self._known[key, id(values)] = (values, self._equal[key, text])
        return self._equal[key, text]


def _switch(key: str, value: Any) -> bool:
    require(isinstance(value, bool), key, "must be true or false", value)
    return bool(value)


def _whole(key: str, value: Any) -> int:
    require(isinstance(value, int) and not isinstance(value, bool), key, "must be a whole number", value)
    return int(value)


def _require_stable(plain: Any, key: str = "") -> None:
    """Refuse interpolations of what is another thing at another time or place."""
    if isinstance(plain, dict):
        for name, value in plain.items():
            if key or name in IDENTITY:
                _require_stable(value, f"{key}.{name}" if key else str(name))
    elif isinstance(plain, list):
        for value in plain:
            _require_stable(value, key)
    elif isinstance(plain, str) and (found := _UNSTABLE.search(plain)):
        rule = f"must say the same whenever the command is repeated, which {found[0]}…}} does not"
        require(False, key, rule, None)


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
    except Interrupted:
        raise
    except (Exception, SystemExit) as error:  # it is the user's, and may raise anything
        reason = str(error).split("\n")[0]
        what = f"{type(error).__name__}: {reason}"
        raise ConfigError(f"plugins: the module {module!r} cannot be imported: {what}") from error
