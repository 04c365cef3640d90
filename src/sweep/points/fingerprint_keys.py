"""Fingerprint keys: the table of the configuration keys that are part of a fingerprint, with reasons.

Code, tests and docs share this table. A key that is not part of the fingerprint changes no generation, or changes it
only through something that is part of it, such as the content of a file. `tests/points/test_fingerprint_keys.py` fails
if a key is missing here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

from sweep.config.schema import SECTIONS
from sweep.engines import ENGINES
from sweep.engines.settings import Effect, changes, no_change

_RENDERED = "The rendered token ids and the layout that spans use count instead."
_WHERE = "It sets where or how the sweep runs."
_SCORES = "Only scores depend on it. Finished points are scored again from the journal."
_TRACKING = "It sets where and how results are published."

KEYS: Mapping[str, Effect] = {
    "model.id": no_change("The contents of the model's files count instead, whatever their path."),
    "model.revision": no_change("It selects files, and their contents count."),
    "model.dtype": changes("The dtype in which the model runs counts: `auto` equals the dtype that it resolves to."),
    "model.trust_remote_code": changes("The model's own code may run instead of Transformers'."),
    "model.embedder": changes("It decides how the embedding rows are read."),
    "model.lora": changes("The contents of the adapter's files count, whatever their path."),
    "prompts.items": changes(_RENDERED),
    "prompts.path": changes(f"{_RENDERED} The path itself does not count."),
    "prompts.format": changes(_RENDERED),
    "prompts.dataset": changes(f"{_RENDERED} The name itself does not count."),
    "prompts.dataset_config": changes(_RENDERED),
    "prompts.split": changes(_RENDERED),
    "prompts.revision": no_change("It selects prompts, and their contents count."),
    "prompts.chat": changes(_RENDERED),
    "prompts.system": changes(_RENDERED),
    "prompts.limit": changes(_RENDERED),
    "prompts.id_key": changes("The ids of prompts seed their samples and random transforms."),
    "prompts.prompt_key": changes(_RENDERED),
    "prompts.reference_key": no_change("Only scores depend on references."),
    "prompts.choices_key": no_change("Only scores depend on choices."),
    "prompts.map": changes(_RENDERED),
    "prompts.template": changes(_RENDERED),
    "prompts.shots": changes(_RENDERED),
    "prompts.shots_from": changes(_RENDERED),
    "prompts.shots_seed": changes(_RENDERED),
    "prompts.placeholders": changes(_RENDERED),
    "prompts.special_tokens": changes(f"{_RENDERED} Prompts without control tokens in their text are unaffected."),
    "prompts.chat_template": changes(_RENDERED),
    "prompts.template_kwargs": changes(_RENDERED),
    "prompts.chat_template_kwargs": changes(_RENDERED),
    "prompts.continue_final_message": changes(_RENDERED),
    "prompts.date": changes(f"{_RENDERED} Prompts of a template without a clock are unaffected."),
    "transform.*": changes("All parameters count. Your own files and modules count by content, not by path."),
    **{f"sampling.{name}": changes("It decides how tokens are drawn.") for name in (
        "max_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed", "n", "stop", "ignore_eos",
        "args",
    )},
    "scoring.logprobs": changes("The engine returns log-probabilities, which are recorded with the answer."),
    "scoring.confidence": no_change(_SCORES),
    "scoring.nearest_rows": no_change(_SCORES),
    "scoring.recovery": no_change(_SCORES),
    "scoring.noise_floor": no_change("It adds a second run of each control, which is recorded separately."),
    "scoring.teacher_forced": no_change("It adds log-probabilities of answers, which are recorded separately."),
    "scoring.reference_logprob": no_change("It adds log-probabilities of references, which are recorded separately."),
    "scoring.choices": no_change("It adds log-probabilities of choices, which are recorded separately."),
    "scoring.target_delimiter": no_change("Only references and choices depend on it, which are recorded separately."),
    "scoring.quality": no_change(f"{_SCORES} Your own modules count for scores by their contents."),
    "scoring.strip_reasoning": no_change(_SCORES),
    "scoring.reasoning_tags": no_change(_SCORES),
    "scoring.measures": no_change(f"{_SCORES} Your own modules count for scores by their contents."),
    "scoring.similarity_model": no_change(f"{_SCORES} The name counts for scores, not the model's files."),
    "scoring.judge": no_change(f"{_SCORES} Its limits of time and number do not count for scores."),
    "scoring.primary": no_change("It only decides what is shown first."),
    "scoring.correct": no_change(_SCORES),
    "scoring.pass_at": no_change(_SCORES),
    "scoring.equivalence": no_change("It only adds verdicts to the report."),
    **{f"tracking.{name}": no_change(_TRACKING) for name in ("uri", "experiment", "traces", "patience", "in_process")},
    **{f"sweep.{name}": no_change(_WHERE) for name in (
        "dir", "name", "dry_run", "show_prompt", "resume", "on_error", "max_failures", "objective", "helpers",
        "gpu_scoring",
    )},
    "sweep.zip": no_change("It only decides which points there are."),
    **{f"report.{name}": no_change("It only decides what is compared in the report.") for name in (
        "baseline", "contrasts", "tolerance", "effect",
    )},
    "seed": changes("It seeds random transforms."),
    "verbose": no_change(_WHERE),
    "plugins": no_change("The contents of the modules that define transforms count instead."),
}  # fmt: skip

# Influences on generations that are not configuration keys.
ELSEWHERE: Mapping[str, Effect] = {
    "the engine and its release": changes(
        "The name is in the fingerprint. The release is recorded with each answer. Answers of other releases are not "
        "reused, and a sweep is not resumed with another release unless sweep.resume=force."
    ),
    "Transformers and tokenizers, for prompts": changes("Token ids count, so releases that tokenize alike are equal."),
    "this project's own transforms": no_change("A change of a transform's result raises the format version for all."),
    "PyTorch, the processor or GPU": no_change("They change only the last bits. Each run records them as tags."),
    "the batch that a request is in": no_change(
        "It changes only the last bits. scoring.noise_floor measures this, engine.batch_invariant avoids it."
    ),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a key or another influence, and its effect."""

    key: str
    effect: Effect


def configured_keys() -> list[str]:
    """Return all keys of the schema, except those of transforms and engines, which each class defines itself."""
    sections = [f"{section}.{field.name}" for section, schema in SECTIONS.items() for field in fields(schema)]
    return [*sections, "seed", "verbose", "plugins", "transform.*"]


def rows() -> Iterator[Row]:
    """Yield the whole table: the keys, each engine's settings and environment variables, and other influences."""
    for key, effect in KEYS.items():
        yield Row(f"`{key}`", effect)
    built_in = {name: engine for name, engine in ENGINES.items() if engine.__module__.startswith("sweep.engines.")}
    for name, engine in sorted(built_in.items()):
        for key, effect in engine.effects.items():
            yield Row(f"`engine.{key}` ({name})", effect)
        for key, effect in engine.variables.items():
            yield Row(f"`${key}` ({name})", effect)
    yield Row("any swept `engine.*`", changes("Its values are compared."))
    for key, effect in ELSEWHERE.items():
        yield Row(key, effect)


def markdown() -> str:
    """Return the table in Markdown, as in `docs/fingerprint.md`."""
    lines = ["| key | in the fingerprint | reason |", "|---|---|---|"]
    lines += [
        f"| {row.key} | {'yes' if row.effect.changes_generations else 'no'} | {row.effect.reason} |" for row in rows()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
