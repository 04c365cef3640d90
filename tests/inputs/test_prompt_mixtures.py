"""Mixtures of all formats, valid or not: each key of a row is used or named, and errors are `ConfigError`s."""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweep.errors import ConfigError
from sweep.inputs import prompts
from sweep.inputs.config import PromptsConfig
from sweep.inputs.formats import FORMATS
from sweep.inputs.plain_entries import PlainReader
from sweep.inputs.prompts import Prompt

FOLDER = Path(__file__).parents[1] / "data" / "prompt_formats"
KEYS = sorted(
    {key for one in FORMATS.values() for key in one.keys}
    | {"prompt", "reference", "id", "system", "tools", "values", "messages", "choices", "role", "content", "from"}
    | {"value", "text", "title", "Prompt", "refrence", "question", "answer", "a.b", "", "x"}
)


def real_entries() -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for path in sorted(FOLDER.glob("*.jsonl")):
        entries += [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for name in ("alpaca", "sharegpt", "sharegpt_tools"):
        entries += json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    return entries


ENTRIES = real_entries()
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["{x}", "\ud800"])
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {}, optional={"role": st.sampled_from(["user", "assistant", "system", "tool", "x"]), "content": SCALARS,
                      "from": st.sampled_from(["human", "gpt", "function_call"]), "value": SCALARS,
                      "tool_calls": st.lists(SCALARS, max_size=2)},
    ), max_size=3,
)  # fmt: skip
VALUES = st.recursive(
    SCALARS | MESSAGES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)
MIXED = st.builds(
    lambda base, changes, dropped: {k: v for k, v in (base | changes).items() if k not in dropped},
    st.sampled_from([{}, *ENTRIES]),
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3),
    st.sets(st.sampled_from(KEYS), max_size=2),
)
FORMAT = st.none() | st.sampled_from(sorted(FORMATS))
QUICK = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(st.lists(MIXED | VALUES, min_size=1, max_size=3), FORMAT, st.booleans())
def test_mixtures_never_fail_with_another_error(entries: list[Any], name: str | None, prefill: bool) -> None:
    config = PromptsConfig(items=entries, format=name, choices_key="choices", continue_final_message=prefill)
    try:
        loaded = prompts.load(config)
    except ConfigError as error:
        assert str(error).count("\n") < 3
        return
    assert len(loaded) == len(entries) and all(prompt.text is not None for prompt in loaded)
    str(prompts.summarise(loaded, config))


def marked(value: Any, path: str, numbers: Any) -> tuple[Any, list[tuple[str, str]]]:
    """Return a value whose texts without structure are replaced by unique ones, and their paths."""
    if isinstance(value, dict):
        pairs = {key: marked(inner, f"{path}.{key}" if path else key, numbers) for key, inner in value.items()}
        return {key: pair[0] for key, pair in pairs.items()}, [leaf for pair in pairs.values() for leaf in pair[1]]
    if isinstance(value, list):
        parts = [marked(inner, f"{path}[{i}]", numbers) for i, inner in enumerate(value)]
        return [part[0] for part in parts], [leaf for part in parts for leaf in part[1]]
    fixed = path.rpartition(".")[2] in ("role", "from", "type", "url", "method", "label", "target", "weight")
    if not isinstance(value, str) or fixed or value.startswith(("[{", "{")):
        return value, []
    mark = f"unique{next(numbers)}text"
    return mark, [(path, mark)]


def is_named(path: str, unused: tuple[str, ...]) -> bool:
    """Return whether a path, or the path of something that holds it, is among the unused ones."""
    plain = [name.replace("generation arguments", "arguments") for name in unused]
    return any(path == name or path.startswith((f"{name}.", f"{name}[")) for name in plain) or any(
        _without_numbers(path) == name or _without_numbers(path).startswith(f"{name}.") for name in plain
    )


def _without_numbers(path: str) -> str:
    return ".".join(part.partition("[")[0] for part in path.split("."))


def shown(prompt: Prompt) -> str:
    return repr(
        (prompt.id, prompt.text, prompt.messages, prompt.references, prompt.tools, prompt.values, prompt.choices)
    )


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(ENTRIES), st.sets(st.sampled_from(KEYS), max_size=3), st.sampled_from(ENTRIES))
def test_each_text_of_an_entry_is_used_or_named(
    entry: dict[str, Any], borrowed: set[str], other: dict[str, Any]
) -> None:
    mixed = entry | {key: other[key] for key in borrowed if key in other and key not in entry}
    made, leaves = marked(mixed, "", itertools.count())
    try:
        [prompt] = prompts.load(PromptsConfig(items=[made]))
    except ConfigError:
        return
    reading = prompt.reading
    text = shown(prompt)
    if reading.form == "Inspect samples" and made.get("target") == "B":
        leaves = [(path, mark) for path, mark in leaves if not path.startswith("choices")]  # the letter names one
    answer_left_out = reading.answer and not reading.answer_is_reference  # said in the summary
    lost = [path for path, mark in leaves if mark not in text and not is_named(path, reading.unused)]
    assert answer_left_out or not lost, (lost, reading.unused)


DOCUMENT_KEYS = [
    "prompts",
    "tests",
    "providers",
    "defaultTest",
    "vars",
    "assert",
    "type",
    "value",
    "data",
    "paragraphs",
]
DOCUMENT_KEYS += [
    "qas",
    "context",
    "question",
    "answers",
    "text",
    "samples",
    "eval",
    "input",
    "target",
    "epoch",
    "raw",
    "q",
]
LEAVES = SCALARS | st.sampled_from(
    ["{{ q }}", "{{", "file://x", "equals", "contains-any", '[{"role": "user", "content": "{{ q }}"}]']
)
DOCUMENTS = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(DOCUMENT_KEYS), inner, max_size=4),
    max_leaves=12,
)
TOPS = st.fixed_dictionaries({"prompts": DOCUMENTS, "tests": DOCUMENTS}, optional={"defaultTest": DOCUMENTS})
TOPS |= st.fixed_dictionaries({"samples": st.lists(DOCUMENTS, max_size=3), "eval": DOCUMENTS})
TOPS |= st.builds(
    lambda paragraphs, more: {"data": [{"paragraphs": paragraphs}, *more]}, DOCUMENTS, st.lists(DOCUMENTS, max_size=2)
)


@QUICK
@given(TOPS | DOCUMENTS, st.sampled_from(["json", "yaml", "jsonl", "csv", "tsv", "txt"]), st.binary(max_size=3))
def test_documents_and_files_never_fail_with_another_error(document: Any, suffix: str, more: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"p.{suffix}"
        text = json.dumps(document).encode()
        if suffix in ("csv", "tsv", "txt"):
            text = b"prompt;reference\n" + text
        path.write_bytes(text + (more if suffix != "json" else b""))
        config = PromptsConfig(path=str(path))
        try:
            str(prompts.summarise(prompts.load(config), config))
        except ConfigError as error:
            assert str(error).count("\n") < 3


PLAIN_VALUES = (
    st.none() | st.text(max_size=3) | st.integers(-2, 2) | st.floats() | st.booleans() | st.lists(st.text(max_size=2))
)

PLAIN_MESSAGES = MESSAGES | st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "assistant", "system"]),
            "content": st.sampled_from(["", " ", "a", "é", "\ud800"]),
        }
    ),
    max_size=4,
)


@QUICK
@given(
    st.lists(
        st.fixed_dictionaries(
            {"prompt": PLAIN_VALUES | st.sampled_from(["{x}", "[{", "é", "\ud800", '[{"role": "user"}]'])},
            optional={key: PLAIN_VALUES for key in ("id", "reference", "source", "completion", "label", "refrence")},
        )
        | st.fixed_dictionaries(
            {"messages": PLAIN_MESSAGES},
            optional={key: PLAIN_VALUES for key in ("id", "reference", "source", "prompt")},
        ),
        max_size=3,
    ),
    st.booleans(),
    st.none() | st.just("Be brief."),
)
def test_plain_entries_are_read_like_all_others(entries: list[Any], chat: bool, system: str | None) -> None:
    config = PromptsConfig(items=entries, chat=chat, system=system if chat else None)
    results = []
    for fast in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not fast:
                patch.setattr(PlainReader, "read", lambda *_: None)
            try:
                results.append([(prompt, prompt.reading) for prompt in prompts.load(config)])
            except ConfigError as error:
                results.append([(str(error), None)])
    assert results[0] == results[1]
