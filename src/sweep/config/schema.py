"""Configuration schema: frozen dataclasses that define the keys and check the values.

`__post_init__` checks ranges. `sweep.config.loader` makes the dataclasses from a composed configuration. `--help` shows
the entry of each key below `Attributes:` (see `sweep.config.help_text`), so an entry states the allowed values.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from sweep.config.objective import Objective
from sweep.config.report_config import ReportConfig
from sweep.core.section import Section
from sweep.engines import EngineConfig
from sweep.errors import TooManyFailures
from sweep.inputs.config import ModelConfig, PromptsConfig
from sweep.scoring.registry import shown_in
from sweep.transforms import Pipeline
from sweep.util.validators import require, require_choice


@dataclass(frozen=True, slots=True)
class SamplingConfig(Section):
    """Configuration section `sampling`.

    Attributes:
        max_tokens: Longest answer in tokens; 1 or more.
        temperature: Sampling temperature; 0 (greedy) or more.
        top_p: Sample from the most probable tokens up to this total probability; in (0, 1].
        top_k: Sample from this many of the most probable tokens; 0 (all) or more.
        repetition_penalty: Penalty on repeated tokens, as in vLLM; above 0, and 1 has no effect.
        seed: Seed of the samples; the same random numbers are used at every point.
        n: Answers for each prompt; 1 or more, and above 1 only with temperature above 0.
        stop: Texts that end an answer; none of them empty.
        ignore_eos: Continue after the end-of-sequence token, up to max_tokens.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
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
        differ = self.temperature > 0 or self.n == 1
        require(
            differ, "sampling.n", "above 1 needs sampling.temperature above 0: greedy answers are all equal", self.n
        )
        require(all(self.stop), "sampling.stop", "must not contain an empty string", self.stop)


def _metric(name: str) -> str:
    """Return the measure's name for an entry of `scoring.quality`: `exact_match`, or a user's `module.function`."""
    return "quality/" + re.split(r"[.:]", name.removeprefix("quality/"))[-1]


@dataclass(frozen=True, slots=True)
class ScoringConfig(Section):
    """Configuration section `scoring`.

    Attributes:
        confidence: Confidence level of the intervals; in (0, 1).
        nearest_rows: Embedding rows per point whose nearest tokens are looked up, spread over its prompts; 0 (none) or
            more.
        noise_floor: Run each control twice, in differently composed batches, to measure the noise floor.
        logprobs: Compare next-token distributions by this many of the most probable tokens; 0 (do not) to 20.
        teacher_forced: Score the control's answer under the transformed prompt, and the transformed answer under the
            clean prompt.
        quality: Measures against references: exact_match, normalised_exact_match, contains, regex_match, token_f1,
            numeric_match, chrf, bleu, or module.function of a plugin, called with (generation, references).
        measures: Measures of plugins that score all answers of a point at once, such as a judge: names given to
            register_measure.
        primary: Measure that is shown first and whose thresholds are printed: one of quality or measures, or
            divergence/token_agreement, divergence/first_divergence, divergence/edit_distance; null means the first of
            quality.
    """

    confidence: float = 0.95
    nearest_rows: int = 256
    noise_floor: bool = True
    logprobs: int = 0
    teacher_forced: bool = False
    quality: list[str] = field(
        default_factory=lambda: ["exact_match", "normalised_exact_match", "contains", "token_f1"]
    )
    measures: list[str] = field(default_factory=list)
    primary: str | None = None

    def __post_init__(self) -> None:
        require(0 < self.confidence < 1, "scoring.confidence", "must be in (0, 1)", self.confidence)
        require(0 <= self.logprobs <= 20, "scoring.logprobs", "must be in [0, 20]", self.logprobs)
        require(self.nearest_rows >= 0, "scoring.nearest_rows", "must be 0 or more", self.nearest_rows)
        if self.primary is not None:
            metrics = [*map(_metric, self.quality), *self.measures, *shown_in("primary")]
            choices = [name.removeprefix("quality/") for name in metrics]
            chosen = self.primary if self.primary in metrics else _metric(self.primary)
            if chosen not in metrics:
                what = "measure of scoring.quality, of scoring.measures, or a divergence"
                require_choice("scoring.primary", self.primary, choices, what)

    @property
    def first(self) -> list[str]:
        """Measures to show before others: the primary one, then those of plugins."""
        primary = self.primary or next(iter(self.quality), None)
        from_plugins = [_metric(name) for name in self.quality if re.search(r"[.:]", name.removeprefix("quality/"))]
        known = (*self.measures, *shown_in("primary"))
        chosen = [] if primary is None else [primary if primary in known else _metric(primary)]
        return list(dict.fromkeys([*chosen, *from_plugins, *self.measures]))

    def score_settings(self) -> dict[str, Any]:
        """Return the settings that change scores, as plain values."""
        settings = {key: value for key, value in asdict(self).items() if key != "primary"}
        if not self.measures:  # points of versions without this key are not scored again
            del settings["measures"]
        return settings

    @property
    def modules(self) -> list[str]:
        """Modules of the functions among the quality measures."""
        parts = (name.rpartition(":" if ":" in name else ".") for name in self.quality)
        return [module for module, _, function in parts if module and function]


@dataclass(frozen=True, slots=True)
class TrackingConfig(Section):
    """Configuration section `tracking`.

    Attributes:
        uri: Any MLflow tracking URI; null means an SQLite file in sweep.dir.
        experiment: Name of the MLflow experiment; not empty.
        traces: Also log each generation as a trace with its scores, which MLflow compares row by row.
        patience: Seconds to wait at the end for a tracking server that does not answer; 0 or more.
        in_process: Publish from the engine's process, which needs less memory but slows the engine.
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
class SweepSettings(Section):
    """Configuration section `sweep`: settings of the whole invocation.

    Attributes:
        dir: Folder for everything that a sweep writes.
        name: Name of the sweep in MLflow and the report; null means one made from the overrides, such as scale
            factor=1.2,1.5.
        dry_run: List points, engines, requests and tokens, and start nothing.
        resume: true resumes the same command's sweep; false starts a new one; force resumes it even if another version
            of the engine began it.
        on_error: continue, or stop the sweep at the first point that fails.
        max_failures: End the sweep when more points than this have failed; 0 or more, null means never.
        objective: Goal of hydra/sweeper=optuna: minimize:MEASURE, maximize:MEASURE, closest:MEASURE:0.5 or
            closest:MEASURE:50% (of the control's).
        helpers: Worker processes that build requests and score points next to the engine; 0 (threads, less memory but a
            slower engine) to 64; null means one for every four cores, 1 to 4 in all (0 on a single core).
        gpu_scoring: Look up nearest tokens of large vocabularies on the first visible GPU, in at most 3 % of its
            memory; needs worker processes.
    """

    dir: str = "outputs"
    name: str | None = None
    dry_run: bool = False
    resume: str = "true"
    on_error: str = "continue"
    max_failures: int | None = None
    objective: str | None = None
    helpers: int | None = None
    gpu_scoring: bool = True

    def __post_init__(self) -> None:
        require(self.helpers is None or 0 <= self.helpers <= 64, "sweep.helpers", "must be in [0, 64]", self.helpers)
        require(bool(self.dir.strip()), "sweep.dir", "must name a folder", self.dir)
        require_choice("sweep.resume", self.resume.lower(), ("true", "false", "force"))
        require_choice("sweep.on_error", self.on_error, ("continue", "stop"))
        limit = self.max_failures
        require(limit is None or limit >= 0, "sweep.max_failures", "must be 0 or more", limit)
        if self.objective is not None:
            Objective.parse(self.objective)

    def check_failures(self, failed: int) -> None:
        """Raise `TooManyFailures` if more points have failed than `on_error` and `max_failures` allow."""
        if self.on_error == "stop" and failed:
            raise TooManyFailures(f"The sweep was stopped: {failed} points failed (sweep.on_error=stop).")
        if self.max_failures is not None and failed > self.max_failures:
            limit = self.max_failures
            raise TooManyFailures(f"The sweep was stopped: {failed} points failed (sweep.max_failures={limit}).")

    @property
    def root(self) -> Path:
        """Absolute path of `dir`, the folder for everything that a sweep writes."""
        return Path(self.dir).expanduser().resolve()


@dataclass(frozen=True, slots=True)
class SweepConfig:
    """Configuration of one point, or of the base that all points of a sweep share.

    Attributes:
        model: Section `model`.
        prompts: Section `prompts`.
        transform: The transforms to apply, in order.
        sampling: Section `sampling`.
        engine: Section `engine`, of the chosen engine's class.
        scoring: Section `scoring`.
        tracking: Section `tracking`.
        sweep: Section `sweep`.
        report: Section `report`.
        seed: Seed of the point; transforms that draw random numbers derive theirs from it and the prompt.
        verbose: Print the output of vLLM, Transformers and MLflow instead of writing it to sweep.log.
        plugins: Python modules to import first, which may register transforms and engines or define scorers.
    """

    model: ModelConfig
    prompts: PromptsConfig
    transform: Pipeline
    sampling: SamplingConfig
    engine: EngineConfig
    scoring: ScoringConfig
    tracking: TrackingConfig
    sweep: SweepSettings
    report: ReportConfig = field(default_factory=ReportConfig)
    seed: int = 0
    verbose: bool = False
    plugins: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Return the configuration as plain values, which `Parser.parse` reads again."""
        return {field.name: self.plain_section(field.name) for field in fields(self)}

    def plain_section(self, key: str) -> Any:
        """Return one section, or one top-level value, as plain values."""
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
    "report": ReportConfig,
}
