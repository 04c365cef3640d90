"""Prompts from every format, and what is said of malformed ones."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from sweep.errors import ConfigError
from sweep.inputs import prompts
from sweep.inputs.checkpoint import Checkpoint, find
from sweep.inputs.config import ModelConfig, PromptsConfig
from sweep.inputs.tokenization import check_lengths, encode
from tiny_models import make_model, make_tokenizer

ENTRIES = [{"id": "a", "prompt": "One?", "reference": "1"}, {"id": "b", "prompt": 'Two, or "2"?'}]


def write(folder: Path, name: str) -> Path:
    path = folder / name
    if path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(entry) for entry in ENTRIES) + "\n")
    elif path.suffix in (".yaml", ".json"):
        path.write_text(json.dumps(ENTRIES))
    elif path.suffix == ".csv":
        path.write_text('id,prompt,reference\na,One?,1\nb,"Two, or ""2""?",\n')
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ENTRIES), path)
    return path


@pytest.mark.parametrize("name", ["p.jsonl", "p.yaml", "p.json", "p.csv", "p.parquet"])
def test_all_formats_give_the_same_prompts(tmp_path: Path, name: str) -> None:
    loaded = prompts.load(PromptsConfig(path=str(write(tmp_path, name))))
    assert loaded == prompts.load(PromptsConfig(items=list(ENTRIES)))
    assert [(p.id, p.text, p.references) for p in loaded] == [("a", "One?", ("1",)), ("b", 'Two, or "2"?', ())]


def test_text_files_have_one_prompt_per_line(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("One?\n\nTwo?\n")
    assert [p.text for p in prompts.load(PromptsConfig(path=str(tmp_path / "p.txt")))] == ["One?", "Two?"]


def test_system_messages_limits_and_other_keys() -> None:
    entries = [{"question": "Q1", "answers": ["x", "y"]}, {"question": "Q2"}]
    config = PromptsConfig(items=entries, system="Be brief.", limit=1, prompt_key="question", reference_key="answers")
    [only] = prompts.load(config)
    assert only.messages == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q1"})
    assert only.references == ("x", "y")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", '{"prompt": "fine"}\n{"prompt": }\n', r"p\.jsonl:2: not JSON"),
        ("p.jsonl", '{"prompt": "fine"}\n\n{"text": "x"}\n', r"p\.jsonl:3: has neither"),
        (
            "p.jsonl",
            '{"prompt": 7}\n',
            r"p\.jsonl:1: .prompt. must be a non-empty string or a list of messages; got the number 7",
        ),
        ("p.jsonl", "[1]\n", r"p\.jsonl:1: a prompt must be a string or a mapping; got a list"),
        ("p.jsonl", '{"messages": [{"role": "user"}]}\n', r"p\.jsonl:1: messages\[0\] \(role user\) has no content"),
        ("p.jsonl", '{"prompt": "x", "reference": {}}\n', r"p\.jsonl:1: 'reference' must be"),
        ("p.jsonl", "", "prompt list is empty"),
        ("p.yaml", "- a\n- [b\n", r"p\.yaml:3: not YAML"),
        ("p.yaml", "a: b\n", "must hold a list of prompts"),
        ("p.csv", 'prompt\n"never closed\n', r"p\.csv:\d: not CSV"),
        ("p.csv", "id,prompt\na,Hello, world\n", r"p\.csv:2: has 3 fields; expected 2, as in the header"),
        ("p.json", '[{"prompt": "x"},\n}]', r"p\.json:2: not JSON"),
        ("p.yaml", "- a\x01", "not YAML"),
        ("p.parquet", "no", "not Parquet"),
        ("p.docx", "no", "has an unknown suffix"),
        ("p.jsonl", '{"id": 1, "prompt": "a"}\n{"id": "1", "prompt": "b"}\n', "'1' is already used at "),
    ],
)
def test_malformed_files_are_named_with_the_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        prompts.load(PromptsConfig(path=str(path)))


def test_text_is_read_unchanged(tmp_path: Path) -> None:
    text = "line\u2028separator, \x85, \U0001f600"
    for name in ("p.jsonl", "p.json"):
        document = {"prompt": text} if name == "p.jsonl" else [{"prompt": text}]
        (tmp_path / name).write_text("\ufeff" + json.dumps(document, ensure_ascii=name == "p.json"), encoding="utf-8")
        assert [p.text for p in prompts.load(PromptsConfig(path=str(tmp_path / name)))] == [text]


def test_binary_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        prompts.load(PromptsConfig(path=str(tmp_path / "p.jsonl")))
    with pytest.raises(ConfigError, match="no file 'nowhere"):
        prompts.load(PromptsConfig(path="nowhere.jsonl"))


def test_template_is_applied_to_chats_only(checkpoint: Checkpoint) -> None:
    chat, plain = (prompts.load(PromptsConfig(items=["Hi"], chat=chat)) for chat in (True, False))
    text = checkpoint.tokenizer.decode(encode(chat, checkpoint)[0].token_ids)
    assert text == "<bos><user>Hi<eos><assistant>"
    assert checkpoint.tokenizer.decode(encode(plain, checkpoint)[0].token_ids) == "Hi"


def test_error_without_a_chat_template_names_the_setting(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    make_tokenizer(chat_template=False).save_pretrained(folder)
    checkpoint = find(ModelConfig(id=str(folder)))
    with pytest.raises(ConfigError, match=r"no chat template\. Set prompts\.chat=false"):
        encode(prompts.load(PromptsConfig(items=["Hi"])), checkpoint)
    assert encode(prompts.load(PromptsConfig(items=["Hi"], chat=False)), checkpoint)


def test_long_prompts_are_named(checkpoint: Checkpoint) -> None:
    encoded = encode(prompts.load(PromptsConfig(items=[{"id": "long", "prompt": "x" * 600}])), checkpoint)
    with pytest.raises(ConfigError, match=r"'long' has 604 tokens; the context is 512"):
        check_lengths(encoded, checkpoint.context)
