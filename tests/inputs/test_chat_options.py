"""Options of chats: prefill, a template from a file, variables, tool calls, and content parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prompt_entries import ANSWER, CALL, TOOL, USER, read, refusal

from sweep.errors import ConfigError
from sweep.inputs.checkpoint import Checkpoint
from sweep.inputs.config import PromptsConfig
from sweep.inputs.span import parse_span
from sweep.inputs.tokenization import encode
from tiny_models import TEMPLATE, make_model, make_tokenizer

CommandLine = Callable[..., tuple[int, str, str]]
PREFILL = {"messages": [USER, {"role": "assistant", "content": "The capital is "}]}


def test_final_message_is_continued(checkpoint: Checkpoint) -> None:
    prompts = read(PREFILL, continue_final_message=True)
    assert prompts[0].text == USER["content"] and prompts[0].references == ()
    [encoded] = encode(prompts, checkpoint, prefill=True)
    assert encoded.layout.text.endswith("<assistant>The capital is ")
    tokens = parse_span({"role": "assistant"}, "span").tokens(encoded.layout)
    assert checkpoint.tokenizer.decode([encoded.token_ids[i] for i in tokens]) == "The capital is "
    [split] = encode(read(PREFILL), checkpoint)
    assert split.layout.text.endswith("Japan?<eos><assistant>")


def test_keys_of_messages_that_the_template_does_not_mention_are_named(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sharegpt = {"conversations": [{"from": "human", "value": "x", "markdown": "m"}, {"from": "gpt", "value": "y"}]}
    entries = [{"messages": [USER | {"name": "Al", "foo": "bar"}]}, sharegpt]
    encode(read(*entries), checkpoint)
    [message] = caplog.messages
    assert "does not mention messages.foo, messages.markdown, messages.name, which probably has no effect." in message
    caplog.clear()
    monkeypatch.setattr(checkpoint.tokenizer, "chat_template", TEMPLATE.replace("m.content", "m.name ~ m.content"))
    encode(read({"messages": [USER | {"name": "Al"}]}), checkpoint)
    encode(read({"messages": [USER]}), checkpoint)
    assert not caplog.messages


def test_trimmed_final_message_is_located(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint.tokenizer, "chat_template", TEMPLATE.replace("m.content", "m.content | trim"))
    [encoded] = encode(read(PREFILL, continue_final_message=True), checkpoint, prefill=True)
    assert encoded.layout.text.endswith("<assistant>The capital is")
    assert encoded.layout.contents is not None and encoded.layout.contents[-1].stop == len(encoded.layout.text)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("Hi", "prompts.items[0]: prompts.continue_final_message needs a chat that ends with an assistant message; it"),
        ({"messages": [USER]}, "it ends with a user message. Add the beginning of the answer."),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "it ends with one without a text"),
    ],
)
def test_prefill_needs_an_assistant_message(entry: Any, message: str) -> None:
    assert message in refusal(entry, continue_final_message=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"continue_final_message": True, "chat": False}, "prompts.continue_final_message needs prompts.chat=true"),
        ({"continue_final_message": True, "shots": 1}, "prompts.shots cannot be used with prompts.continue_final"),
        ({"chat_template": "x.jinja", "chat": False}, "prompts.chat_template needs prompts.chat=true"),
        (
            {"template_kwargs": {"a": 1}, "chat_template_kwargs": {"a": 2}},
            "prompts.template_kwargs has 'a', which prompts.chat_template_kwargs also has: remove one",
        ),
    ],
)
def test_options_that_exclude_each_other_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        PromptsConfig(items=["Hi"], **config)
    assert str(error.value).startswith(message)


def test_template_from_a_file_replaces_the_models(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(
        "{% for m in messages %}[{{ m.role }}] {% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    before = checkpoint.tokenizer.chat_template
    [encoded] = encode(read("Hi"), checkpoint, template=str(path))
    assert encoded.layout.text == "[user] Hi" and checkpoint.tokenizer.chat_template == before
    monkeypatch.setattr(checkpoint.tokenizer, "chat_template", None)
    assert encode(read("Hi"), checkpoint, template=str(path))[0].layout.text == "[user] Hi"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "prompts.chat_template: there is no file"),
        (b"{% for m in messages %}", "mine.jinja:1: not a Jinja template: Unexpected end of template"),
        (b"\xff", "is not UTF-8 text"),
        (b"x" * (2**20 + 1), "is larger than 1024 KiB"),
    ],
)
def test_wrong_template_files_are_refused(
    checkpoint: Checkpoint, tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "mine.jinja").write_bytes(content)
    with pytest.raises(ConfigError) as error:
        encode(read("Hi"), checkpoint, template=str(tmp_path / "mine.jinja"))
    assert str(error.value).startswith("prompts.chat_template: ") and message in str(error.value)


def test_tools_and_calls_are_rendered_by_the_template(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Arguments are a mapping for the template, whether the file has them as JSON in a text or not."""
    path = tmp_path / "tools.jinja"
    path.write_text(
        "{% for t in tools %}{{ t.function.name }}: {{ t | tojson }}\n{% endfor %}{% for m in messages %}{{ m.content }}"
        "{% for c in m.tool_calls %}<call>{{ c.function.arguments | tojson }}</call>{% endfor %}{% endfor %}"
    )
    written = {**CALL, "function": {**CALL["function"], "arguments": json.dumps(CALL["function"]["arguments"])}}
    inspect = {"id": "c1", "function": "weather", "arguments": {"city": "Oslo"}}
    texts = []
    for call in (CALL, written, inspect):
        chat = [USER, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "rain"}]
        [encoded] = encode(read({"messages": chat, "tools": [TOOL]}), checkpoint, template=str(path))
        texts.append(encoded.layout.text)
    assert texts[0] == texts[1] == texts[2]
    assert texts[0].endswith('<call>{"city": "Oslo"}</call>rain') and '"minProperties": 1' in texts[0]
    broken = {**CALL, "function": {"name": "weather", "arguments": "{not JSON"}}
    chat = [USER, {"role": "assistant", "content": "", "tool_calls": [broken]}, USER]
    assert read({"messages": chat})[0].messages[1]["tool_calls"] == [broken]  # type: ignore[index]


def test_images_are_refused_with_advice() -> None:
    image = {
        "role": "user",
        "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}],
    }
    found = refusal({"messages": [image, ANSWER]})
    assert "is a part of type 'image_url'. Only text is supported (type 'text'). The transform encoder puts" in found


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model whose template reads `enable_thinking`."""
    folder = make_model(tmp_path_factory.mktemp("thinking") / "model")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE + "{% if enable_thinking is defined and not enable_thinking %}<none>{% endif %}"
    tokenizer.save_pretrained(folder)
    return folder


def test_variables_of_the_template_are_swept(
    command_line: CommandLine, no_engine: None, thinking: Path, tmp_path: Path
) -> None:
    common = [f"model.id={thinking}", f"sweep.dir={tmp_path}", "transform=scale", "transform.factor=1.2"]
    code, out, err = command_line(
        *common, "prompts.template_kwargs.enable_thinking=true,false", "sweep.dry_run=true", "sweep.show_prompt=1"
    )
    assert code == 0, err
    fingerprints = [line.rpartition(" ")[2] for line in out.splitlines() if "fingerprint" in line]
    assert len(fingerprints) == len(set(fingerprints)) == 4
    assert out.count("<assistant>⟧\n") == out.count("<assistant><none>⟧\n") == 1
    code, out, err = command_line(*common, "prompts.template_kwargs.enable_thinkin=true", "sweep.dry_run=true")
    assert code == 2 and "prompts.template_kwargs: the chat template of " in err and "'enable_thinkin'" in err


def test_show_prompt_marks_the_spans(
    command_line: CommandLine, no_engine: None, thinking: Path, tmp_path: Path
) -> None:
    arguments = [
        f"model.id={thinking}", f"sweep.dir={tmp_path}", "transform=scale", "transform.factor=1.2,1.5",
        "transform.span={substring: Hello}", "prompts.items=[{id: a, prompt: Hello you}, Other]",
        "sweep.dry_run=true", "sweep.show_prompt=1",
    ]  # fmt: skip
    code, out, err = command_line(*arguments)
    assert code == 0, err
    title, text = out.splitlines()[:2]
    assert title.startswith("prompt 'a' of ") and title.endswith(
        ": 13 tokens; scale, span {substring: Hello}: 5 tokens"
    )
    assert text == "<bos><user>⟦Hello⟧ you<eos><assistant>" and out.count("⟦") == 1
    code, out, err = command_line(*arguments[:-3], "prompts.items=[Other]", *arguments[-2:])
    assert "scale: the span {substring: Hello} is empty" in out
