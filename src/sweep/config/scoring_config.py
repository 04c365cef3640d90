"""Configuration section `scoring`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from sweep.core.section import Section
from sweep.inputs.choices import check_choices
from sweep.scoring.attacks import ATTACKS
from sweep.scoring.judge_config import JudgeConfig
from sweep.scoring.margins import check_margins, margin_of
from sweep.scoring.registry import measures_of, shown_in
from sweep.util.validators import require, require_choice

REASONING_TAGS = ("<think>", "</think>")  # of DeepSeek R1, Qwen3 and others
SIMILARITY_MODEL = "sentence-transformers/all-MiniLM-L6-v2"

# Keys of `scoring` that only change what is shown. They do not count in fingerprints or in a sweep's id.
SHOWN_ONLY = ("primary", "equivalence")
# Keys of `scoring` that later versions added, with their defaults. Where they have these values, points of versions
# without the keys are not scored again.
ADDED: dict[str, Any] = {
    "measures": [],
    "reference_logprob": False,
    "choices": [],
    "target_delimiter": None,
    "correct": None,
    "pass_at": None,
    "recovery": [],
    "strip_reasoning": False,
    "reasoning_tags": list(REASONING_TAGS),
    "similarity_model": SIMILARITY_MODEL,
    "judge": asdict(JudgeConfig()),
}


def _metric(name: str) -> str:
    """Return the measure's name for an entry of `scoring.quality`: `exact_match`, or a user's `module.function`."""
    return "quality/" + re.split(r"[.:]", name.removeprefix("quality/"))[-1]


def _likelihoods() -> list[str]:
    return [measure.name for measure in measures_of("likelihood")]


@dataclass(frozen=True, slots=True)
class ScoringConfig(Section):
    """Configuration section `scoring`.

    Attributes:
        confidence: Confidence level of the intervals; in (0, 1).
        nearest_rows: Embedding rows per point whose nearest tokens are looked up, spread over its prompts; 0 (none) or
            more.
        recovery: Attacks that recover tokens from the sent rows, of nearest_rows: nearest (the nearest embedding row),
            rotation (after undoing the transforms' rotations), linear (after a linear map fitted on other prompts).
        noise_floor: Run each control twice, in differently composed batches, to measure the noise floor.
        logprobs: Compare next-token distributions by this many of the most probable tokens; 0 (do not) to 20.
        teacher_forced: Score the control's answer under the transformed prompt, and the transformed answer under the
            clean prompt.
        reference_logprob: Measure the log-probability of each reference after each point's prompt.
        choices: Compare the likelihoods of these answers, of which references name the right one; prompts with choices
            of their own (see prompts.choices_key) keep those.
        target_delimiter: Text between a prompt and a reference or choice that does not begin with white space; null
            means none after a chat, and a space after plain text that does not end in white space.
        quality: Measures against references: exact_match, normalised_exact_match, contains, regex_match, token_f1,
            numeric_match, chrf, bleu, or module.function of a plugin, called with (generation, references).
        strip_reasoning: Remove the model's reasoning from answers for quality measures, and for those of measures.
        reasoning_tags: Texts around the reasoning: the opening and the closing tag.
        measures: Measures that score all answers of a point at once: divergence/sentence_similarity,
            quality/judge_score, or names that a plugin gave to register_measure.
        similarity_model: Sentence encoder of divergence/sentence_similarity: a folder or hub id; with mean pooling.
        judge: Language model of quality/judge_score, see its keys.
        primary: Measure that is shown first and whose thresholds are printed: one of quality or measures, or
            divergence/token_agreement, divergence/first_divergence, divergence/edit_distance, or with reference_logprob
            or choices one of likelihood/…; null means the first of quality.
        correct: Yes-or-no measure that decides which of several samples are correct, for pass@k and the majority vote;
            null means the first one of quality.
        pass_at: Values of k for pass@k, each from 1 to sampling.n; null means 2, 4, 8, … up to sampling.n.
        equivalence: Margin of equivalence with the control, in the unit of the measure: a number above 0 for all tested
            measures, or a mapping such as {exact_match: 0.05, first_divergence: 2}; null does not test equivalence.
    """

    confidence: float = 0.95
    nearest_rows: int = 256
    recovery: list[str] = field(default_factory=list)
    noise_floor: bool = True
    logprobs: int = 0
    teacher_forced: bool = False
    reference_logprob: bool = False
    choices: list[str] = field(default_factory=list)
    target_delimiter: str | None = None
    quality: list[str] = field(
        default_factory=lambda: ["exact_match", "normalised_exact_match", "contains", "token_f1"]
    )
    strip_reasoning: bool = False
    reasoning_tags: list[str] = field(default_factory=lambda: list(REASONING_TAGS))
    measures: list[str] = field(default_factory=list)
    similarity_model: str = SIMILARITY_MODEL
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    primary: str | None = None
    correct: str | None = None
    pass_at: list[int] | None = None
    equivalence: Any = None

    def __post_init__(self) -> None:
        require(0 < self.confidence < 1, "scoring.confidence", "must be in (0, 1)", self.confidence)
        require(0 <= self.logprobs <= 20, "scoring.logprobs", "must be in [0, 20]", self.logprobs)
        require(self.nearest_rows >= 0, "scoring.nearest_rows", "must be 0 or more", self.nearest_rows)
        tags = len(self.reasoning_tags) == 2 and all(self.reasoning_tags)
        require(tags, "scoring.reasoning_tags", "must be two texts, such as [<think>,</think>]", self.reasoning_tags)
        if self.choices:
            check_choices(self.choices, "scoring.choices")
        for attack in self.recovery:
            require_choice("scoring.recovery", attack, ATTACKS, "attack")
        sampled = self.nearest_rows > 0 or not self.recovery
        require(sampled, "scoring.recovery", "needs scoring.nearest_rows above 0, the rows to attack", self.recovery)
        if self.primary is not None:
            metrics = [*map(_metric, self.quality), *self.measures, *shown_in("primary"), *_likelihoods()]
            choices = [name.removeprefix("quality/") for name in metrics]
            chosen = self.primary if self.primary in metrics else _metric(self.primary)
            if chosen not in metrics:
                what = "measure of scoring.quality, of scoring.measures, a divergence, or a likelihood"
                require_choice("scoring.primary", self.primary, choices, what)
        if self.correct is not None or self.pass_at is not None:
            from sweep.scoring.samples import check_sizes

            check_sizes(self.pass_at, self.correctness)
        if self.equivalence is not None:
            check_margins(self.equivalence, self._configured, self.confidence)

    @property
    def _configured(self) -> list[str]:
        return [*map(_metric, self.quality), *self.measures]

    @property
    def correctness(self) -> str | None:
        """Metric name of the measure that decides which samples are correct; None: there is none."""
        # Imported here: most starts of the program need no measures.
        from sweep.scoring.samples import correctness_measure

        if self.correct is None:
            return correctness_measure(None, self._configured)
        chosen = self.correct if self.correct in self.measures else _metric(self.correct)
        return correctness_measure(chosen, self._configured)

    @property
    def first(self) -> list[str]:
        """Measures to show before others: the primary one, then those of plugins."""
        primary = self.primary or next(iter(self.quality), None)
        from_plugins = [_metric(name) for name in self.quality if re.search(r"[.:]", name.removeprefix("quality/"))]
        known = (*self.measures, *shown_in("primary"), *_likelihoods())
        chosen = [] if primary is None else [primary if primary in known else _metric(primary)]
        return list(dict.fromkeys([*chosen, *from_plugins, *self.measures]))

    @property
    def report_settings(self) -> tuple[float, list[str], Callable[[str], float]]:
        """Confidence level, measures to show first, and the margin of equivalence of a measure (NaN: none)."""
        return self.confidence, self.first, partial(margin_of, self.equivalence)

    def score_settings(self) -> dict[str, Any]:
        """Return the settings that change scores, as plain values."""
        settings = {key: value for key, value in asdict(self).items() if key not in SHOWN_ONLY}
        if "divergence/sentence_similarity" not in self.measures:
            del settings["similarity_model"]
        if not self.strip_reasoning:
            del settings["reasoning_tags"]
        judge = settings.pop("judge")
        if "quality/judge_score" in self.measures:  # the other settings only limit how the judge is asked
            settings["judge"] = {key: judge[key] for key in ("url", "model", "prompt", "format", "max_tokens")}
        return {key: value for key, value in settings.items() if key not in ADDED or value != ADDED[key]}

    @property
    def modules(self) -> list[str]:
        """Modules of the functions among the quality measures."""
        parts = (name.rpartition(":" if ":" in name else ".") for name in self.quality)
        return [module for module, _, function in parts if module and function]
