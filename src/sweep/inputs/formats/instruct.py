"""Instructions and questions: Alpaca, MT-bench and SQuAD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweep.errors import ConfigError
from sweep.inputs.config import PromptsConfig
from sweep.inputs.formats.base import Fields, Format, PromptEntry, register_format
from sweep.inputs.messages import describe_type


def read_alpaca(fields: Fields, place: str, config: PromptsConfig) -> PromptEntry:
    """Read `instruction`, `input` and `output`; instruction and input are joined by a newline.

    `history` of LLaMA-Factory's files, a list of pairs of texts, goes before the instruction.
    """
    texts = [_text(fields, key, place) for key in ("instruction", "input") if fields.get(key)]
    text = "\n".join(texts)
    if not text:
        raise ConfigError(f"{place}: 'instruction' and 'input' (Alpaca) are both empty.")
    history = fields.get("history") or []
    pairs = isinstance(history, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(turn, str) for turn in pair) for pair in history
    )
    if not pairs:
        raise ConfigError(f"{place}: 'history' (Alpaca) must be a list of pairs of texts.")
    messages = None
    if history:
        turns = [turn for pair in history for turn in pair]
        roles = ("user", "assistant")
        chat = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
        messages = (*chat, {"role": "user", "content": text})
    return PromptEntry(
        text=None if messages else text,
        messages=messages,
        reference=_text(fields, "output", place) or None if "output" in fields else None,
        form="Alpaca",
        used=("instruction", "input", "output", "history"),
        reference_keys=("output",),
    )


def read_mt_bench(fields: Fields, place: str, config: PromptsConfig) -> PromptEntry:
    """Read the first of a question's `turns`; later ones depend on the model's own answers."""
    turns = fields["turns"]
    texts = [turn.get("content") if isinstance(turn, Mapping) else turn for turn in turns]
    if not texts or not isinstance(texts[0], str) or not texts[0]:
        actual = describe_type(texts[0]) if texts else "an empty list"
        raise ConfigError(f"{place}: 'turns' (MT-bench) must be a list of texts; got {actual}.")
    references = fields.get("reference")
    first = references[0] if isinstance(references, list) and references else references
    unused = tuple(f"turns[{i}]" for i in range(1, len(turns)))
    if isinstance(references, list):
        unused += tuple(f"reference[{i}]" for i in range(1, len(references)))
    if isinstance(turns[0], Mapping):
        unused += tuple(f"turns[0].{key}" for key in turns[0] if key != "content")
    return PromptEntry(
        text=texts[0],
        id=fields.get("question_id"),
        reference=first or None,
        form="MT-bench, first turn only" if len(turns) > 1 else "MT-bench",
        used=("turns", "question_id", "reference"),
        id_keys=("question_id",),
        reference_keys=("reference",),
        unused=unused,
    )


def read_squad(fields: Fields, place: str, config: PromptsConfig) -> PromptEntry:
    """Read a question on a context, joined by an empty line. Questions without an answer have no reference."""
    context, question = _text(fields, "context", place), _text(fields, "question", place)
    answers = fields["answers"]
    items = answers.get("text") if isinstance(answers, Mapping) else answers
    if not isinstance(items, list):
        raise ConfigError(f"{place}: 'answers' (SQuAD) must have a list of texts; got {describe_type(items)}.")
    texts: list[Any] = [item.get("text") if isinstance(item, Mapping) else item for item in items]
    if not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{place}: 'answers' (SQuAD) must have a list of texts.")
    names = (
        answers
        if isinstance(answers, Mapping)
        else {key for item in items if isinstance(item, Mapping) for key in item}
    )
    return PromptEntry(
        text=f"{context}\n\n{question}",
        id=fields.get("id"),
        reference=list(dict.fromkeys(text for text in texts if text.strip())) or None,
        form="SQuAD",
        used=("context", "question", "answers", "id"),
        id_keys=("id",),
        reference_keys=("answers",),
        unused=tuple(f"answers.{key}" for key in sorted(names) if key != "text"),
    )


def _text(fields: Fields, key: str, place: str) -> str:
    value = fields.get(key, "")
    if not isinstance(value, str):
        raise ConfigError(f"{place}: {key!r} must be a text; got {describe_type(value)}.")
    return value


def _is_squad(fields: Mapping[str, Any]) -> bool:
    answers = fields.get("answers")
    return {"context", "question"} <= fields.keys() and (
        isinstance(answers, list) or (isinstance(answers, Mapping) and "text" in answers)
    )


ALPACA = ("instruction", "input", "output", "history")
MT_BENCH = ("turns", "question_id", "reference")
register_format(Format("mt_bench", MT_BENCH, lambda f: isinstance(f.get("turns"), list), read_mt_bench))
register_format(Format("squad", ("context", "question", "answers", "id"), _is_squad, read_squad))
register_format(Format("alpaca", ALPACA, lambda f: {"instruction", "output"} <= f.keys(), read_alpaca))
