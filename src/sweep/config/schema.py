"""Configuration schema: frozen dataclasses that define the keys and check the values.

`__post_init__` checks ranges. `sweep.config.loader` makes the dataclasses from a composed configuration. `--help` shows
the entry of each key below `Attributes:` (see `sweep.config.help_text`), so an entry states the allowed values.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from sweep.config import scoring_config
from sweep.config.combinations import zip_groups
from sweep.config.objective import Objective
from sweep.config.report_config import ReportConfig
from sweep.config.scoring_config import ScoringConfig
from sweep.core.section import Section
from sweep.engines import EngineConfig, sampling_args
from sweep.errors import TooManyFailures
from sweep.inputs import config as input_config
from sweep.inputs.config import ModelConfig, PromptsConfig
from sweep.transforms import Pipeline
from sweep.util.counts import counted
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
        args: Further parameters by their names in vLLM's SamplingParams, as in sampling.args.min_p=0.05; null means
            vLLM's default.
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
    args: dict[str, Any] = field(default_factory=dict)

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
        sampling_args.check_values(self.args, self.max_tokens)


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
        zip: Keys whose lists are read in parallel instead of in all combinations, joined by +, such as
            transform.factor+sampling.max_tokens; spaces separate groups.
        dry_run: List points, engines, requests and tokens, and start nothing.
        show_prompt: Print this many rendered prompts with their tokens and spans, also in a dry run; 0 (none) or more.
        resume: true resumes the same command's sweep; false starts a new one; force resumes it even if another version
            of the engine began it.
        on_error: continue, or stop the sweep at the first point that fails.
        max_failures: End the sweep when more points than this have failed; 0 or more, null means never.
        objective: Goal of hydra/sweeper=optuna: minimize:MEASURE, maximize:MEASURE, closest:MEASURE:0.5 or
            closest:MEASURE:50% (of the control's).
        helpers: Pool processes, which build requests and score points; 0 (threads, less memory but a slower engine) to
            64, null means one for every four cores, 1 to 4 in all (0 on a single core).
        gpu_scoring: Look up nearest tokens of large vocabularies on the first visible GPU, in at most 3 % of its
            memory; needs pool processes.
    """

    dir: str = "outputs"
    name: str | None = None
    zip: str | None = None
    dry_run: bool = False
    show_prompt: int = 0
    resume: str = "true"
    on_error: str = "continue"
    max_failures: int | None = None
    objective: str | None = None
    helpers: int | None = None
    gpu_scoring: bool = True

    def __post_init__(self) -> None:
        require(self.helpers is None or 0 <= self.helpers <= 64, "sweep.helpers", "must be in [0, 64]", self.helpers)
        zip_groups(self.zip)
        require(bool(self.dir.strip()), "sweep.dir", "must name a folder", self.dir)
        require(self.show_prompt >= 0, "sweep.show_prompt", "must be 0 (none) or more", self.show_prompt)
        require_choice("sweep.resume", self.resume.lower(), ("true", "false", "force"))
        require_choice("sweep.on_error", self.on_error, ("continue", "stop"))
        limit = self.max_failures
        require(limit is None or limit >= 0, "sweep.max_failures", "must be 0 or more", limit)
        if self.objective is not None:
            Objective.parse(self.objective)

    def check_failures(self, failed: int) -> None:
        """Raise `TooManyFailures` if more points have failed than `on_error` and `max_failures` allow."""
        points = counted(failed, "point")
        if self.on_error == "stop" and failed:
            raise TooManyFailures(f"The sweep was stopped: {points} failed (sweep.on_error=stop).")
        if self.max_failures is not None and failed > self.max_failures:
            limit = self.max_failures
            raise TooManyFailures(f"The sweep was stopped: {points} failed (sweep.max_failures={limit}).")

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
        plugins: Python modules to import first, which may register transforms, measures and engines.
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

    def __post_init__(self) -> None:
        largest, n = max(self.scoring.pass_at or [0]), self.sampling.n
        require(largest <= n, "scoring.pass_at", f"must be at most sampling.n={n}", largest)

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


# Keys that later versions added, with their defaults, by section. They do not count in a sweep's id where they have
# these values, so that unchanged commands resume the sweeps of versions without the keys.
ADDED: dict[str, dict[str, Any]] = {
    "engine": {"args": {}},
    "model": {"lora": None},
    "prompts": input_config.ADDED,
    "sampling": {"args": {}},
    "scoring": scoring_config.ADDED,
}

SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "prompts": PromptsConfig,
    "sampling": SamplingConfig,
    "scoring": ScoringConfig,
    "tracking": TrackingConfig,
    "sweep": SweepSettings,
    "report": ReportConfig,
}
