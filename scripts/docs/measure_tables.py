"""Reference tables of measures: quality, divergence, health, perturbation and cost."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

from doc_markdown import table

from sweep.scoring import divergence, health
from sweep.scoring.distributions import Distance
from sweep.scoring.scorers import QUALITY

# Measures that no function or class of their own describes: name, range, meaning.
DISTRIBUTIONS = (
    ("divergence/first_token_", "at the first token"),
    ("divergence/prefix_", "mean over the common prefix, with the first token that differs"),
)
DISTANCES = {
    "kl": ("0 to ∞", "KL(control‖point), nats"),
    "js": ("0 to ln 2", "Jensen-Shannon divergence, nats"),
    "top1": ("0 to 1", "agreement of the most probable token"),
    "unlisted": ("0 to 1", "probability beyond the listed tokens; KL and JS are too low where it is large"),
    "control_unlisted": ("0 to 1", "the same of the control"),
}
FORCED = (
    ("divergence/control_answer_logprob", "-∞ to 0", "control's answer under the transformed prompt"),
    ("divergence/control_answer_logprob_change", "-∞ to ∞", "the same, less that under the clean prompt"),
    ("divergence/answer_logprob", "-∞ to 0", "the point's answer under the clean prompt"),
)
PERTURBATION = (
    ("relative_l2", "0 to ∞", "‖ΔE‖/‖E‖ (Frobenius) over the whole prompt"),
    ("snr_db", "-∞ to ∞", "20·log10(‖E‖/‖ΔE‖); left out where nothing changed"),
    ("cosine", "-1 to 1", "mean cosine of a row with what it was"),
    ("norm_ratio", "0 to ∞", "‖E+ΔE‖/‖E‖"),
    ("changed", "0 to 1", "share of entries that differ after the cast"),
    ("nearest_token_flips", "0 to 1", "share of rows whose nearest token (L2) changed, of `scoring.nearest_rows`"),
    ("dose_requested", "", "dose that was asked for, in the unit of its parameter"),
    ("dose_achieved", "", "dose after the cast; in a composition each step has its own, `perturbation/0/dose_…`"),
    ("largest_entry", "0 to ∞", "largest absolute entry that was sent"),
    ("rows", "0 to ∞", "rows that were sent"),
    ("rows_kept", "0 to 1", "share of rows, before and after, that have a counterpart"),
)
COSTS = (
    ("cost/output_tokens", "mean length of an answer"),
    ("cost/truncated", "share of answers that ended at `sampling.max_tokens`"),
    ("cost/requests", "requests sent, with those of teacher forcing"),
    ("cost/prompt_tokens", "their prompt tokens"),
    ("cost/cached_prompt_tokens", "prompt tokens found in the engine's prefix cache"),
    ("cost/generated_tokens", "tokens generated"),
    ("cost/build_seconds", "seconds to build the requests"),
    ("cost/transform_seconds", "of these, in transforms"),
    ("cost/score_seconds", "seconds to score the point"),
    ("cost/shared/tokens_per_second", "speed of the batch that all points share"),
    ("cost/shared/engine_start_seconds", "seconds that engine starts took so far"),
    ("cost/shared/gpu_memory_gib", "GPU memory that the engine holds; only with a GPU"),
)
HEALTH = {
    "health/distinct_1": ("0 to 1", "different tokens over all tokens (Li et al. 2016, arXiv:1510.03055)"),
    "health/distinct_2": ("0 to 1", "the same for pairs of tokens"),
    "health/distinct_3": ("0 to 1", "the same for triples of tokens"),
    "health/longest_repeat": ("0 to ∞", "length in tokens of the longest n-gram that occurs twice"),
    "health/loop": ("0 or 1", "the answer ends in a repetition of some length"),
    "health/compression_ratio": ("0 to ∞", "bytes of the text over those that zlib makes of them"),
    "health/empty": ("0 or 1", "nothing but white space"),
    "health/non_printable": ("0 to 1", "share of control, surrogate, private-use and replacement characters"),
    "health/refusal": ("0 or 1", "a heuristic: English phrases at the start, listed in `scoring/health.py`"),
    "health/characters": ("0 to ∞", "length in characters"),
    "health/tokens": ("0 to ∞", "length in tokens"),
}


# Measures
def quality() -> str:
    """Return the table of measures against references."""
    rows = [(f"`{name}`", _range(s.limits, s.yes_or_no), _summary(s.function)) for name, s in QUALITY.items()]
    return _measures(rows)


def divergences() -> str:
    """Return the table of measures against the control."""
    functions = (
        (divergence.first_divergence, "0 to ∞"),
        (divergence.prefix_agreement, "0 to 1"),
        (divergence.token_agreement, "0 to 1"),
        (divergence.edit_distance, "0 to 1"),
    )
    rows = [(f"`divergence/{function.__name__}`", values, _summary(function)) for function, values in functions]
    for prefix, where in DISTRIBUTIONS:
        for name in Distance.__slots__:  # type: ignore[attr-defined]
            values, meaning = DISTANCES[name]
            rows.append((f"`{prefix}{name}`", values, f"{meaning}; {where}"))
    rows += [(f"`{name}`", values, f"mean log-probability per token: {meaning}") for name, values, meaning in FORCED]
    return _measures(rows)


def healths() -> str:
    """Return the table of measures of an answer by itself."""
    missing = health.health("text", [1, 2, 3]).keys() ^ HEALTH.keys()
    assert not missing, f"HEALTH does not match sweep.scoring.health: {missing}"
    return _measures([(f"`{name}`", *described) for name, described in HEALTH.items()])


def perturbations() -> str:
    """Return the table of measures of the change of the embeddings."""
    return _measures([(f"`perturbation/{name}`", values, meaning) for name, values, meaning in PERTURBATION])


def costs() -> str:
    """Return the table of costs."""
    return "\n".join(table(("measure", "meaning"), [(f"`{name}`", meaning) for name, meaning in COSTS]))


def measure_names() -> set[str]:
    """Return the names of all measures that the pages list."""
    text = "\n".join(make() for make in (quality, divergences, healths, perturbations, costs))
    return set(re.findall(r"^\| `([\w/]+)`", text, re.MULTILINE))


def _measures(rows: Iterable[tuple[str, str, str]]) -> str:
    return "\n".join(table(("measure", "values", "meaning"), rows))


def _range(limits: tuple[float, float], yes_or_no: bool) -> str:
    low, high = limits
    return "0 or 1" if yes_or_no else f"{low:g} to {high:g}"


def _summary(function: Callable[..., Any]) -> str:
    """Return the first sentence of a docstring, without its verb."""
    paragraph = " ".join(inspect.cleandoc(function.__doc__ or "").split("\n\n")[0].split())
    first = re.split(r"(?<=[a-z)])\. ", paragraph)[0].rstrip(".")
    return re.sub(r"^Return (the )?", "", first)
