"""Documents: JSON and YAML files that are a mapping instead of a list of entries."""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sweep.errors import ConfigError
from sweep.inputs.choices import as_text
from sweep.inputs.entry_keys import is_missing
from sweep.inputs.jinja_text import JinjaText, is_template, render_limited
from sweep.inputs.messages import describe_type, is_chat

MATCHES = ("equals", "contains", "icontains", "contains-any", "icontains-any", "starts-with", "similar")
TEST_KEYS = ("vars", "assert")
MAX_COMBINATIONS = 10_000  # of the values of one test's variables
MAX_DEPTH = 5  # variables that refer to variables, as in promptfoo


@dataclass(frozen=True, slots=True)
class Document:
    """A layout of whole files.

    Attributes:
        name: value of `prompts.format`.
        recognise: return whether a mapping has this layout.
        entries: yield (place within the file, entry) for each entry. Arguments: the mapping, and the file's name for
            errors. Raises `ConfigError`.
    """

    name: str
    recognise: Callable[[Mapping[str, Any]], bool]
    entries: Callable[[Mapping[str, Any], str], Iterator[tuple[str, Any]]]


class DocumentEntry(dict[str, Any]):
    """An entry that was made from a part of a document.

    Attributes:
        form: name of the document's layout.
        unused: paths of the document, or of the part, that have no meaning for the prompt.
    """

    def __init__(self, fields: Mapping[str, Any], form: str, unused: tuple[str, ...] = ()) -> None:
        super().__init__(fields)
        self.form, self.unused = form, unused


def squad_entries(document: Mapping[str, Any], name: str) -> Iterator[tuple[str, Any]]:
    """Yield the questions of SQuAD's own JSON, in the layout of its data set on the hub."""
    top = tuple(str(key) for key in document if key != "data")
    for i, article in enumerate(document["data"]):
        for j, paragraph in enumerate(_list(article, "paragraphs", f"{name}:data[{i}]")):
            place = f"data[{i}].paragraphs[{j}]"
            for k, question in enumerate(_list(paragraph, "qas", f"{name}:{place}")):
                if not isinstance(question, Mapping):
                    raise ConfigError(f"{name}:{place}.qas[{k}]: must be a mapping; got {describe_type(question)}.")
                rest = {key: value for key, value in article.items() if key != "paragraphs"}
                rest |= {key: value for key, value in paragraph.items() if key != "qas"}
                yield f"{place}.qas[{k}]", DocumentEntry(rest | {"answers": []} | dict(question), "", top)


def inspect_entries(document: Mapping[str, Any], name: str) -> Iterator[tuple[str, Any]]:
    """Yield the samples of an Inspect AI log in JSON, the first epoch of each."""
    top = tuple(str(key) for key in document if key != "samples")
    for i, sample in enumerate(document["samples"]):
        if isinstance(sample, Mapping) and sample.get("epoch", 1) not in (1, "1"):
            continue  # the same prompt again
        yield f"samples[{i}]", DocumentEntry(sample, "", top) if isinstance(sample, Mapping) else sample


def promptfoo_entries(document: Mapping[str, Any], name: str) -> Iterator[tuple[str, Any]]:
    """Yield each prompt of a promptfoo configuration, filled with the variables of each test."""
    prompts = document["prompts"]
    templates = [_template(prompt, f"{name}:prompts[{i}]") for i, prompt in enumerate(_as_list(prompts))]
    default = document.get("defaultTest") or {}
    tests = document.get("tests") or [{}]
    for where, value in (("tests", tests), ("defaultTest", default)):
        if isinstance(value, str):
            raise ConfigError(f"{name}: {where} (promptfoo) refers to {value!r}. Write the tests into this file.")
    if not isinstance(tests, list) or not all(isinstance(test, Mapping) for test in (*tests, default)):
        raise ConfigError(f"{name}: tests (promptfoo) must be a list of mappings with vars.")
    top = tuple(str(key) for key in document if key not in ("prompts", "tests", "defaultTest"))
    top += tuple(f"defaultTest.{key}" for key in default if key not in TEST_KEYS)
    for j, test in enumerate(tests):
        place = f"tests[{j}]"
        variables = _variables(default, name, "defaultTest") | _variables(test, name, place)
        unused = top + tuple(f"tests.{key}" for key in test if key not in TEST_KEYS)
        references, rest = _references([*_asserts(default), *_asserts(test)])
        combinations = [_resolved(values, f"{name}:{place}") for values in _combinations(variables, f"{name}:{place}")]
        for i, template in enumerate(templates):
            read = _with_inner(template.variables, variables)
            not_read = tuple(f"vars.{key}" for key in variables if key not in read)
            for number, values in enumerate(combinations):
                where = f"{name}:{place}"
                entry = _rendered(render_limited(template, values, where)) | {
                    "id": _id(i, len(templates), j, number, combinations)
                }
                if references:
                    filled = [_filled(reference, values, where) for reference in references]
                    entry["reference"] = filled if len(filled) > 1 else filled[0]
                yield place, DocumentEntry(entry, "promptfoo", unused + rest + not_read)


def _filled(text: str, values: Mapping[str, Any], where: str) -> str:
    return render_limited(JinjaText(text, f"{where}.assert"), values, where)


def _id(prompt: int, prompts: int, test: int, number: int, combinations: list[dict[str, Any]]) -> str:
    parts = [f"prompt{prompt}"] if prompts > 1 else []
    parts.append(f"test{test:04d}")
    return "-".join([*parts, *([str(number)] if len(combinations) > 1 else [])])


def _rendered(text: str) -> dict[str, Any]:
    """Return the keys of a prompt, which promptfoo also writes as a chat in JSON."""
    try:
        chat = json.loads(text) if text.lstrip().startswith("[") else None
    except ValueError:
        chat = None
    return {"messages": chat} if is_chat(chat) else {"prompt": text}


def _template(prompt: Any, where: str) -> JinjaText:
    if isinstance(prompt, Mapping):
        prompt = prompt.get("raw", prompt.get("id"))
    if not isinstance(prompt, str):
        raise ConfigError(f"{where} (promptfoo) must be a text; got {describe_type(prompt)}.")
    if prompt.startswith("file://") or (
        "{{" not in prompt and prompt.rpartition(".")[2] in ("txt", "json", "js", "py", "md")
    ):
        raise ConfigError(f"{where} (promptfoo) refers to the file {prompt!r}. Write the prompt's text into this file.")
    return JinjaText(prompt, where)


def _variables(test: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    variables = test.get("vars") or {}
    if not isinstance(variables, Mapping):
        raise ConfigError(f"{name}:{where}: vars (promptfoo) must be a mapping; got {describe_type(variables)}.")
    for key, value in variables.items():
        if isinstance(value, str) and value.startswith("file://"):
            raise ConfigError(f"{name}:{where}: vars.{key} (promptfoo) refers to {value!r}. Write its text instead.")
    return {str(key): value for key, value in variables.items()}


def _combinations(variables: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Return all combinations of the values of variables that are lists, as promptfoo runs them."""
    options = [_options(value) for value in variables.values()]
    if (count := math.prod(map(len, options))) > MAX_COMBINATIONS:
        raise ConfigError(
            f"{where}: vars (promptfoo) have {count:,} combinations; the limit is {MAX_COMBINATIONS:,}. "
            "Shorten the lists."
        )
    return [dict(zip(variables, values, strict=True)) for values in itertools.product(*options)]


def _options(value: Any) -> list[Any]:
    return value if isinstance(value, list) and value else [value]


def _inner(value: Any, names: Collection[str]) -> frozenset[str]:
    """Return the variables that the text of a variable refers to."""
    if not isinstance(value, str) or not is_template(value):
        return frozenset()
    try:
        return JinjaText(value, "").variables & set(names)
    except ConfigError:  # a text about templates
        return frozenset()


def _with_inner(read: frozenset[str], variables: Mapping[str, Any]) -> frozenset[str]:
    """Return the variables that a prompt reads, and those that their texts refer to."""
    for _ in range(MAX_DEPTH):
        read = read.union(*(_inner(v, variables) for key in read & variables.keys() for v in _options(variables[key])))
    return read


def _resolved(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the values of variables with those that they refer to filled in.

    Raises:
        ConfigError: they refer to each other in a circle, or see `render_limited`.
    """
    for _ in range(MAX_DEPTH):
        referring = [key for key, value in values.items() if _inner(value, values)]
        if not referring:
            return values
        values = values | {
            key: render_limited(JinjaText(values[key], f"vars.{key}"), values, where) for key in referring
        }
    raise ConfigError(
        f"{where}: vars.{referring[0]} (promptfoo) refers to itself, or to too long a chain of variables."
    )


def _asserts(test: Mapping[str, Any]) -> list[Any]:
    return _as_list(test.get("assert") or [])


def _references(asserts: list[Any]) -> tuple[list[str], tuple[str, ...]]:
    """Return the texts that assertions compare with, and the paths of the assertions that are not used."""
    references, rest = [], []
    for assertion in asserts:
        kind = assertion.get("type") if isinstance(assertion, Mapping) else None
        values = _as_list(assertion.get("value")) if isinstance(assertion, Mapping) else []
        if str(kind).endswith("contains-any") and isinstance(assertion.get("value"), str):  # alternatives in one text
            values = _alternatives(assertion["value"])
        texts = [as_text(value) for value in values]
        if kind in MATCHES and texts and all(text is not None and text.strip() for text in texts):
            references += [text for text in texts if text is not None]
        else:
            rest.append(f"assert[{kind}]")
    return list(dict.fromkeys(references)), tuple(dict.fromkeys(rest))


def _alternatives(text: str) -> list[str]:
    """Return the texts between commas and line ends; the whole text if it is not CSV, such as one that is too long."""
    try:
        lines = list(csv.reader(text.splitlines(), skipinitialspace=True))
    except csv.Error:
        return [text]
    return [part.strip() for line in lines for part in line if part.strip()]


def _list(mapping: Any, key: str, where: str) -> list[Any]:
    if not isinstance(mapping, Mapping) or not isinstance(mapping.get(key), list):
        raise ConfigError(f"{where} (SQuAD) has no list {key!r}.")
    return list(mapping[key])


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if is_missing(value) else [value]


def _is_squad(document: Mapping[str, Any]) -> bool:
    data = document.get("data")
    return isinstance(data, list) and bool(data) and isinstance(data[0], Mapping) and "paragraphs" in data[0]


def _is_inspect(document: Mapping[str, Any]) -> bool:
    return isinstance(document.get("samples"), list) and "eval" in document


def _is_promptfoo(document: Mapping[str, Any]) -> bool:
    return "prompts" in document and bool({"tests", "providers", "defaultTest"} & document.keys())


DOCUMENTS: dict[str, Document] = {
    document.name: document
    for document in (
        Document("promptfoo", _is_promptfoo, promptfoo_entries),
        Document("squad_json", _is_squad, squad_entries),
        Document("inspect_log", _is_inspect, inspect_entries),
    )
}


def read_document(document: Any, name: str, wanted: str | None) -> Iterator[tuple[str, Any]]:
    """Yield (place, entry) of a list of entries, or of a document with a known layout.

    Args:
        document: the parsed file.
        name: the file's name, for errors.
        wanted: the layout that `prompts.format` names; None to recognise it.

    Raises:
        ConfigError: neither a list nor a known layout.
    """
    if isinstance(document, list) and wanted is None:
        yield from ((f"[{i}]", entry) for i, entry in enumerate(document))
        return
    layout = None
    if isinstance(document, Mapping):
        named = DOCUMENTS[wanted] if wanted is not None else None
        layout = next(
            (one for one in (DOCUMENTS.values() if named is None else [named]) if one.recognise(document)), None
        )
    if layout is None:
        keys = f" with the keys {', '.join(map(str, list(document)[:8]))}" if isinstance(document, Mapping) else ""
        expected = "a list of prompts" if wanted is None else f"a document in the format {wanted}"
        raise ConfigError(f"{name}:1: must hold {expected}; got {describe_type(document)}{keys}.")
    yield from layout.entries(document, name)
