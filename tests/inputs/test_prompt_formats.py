"""Formats that other tools write: small files of their real layouts, read right or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prompt_entries import ANSWER, USER, load_file, read, refusal, refuse_file

from sweep.errors import ConfigError
from sweep.inputs.formats import FORMATS
from sweep.inputs.prompts import Prompt
from sweep.inputs.readers import READERS

FOLDER = Path(__file__).parents[1] / "data" / "prompt_formats"


def chat(prompt: Prompt) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in prompt.messages or ()]


@pytest.mark.parametrize(
    ("name", "texts", "references", "said"),
    [
        ("openai_chat.jsonl", ["Capital of France?"], [()], "read as OpenAI chat"),
        (
            "openai_fine_tuning.jsonl",
            ["Capital of France?"],
            [("Paris, as everyone knows.",)],
            "1 with tools, read as OpenAI chat, last answer taken as reference for 1, not used: parallel_tool_calls, "
            "messages.weight",
        ),
        (
            "openai_preference.jsonl",
            ["Capital of France?"],
            [("Paris.",)],
            "read as OpenAI preference fine-tuning, not used: non_preferred_output, input.parallel_tool_calls",
        ),
        (
            "openai_batch.jsonl",
            ["Capital of France?", "The capital of Japan is", "Capital of Spain?"],
            [(), (), ()],
            "2 with a system message, read as OpenAI batch, not used: method, url, body.model, body.max_tokens",
        ),
        ("sharegpt.json", ["And of Japan?"], [("Tokyo.",)], "read as ShareGPT conversations, last answer taken"),
        ("sharegpt_tools.json", ['{"rain": true}'], [("Yes.",)], "1 with a system message, 1 with tools, read as Share"),
        ("trl_prompt_only.jsonl", ["Capital of France?"], [()], "read as messages under 'prompt'"),
        (
            "trl_prompt_completion.jsonl",
            ["Capital of France?", "The capital of Japan is", "The capital of Spain is"],
            [("Paris.",), ("Tokyo.",), ()],
            "read as TRL prompt and completion (2), not used: completion, label",
        ),
        ("trl_preference.jsonl", ["Capital of France?"], [()], "not used: chosen, rejected"),
        ("alpaca.json", ["Translate to French.\nGood morning", "Name a colour."], [("Bonjour",), ("Blue",)], "read as Alpaca"),
        ("alpaca.csv", ["Translate to French.\nGood; morning"], [("Bonjour",)], "read as Alpaca"),
        (
            "mt_bench.jsonl",
            ["You overtake the second person. What is your position?", "Write a haiku."],
            [("You are in second place.",), ()],
            "read as MT-bench, first turn only, not used: category, turns[1], reference[1]",
        ),
        (
            "squad_hub.jsonl",
            ["Super Bowl 50 was played at Levi's Stadium.\n\nWhere was it played?"],
            [("Levi's Stadium", "at Levi's Stadium")],
            "read as SQuAD, not used: title, answers.answer_start",
        ),
        (
            "squad.json",
            [
                "The Normans lived in Normandy, in France.\n\nIn what country is Normandy?",
                "The Normans lived in Normandy, in France.\n\nWho was Rollo?",
            ],
            [("France",), ()],
            "read as SQuAD, not used: title, is_impossible, answers.answer_start, version, plausible_answers",
        ),
        (
            "samples_gsm8k.jsonl",
            ["Question: 8+4?\nAnswer:"],
            [("12",)],
            "read as lm-eval samples, not used: doc, resps, filtered_resps, filter, metrics, doc_hash, prompt_hash, "
            "target_hash, exact_match, generation arguments",
        ),
        ("samples_chat.jsonl", ["8+4?"], [("12",)], "read as lm-eval samples"),
        (
            "inspect.jsonl",
            ["What cookie attributes should I use?", "Which is hot?", "Capital of Japan?"],
            [("secure samesite and httponly",), ("fire",), ("Tokyo", "Tōkyō")],
            "read as Inspect samples, not used: metadata, sandbox",
        ),
        (
            "inspect_log.json",
            ["Capital of France?"],
            [("Paris",)],
            "read as Inspect samples, not used: epoch, messages, output, scores, version, status, eval",
        ),
        ("openai_evals.jsonl", ["Capital of France?"], [("Paris", "Paris.")], "1 with a system message, read as OpenAI evals"),
        (
            "promptfooconfig.yaml",
            ["Translate to French: Good morning", "Good morning in French?", *(f"Translate to German: {text}" for text in ("Yes", "No")), "Yes in German?", "No in German?"],
            [("Bonjour",)] * 2 + [("Ja", "Nein")] * 4,
            "3 with a system message, read as promptfoo, not used: description, providers, assert[llm-rubric], "
            "tests.description",
        ),
        ("semicolons.csv", ["Capital of France; in one word?", "Capital of Japan?"], [("Paris, France",), ("Tokyo",)], "2 prompts"),
        ("tabs.tsv", ["Capital of France?"], [("Paris",)], "1 prompt, 1 with references"),
    ],
)  # fmt: skip
def test_formats_of_other_tools_are_read(name: str, texts: list[str], references: list[Any], said: str) -> None:
    loaded, summary = load_file(FOLDER / name)
    assert [prompt.text for prompt in loaded] == texts
    assert [prompt.references for prompt in loaded] == references
    assert said in summary


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("openai_batch_output.jsonl", ":1: is a result of an OpenAI batch, not a request. Use the batch's input file."),
        ("trl_implicit_preference.jsonl", "It looks like preference pairs. Only prompts are supported: add a key with"),
        (
            "samples_arc.jsonl",
            "lm-eval sample whose answers are not generated, such as multiple choice. Set prompts.pro",
        ),
        (
            "promptfoo_files.yaml",
            "prompts[0] (promptfoo) refers to the file 'file://prompt.txt'. Write the prompt's text",
        ),
    ],
)
def test_formats_that_cannot_be_read_are_named(name: str, message: str) -> None:
    found = refuse_file(FOLDER / name)
    assert message in found and name in found and "\n" not in found


def test_an_own_prompt_next_to_the_keys_of_a_log_stays_the_prompt() -> None:
    [prompt] = read({"prompt": "p0", "input": "inp", "target": "t", "output": "out"})
    assert (prompt.text, prompt.references, prompt.reading.form) == ("p0", (), "")
    [logged] = read({"messages": [USER, ANSWER], "input": "inp", "target": "t", "output": {}})
    assert (logged.text, logged.references, logged.reading.form) == ("inp", ("t",), "Inspect samples")


@pytest.mark.parametrize(
    ("label", "good"),
    [*((label, True) for label in (True, 1, "True", "true", "1")), *((b, False) for b in (False, 0, "False", "false", "0"))],
)  # fmt: skip
def test_labels_of_kto_say_whether_a_completion_is_good(label: Any, good: bool) -> None:
    assert read({"prompt": "q", "completion": "A", "label": label})[0].references == (("A",) if good else ())


def test_other_labels_are_refused_unless_there_is_another_reference() -> None:
    entry = {"prompt": "q", "completion": "A", "label": "sports"}
    assert "'label' (TRL) must say whether 'completion' is good: true, false, 1 or 0; got 'sports'" in refusal(entry)
    assert read(entry, map={"reference": "completion"})[0].references == ("A",)
    assert read(entry | {"reference": "R"})[0].references == ("R",)


@pytest.mark.parametrize(
    "entry",
    [
        {"input": [USER, {"role": "assistant", "content": "It is"}], "target": "Tokyo"},
        {"input": [USER, {"role": "assistant", "content": "It is"}], "ideal": "Tokyo"},
        {
            "doc_id": 0,
            "doc": {},
            "target": "Tokyo",
            "arguments": [[json.dumps([USER, {"role": "assistant", "content": "It is"}]), {}]],
        },
    ],
)
def test_a_chat_that_the_model_continues_needs_the_key_for_it(entry: dict[str, Any]) -> None:
    message = "the chat to send ends with an assistant message. Set prompts.continue_final_message=true"
    assert message in refusal(entry)
    assert chat(read(entry, continue_final_message=True)[0])[-1] == ("assistant", "It is")


def test_each_document_of_lm_eval_is_read_once(tmp_path: Path) -> None:
    sample = json.loads((FOLDER / "samples_gsm8k.jsonl").read_text())
    samples = [
        sample | {"doc_id": i, "filter": name, "arguments": [[f"Q{i}", {}]]}
        for name in ("strict", "flexible")
        for i in range(3)
    ]
    path = tmp_path / "samples.jsonl"
    path.write_text("\n".join(map(json.dumps, samples)))
    loaded, said = load_file(path)
    assert [(p.id, p.text) for p in loaded] == [("0", "Q0"), ("1", "Q1"), ("2", "Q2")]
    assert "filter[flexible]" in said and "filter[strict]" not in said
    assert len(load_file(path, template="{{ doc.question }}")[0]) == 3
    path.write_text("\n".join(json.dumps(s) for s in (samples[0], samples[3] | {"arguments": [["other", {}]]})))
    assert "the id '0' is already used" in refuse_file(path)  # another prompt is not left out


def promptfoo(folder: Path, prompt: str, variables: dict[str, Any]) -> Path:
    path = folder / "promptfoo.json"
    path.write_text(json.dumps({"prompts": [prompt], "tests": [{"vars": variables}]}))
    return path


def test_variables_of_promptfoo_refer_to_variables(tmp_path: Path) -> None:
    variables = {"a": "x {{b}} {{ other }}", "b": ["{{c}}1", "2"], "c": "C", "d": "D", "e": "100 {% of {{d}}"}
    loaded, said = load_file(promptfoo(tmp_path, "Say {{d}} {{e}}: {{a | upper}}", variables | {"other": "o"}))
    assert [p.text for p in loaded] == ["Say D 100 {% of {{d}}: X C1 O", "Say D 100 {% of {{d}}: X 2 O"]
    assert "vars." not in said
    assert [p.text for p in load_file(promptfoo(tmp_path, "{{a}}", {"a": "{{unknown}}"}))[0]] == ["{{unknown}}"]
    circle = refuse_file(promptfoo(tmp_path, "{{a}}", {"a": "{{b}}", "b": "{{a}}"}))
    assert "tests[0]: vars.a (promptfoo) refers to itself, or to too long a chain of variables." in circle


def test_alternatives_of_promptfoo_may_be_one_text(tmp_path: Path) -> None:
    path = tmp_path / "promptfoo.json"
    texts = {"contains-any": 'Yes, "No, thanks",Maybe,', "icontains-any": ["x, y"], "contains": "a, b"}
    alternatives = [{"type": kind, "value": value} for kind, value in texts.items()]
    alternatives.append({"type": "contains-any", "value": "c\nd, e\n"})
    alternatives.append({"type": "contains-any", "value": "z" * 2**18})  # longer than a field of CSV
    path.write_text(json.dumps({"prompts": ["Hi"], "tests": [{"assert": alternatives}]}))
    assert load_file(path)[0][0].references == (
        *("Yes", "No, thanks", "Maybe", "x, y", "a, b"),
        *("c", "d", "e", "z" * 2**18),
    )


def test_too_many_combinations_of_promptfoo_are_refused(tmp_path: Path) -> None:
    numbers = [str(i) for i in range(150)]
    found = refuse_file(promptfoo(tmp_path, "{{a}}{{b}}", {"a": numbers, "b": numbers}))
    assert "tests[0]: vars (promptfoo) have 22,500 combinations; the limit is 10,000. Shorten the lists." in found


def test_every_format_has_a_file() -> None:
    read = {prompt.reading.form for path in FOLDER.iterdir() for prompt in _loaded(path)}
    assert len(read) > len(FORMATS)  # with documents, and without those that are refused


def _loaded(path: Path) -> list[Prompt]:
    try:
        return load_file(path)[0]
    except ConfigError:
        return []


def test_tool_calls_and_ids_of_other_formats_are_kept() -> None:
    [prompt] = load_file(FOLDER / "sharegpt_tools.json")[0]
    assert prompt.messages is not None and prompt.messages[2]["tool_calls"] == [
        {"type": "function", "function": {"name": "rain", "arguments": {"city": "Oslo"}}}
    ]
    assert [p.id for p in load_file(FOLDER / "openai_batch.jsonl")[0]] == ["request-1", "request-2", "request-3"]
    assert [p.id for p in load_file(FOLDER / "mt_bench.jsonl")[0]] == ["101", "81"]
    assert chat(load_file(FOLDER / "alpaca.json")[0][1]) == [
        ("user", "Hi"),
        ("assistant", "Hello!"),
        ("user", "Name a colour."),
    ]


def test_format_overrides_the_guess(tmp_path: Path) -> None:
    path = tmp_path / "data.log"
    path.write_bytes((FOLDER / "alpaca.csv").read_bytes())
    assert "has an unknown suffix" in refuse_file(path)
    assert load_file(path, format="csv")[0][0].references == ("Bonjour",)
    assert load_file(path, format="csv+alpaca")[0][0].references == ("Bonjour",)
    found = refuse_file(path, format="csv+sharegpt")
    assert "data.log:2: is not in the format sharegpt of prompts.format (keys: instruction, input, output)" in found
    assert "prompts.format: 'alpacca' is not a format. Did you mean 'alpaca'?" in refuse_file(path, format="alpacca")
    assert "names two formats of one kind" in refuse_file(path, format="csv+tsv")
    entry = {"prompt": "A", "messages": [{"role": "user", "content": "B"}]}
    assert "is not among them" in refuse_file(None, items=[entry])
    [prompt] = load_file(None, items=[entry], format="prompt")[0]
    assert (prompt.text, prompt.reading.unused) == ("A", ("messages",))
    assert "must hold a document in the format squad_json" in refuse_file(FOLDER / "alpaca.json", format="squad_json")


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("p.jsonl", {"split": "x"}, "prompts.split must be null: p.jsonl has no splits or sheets; got 'x'."),
        ("p.csv.gz", {"split": "x"}, "prompts.split must be null: p.csv.gz has no splits or sheets; got 'x'."),
        ("p.jsonl", {"format": "promptfoo"}, "prompts.format: promptfoo is a format of a file in JSON or YAML, which p.jsonl is not. Remove it."),
        (None, {"format": "promptfoo"}, "prompts.format: promptfoo is a format of a file in JSON or YAML, which prompts.items is not. Remove it."),
        (None, {"format": "csv"}, "prompts.format: csv is a format of a file, which prompts.items is not. Remove it."),
        (None, {"format": "csv+alpaca"}, "prompts.format: csv is a format of a file, which prompts.items is not. Remove it."),
    ],
)  # fmt: skip
def test_keys_without_effect_are_refused(
    tmp_path: Path, name: str | None, config: dict[str, Any], message: str
) -> None:
    if name is None:
        assert refuse_file(None, items=["a"], **config) == message
    else:
        (tmp_path / name).write_text("")
        assert refuse_file(tmp_path / name, **config) == message


def test_a_file_of_examples_may_use_the_format(tmp_path: Path) -> None:
    path = tmp_path / "shots.log"
    path.write_text("prompt,reference\na,b\n")
    [prompt] = load_file(None, items=["c"], shots=1, shots_from=str(path), format="csv", chat=False)[0]
    assert prompt.text.startswith("a")


def test_readers_and_formats_of_plugins_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sweep.inputs.formats import Format, PromptEntry, register_format
    from sweep.inputs.readers import register_reader

    monkeypatch.setattr("sweep.inputs.formats.base.FORMATS", FORMATS)
    monkeypatch.delitem(FORMATS, "mine", raising=False)
    register_format(
        Format("mine", ("q",), lambda f: "q" in f, lambda f, p, c: PromptEntry(text=f["q"], form="mine", used=("q",)))
    )
    register_reader(".mine")(lambda file, name, config: iter([("1", {"q": file.read().decode()})]))
    try:
        (tmp_path / "p.mine").write_text("Hello?")
        assert load_file(tmp_path / "p.mine")[0][0].text == "Hello?"
    finally:
        del FORMATS["mine"], READERS[".mine"]
