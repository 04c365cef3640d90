"""Keys and templates that make prompts of other keys, and few-shot examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prompt_entries import load_file, read, refusal, refuse_file, summary

from sweep.inputs import jinja_text
from sweep.inputs.checkpoint import Checkpoint
from sweep.inputs.span import parse_span
from sweep.inputs.tokenization import encode

GSM = {"question": "8+4?", "answer": "8+4=12 #### 12", "level": 1}
SUMS = [{"id": f"s{i}", "question": f"{i}+1?", "answer": str(i + 1)} for i in range(8)]
SQUAD = {"id": "q", "context": "C.", "question": "Q?", "answers": {"text": ["A"], "answer_start": [0]}}


def test_keys_and_templates_make_prompts() -> None:
    mapped = {"prompt": "question", "reference": "{{ answer.split('####')[-1].strip() }}"}
    [prompt] = read(GSM, map=mapped)
    assert (prompt.text, prompt.references, prompt.reading.unused) == ("8+4?", ("12",), ("level",))
    nested = {"doc": {"q": "Hot?", "options": ["ice", "fire"], "label": 1}}
    [prompt] = read(nested, map={"prompt": "doc.q", "choices": "doc.options", "reference": "doc.label"})
    assert (prompt.choices, prompt.references) == (("ice", "fire"), ("fire",))
    [chat] = read(
        {"chat": [{"role": "user", "content": "Hi"}], "who": "Be brief."}, map={"messages": "chat", "system": "who"}
    )
    assert [m["content"] for m in chat.messages or ()] == ["Be brief.", "Hi"]


@pytest.mark.parametrize(
    ("entry", "template", "text"),
    [
        (GSM, r"Q: {{question}}\nA:", "Q: 8+4?\nA:"),
        (GSM, "Q: {{question}}\nA:", "Q: 8+4?\nA:"),
        ("Hi", "{{prompt}}!", "Hi!"),
        ({"prompt": "Hi", "n": None}, "{{prompt}}{% if n %} {{n}}{% endif %}{{n}}", "Hi"),
        ({"prompt": "Hi", "x": [1, 2]}, "{% for i in x %}\n{{i}}\n{% endfor %}\n{{prompt}}", "1\n2\nHi"),
        ({"instruction": "Do.", "input": "it", "output": "done"}, "### {{instruction}}\n", "### Do.\n"),
        ({"q": "Hi"}, r"{{q}}\nA:\t", "Hi\nA:\t"),
        ({"q": "Hi"}, r"$\\times$ \frac {{q}}\\n", r"$\times$ \frac Hi\n"),
        ({"q": "a\\b"}, r"{{ q.replace('\\', '/') }}{{ '\n' }}.", "a/b\n."),
    ],
)  # fmt: skip
def test_templates_are_jinja(entry: Any, template: str, text: str) -> None:
    assert read(entry, template=template)[0].text == text


def test_a_mapped_value_that_is_missing_is_not_taken_from_another_key() -> None:
    rows = [
        {
            "question": "q",
            "short": "S",
            "reference": "LONG",
            "id": "a",
            "name": "n",
            "system": "s",
            "tools": [],
            "who": "w",
        },
        {"question": "r", "short": None, "reference": "LONG2", "id": "b", "name": None, "system": "s", "who": None},
    ]
    mapped = {"prompt": "question", "reference": "short", "id": "name", "system": "who"}
    [first, second] = read(*rows, map=mapped)
    assert (first.id, first.references, (first.messages or ())[0]["content"]) == ("n", ("S",), "w")
    assert (second.id, second.references, [m["role"] for m in second.messages or ()]) == ("p0001", (), ["user"])
    assert second.reading.unused == ("reference", "id", "system")
    squad = {**SQUAD, "short": None}, {**SQUAD, "id": "z", "short": "A2"}
    assert [p.references for p in read(*squad, map={"reference": "{{ short }}"})] == [(), ("A2",)]
    turns_given = {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "LONG"}]}
    assert [
        p.references for p in read(turns_given | {"s": None}, turns_given | {"s": "S"}, map={"reference": "s"})
    ] == [
        (),
        ("S",),
    ]


def test_constants_are_computed_only_for_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setitem(jinja_text._ENVIRONMENT.filters, "probe", lambda value: calls.append(value) or value)
    template = jinja_text.JinjaText("{{ 6 * 7 }}{{ none }}{{ 'x' | probe }}{{ a | default(1 | probe) }}", "template")
    assert (calls, template.variables) == ([], {"a"})
    assert template.render({"a": 2}, "here") == "42x2" and calls == ["x", 1]


def test_ids_and_references_of_a_recognised_format_stay() -> None:
    [prompt] = read(SQUAD, template="{{question}}")
    assert (prompt.id, prompt.text, prompt.references) == ("q", "Q?", ("A",))
    assert summary(SQUAD, template="{{question}}") == (
        "1 prompt, 1 with references, read as SQuAD, not used: context, answers.answer_start"
    )
    assert read(SQUAD, template="{{question}}", map={"reference": "context"})[0].references == ("C.",)
    alpaca = {"instruction": "a", "input": "b", "output": "c"}
    assert summary(alpaca, template="{{instruction}}").endswith("read as Alpaca, not used: input")
    assert summary({"prompt": "x", "reference": "r", "a": "b"}, map={"reference": "a"}).endswith("not used: reference")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"template": "{{questoin}}"}, "prompts.items[0]: prompts.template: 'questoin' is undefined (keys: question, "),
        ({"template": "{{questoin}}"}, "Did you mean 'question'?"),
        ({"template": "{{question"}, "prompts.template: not a Jinja template: "),
        ({"template": "{{ question.missing }}"}, "has no attribute 'missing'"),
        ({"template": "{{ level / 0 }}"}, "the template fails: division by zero"),
        ({"template": "{{ ''.__class__.__mro__ }}"}, "access to attribute '__class__' of 'str' object is unsafe"),
        ({"template": "{% for i in range(10**9) %}{% endfor %}"}, "the template fails: Range too big"),
        ({"template": "{{question}}{{ (7 ** 6000) | string }}"}, "the template fails: Exceeds the limit (4300 digits)"),
        (
            {"template": "{{question}}{{ " + "1" * 5000 + " }}"},
            "prompts.template: not a Jinja template: Exceeds the lim",
        ),
        ({"template": "{{ [question] | random }}"}, "prompts.template: not a Jinja template: No filter named 'random'"),
        ({"template": "{{ lipsum() }}"}, "prompts.template: 'lipsum' is undefined"),
        ({"template": "{{ '' }}"}, "prompts.map or prompts.template gives an empty prompt"),
        ({"map": {"prompt": "questoin"}}, "prompts.map.prompt: no entry of prompts.items has 'questoin'"),
        ({"map": {"promt": "question"}}, "prompts.map: 'promt' is not a key of an entry. Did you mean 'prompt'?"),
        ({"map": {"prompt": "question"}, "prompt_key": "answer"}, "prompts.prompt_key cannot be used with a map"),
        ({"map": {"prompt": "question"}, "template": "x"}, "prompts.template cannot be used with prompts.map.prompt"),
        ({"map": {"prompt": "level"}}, "'prompt' must be a non-empty string or a list of messages; got the number 1"),
    ],
)
def test_wrong_maps_are_refused_with_the_place(config: dict[str, Any], message: str) -> None:
    found = refusal(GSM, **config)
    assert message in found and "\n" not in found


def test_templates_are_limited_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweep.inputs.prompts.SECONDS", 0.1)
    loop = "{% for i in range(9000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}x"
    assert "prompts.template or prompts.map did not finish: it took longer than" in refusal(GSM, template=loop)


def test_columns_of_a_map_are_read_from_tables(tmp_path: Path) -> None:
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([GSM]), tmp_path / "p.parquet")
    assert load_file(tmp_path / "p.parquet", template="{{level}}: {{question}}")[0][0].text == "1: 8+4?"


MAP = {"prompt": "question", "reference": "answer"}


def turns(prompt: Any) -> list[str]:
    return [message["content"] for message in prompt.messages]


def test_shots_are_turns_of_chats() -> None:
    prompts = read(*SUMS, map=MAP, shots=2, system="Add.")
    for prompt, entry in zip(prompts, SUMS, strict=True):
        assert prompt.text == entry["question"] and prompt.references == (entry["answer"],)
        roles = [message["role"] for message in prompt.messages or ()]
        assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
        contents = turns(prompt)[1:]
        assert [eval(q[:-1]) for q in contents[:4:2]] == [int(a) for a in contents[1:4:2]]
        assert len(set(contents[::2])) == 3  # no example twice, and none is the prompt itself


def test_shots_of_plain_texts_are_joined() -> None:
    prompt = read(*SUMS, map=MAP, shots=1, chat=False, template=None)[0]
    example, own = prompt.text.split("\n\n")
    question, answer = example.split(" ")
    assert own == "0+1?" and eval(question[:-1]) == int(answer)


def test_choice_of_shots_depends_on_seed_and_id_alone() -> None:
    first = read(*SUMS, map=MAP, shots=3)
    assert read(*SUMS, map=MAP, shots=3) == first
    assert read(*SUMS, map=MAP, shots=3, shots_seed=1) != first
    assert len({tuple(turns(prompt)[:-1]) for prompt in first}) > 4


def test_shots_come_from_a_file_or_split(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"question": f"x{i}", "answer": "y"}) + "\n" for i in range(3)))
    prompts = read(*SUMS, map=MAP, shots=3, limit=2, shots_from=str(path))
    assert len(prompts) == 2 and sorted(turns(prompts[0])[:6:2]) == ["x0", "x1", "x2"]
    import datasets

    rows = [{"question": q, "answer": "y"} for q in ("a", "b")]
    parts = {"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_list(SUMS)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    loaded, _ = load_file(tmp_path / "saved", split="test", map=MAP, shots=2, shots_from="train")
    assert sorted(turns(loaded[0])[:4:2]) == ["a", "b"] and len(loaded) == len(SUMS)
    found = refuse_file(tmp_path / "saved", split="test", map=MAP, shots=2, shots_from="trian")
    assert "has no split 'trian'. Did you mean 'train'?" in found


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"shots": 8}, "has only 7 other examples with a reference for the prompt 's0'; 8 are needed"),
        ({"shots": 1, "shots_from": "train"}, "'train' is neither a file nor a split"),
        ({"shots": -1}, "prompts.shots must be 0 (none) or more"),
    ],
)
def test_wrong_shots_are_refused(config: dict[str, Any], message: str) -> None:
    assert message in refusal(*SUMS, map=MAP, **config)


def test_no_shots_are_the_control_of_some() -> None:
    assert read(*SUMS, map=MAP, shots=0, shots_seed=3, shots_from="train") == read(*SUMS, map=MAP)


@pytest.mark.parametrize("chat", [True, False])
def test_a_span_finds_the_own_text_after_examples(checkpoint: Checkpoint, chat: bool) -> None:
    [first, *_] = encode(read(*SUMS, map=MAP, shots=2, chat=chat), checkpoint)
    tokens = parse_span({"placeholder": "prompt"}, "span").tokens(first.layout)
    assert checkpoint.tokenizer.decode([first.token_ids[i] for i in tokens]) == "0+1?"
