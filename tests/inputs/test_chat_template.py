"""Chat templates: what they are given, the clock that they read, and their limits."""

from __future__ import annotations

import threading
import time
from datetime import datetime
from typing import Any

import pytest

from sweep.errors import ConfigError
from sweep.inputs import prompts
from sweep.inputs.bounded import bounded
from sweep.inputs.chat_template import check_variables, render
from sweep.inputs.checkpoint import Checkpoint
from sweep.inputs.config import PromptsConfig
from sweep.inputs.prompts import Prompt
from sweep.inputs.tokenization import encode
from tiny_models import make_tokenizer

NOON = datetime(2026, 11, 29, 12, 30)
USER = {"role": "user", "content": "Hi"}


def with_template(template: str) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def rendered(template: str, messages: Any = (USER,), **options: Any) -> str:
    return render(messages, with_template(template), **{"now": lambda: NOON} | options)


def test_template_receives_tools_variables_and_all_message_keys() -> None:
    template = (
        "{{ tools[0].name }} {{ enable_thinking }} {% for m in messages %}"
        "{{ m.name }}={{ m.content }}/{{ m.tool_calls[0].function }};{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    message = {"role": "assistant", "content": None, "name": "x", "tool_calls": [{"function": "f"}]}
    shown = rendered(template, [message], tools=[{"name": "t"}], variables={"enable_thinking": False})
    assert shown == "t False x=None/f;>"


def test_template_uses_the_given_clock_and_reads_it_only_if_needed() -> None:
    reads: list[None] = []

    def now() -> datetime:
        reads.append(None)
        return NOON

    assert rendered("{{ messages[0].content }}", now=now) == "Hi" and not reads
    assert rendered("{{ strftime_now('%d %b %Y %H:%M') }}", now=now) == "29 Nov 2026 12:30" and len(reads) == 1


@pytest.mark.parametrize(
    ("dated", "variables", "shown"),
    [(False, {}, "26 Jul 2024"), (True, {}, "29 Nov 2026"), (True, {"date_string": "today"}, "today")],
)
def test_configured_date_is_passed_to_templates_with_a_date(dated: bool, variables: dict[str, str], shown: str) -> None:
    llama = "{% if date_string is not defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}"
    assert rendered(llama, dated=dated, variables=variables) == shown


def test_template_exceptions_are_shown_without_control_characters() -> None:
    with pytest.raises(ConfigError) as error:
        rendered("{{ raise_exception('\x1b[31mno\x07') }}")
    assert str(error.value) == r"The chat template rejects the chat: \x1b[31mno\x07"


def test_a_template_that_takes_too_long_is_stopped() -> None:
    loop = "{% for i in range(300) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"The chat template did not finish: it took longer than 0\.1 s"):
        rendered(loop, seconds=0.1)
    assert time.monotonic() - began < 5
    assert rendered("fine") == "fine"


def test_a_template_that_takes_too_much_memory_is_stopped() -> None:
    with pytest.raises(ConfigError, match="The chat template needs more than 16 MiB of memory"):
        rendered("{{ 'x' * 200000000 }}", growth=16 * 2**20)
    assert len(rendered("{{ 'x' * 1000 }}", growth=16 * 2**20)) == 1000


def test_a_prompt_of_many_characters_is_refused() -> None:
    with pytest.raises(ConfigError, match="a prompt of more than 16777216 characters"):
        rendered("{{ 'x' * 16777217 }}")


def test_limits_apply_in_every_thread_and_are_removed_afterwards() -> None:
    found: list[str] = []

    def work() -> None:
        try:
            with bounded(seconds=0.05):
                while True:
                    pass
        except TimeoutError as error:
            found.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == ["it took longer than 0.05 s"] * 2
    with pytest.raises(ZeroDivisionError), bounded(seconds=5):
        raise ZeroDivisionError


def test_an_error_of_the_block_is_not_hidden() -> None:
    with pytest.raises(ValueError, match="own"), bounded():
        raise ValueError("own")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("enable_thinkng", r"the chat template of 'm' does not read 'enable_thinkng'"),
        ("tokenize", r"'tokenize' cannot be set here"),
        ("strftime_now", r"'strftime_now' cannot be set here"),
    ],
)
def test_variables_that_change_nothing_are_refused(name: str, message: str) -> None:
    tokenizer = with_template("{{ enable_thinking }}")
    check_variables({"enable_thinking": True}, tokenizer, "m")
    with pytest.raises(ConfigError, match=f"prompts.chat_template_kwargs: .*{message}"):
        check_variables({name: True}, tokenizer, "m")


def test_variables_without_a_chat_are_refused(checkpoint: Checkpoint) -> None:
    plain = prompts.load(PromptsConfig(items=["Hi"], chat=False))
    with pytest.raises(ConfigError, match=r"prompts\.chat_template_kwargs: no prompt is a chat"):
        encode(plain, checkpoint, variables={"enable_thinking": False})


def test_message_without_text_has_an_empty_range(checkpoint: Checkpoint) -> None:
    calls = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    [encoded] = encode([Prompt("a", "Hi", (USER, calls))], checkpoint)
    assert encoded.layout.contents is not None
    assert [(c.role, encoded.layout.text[c.start : c.stop]) for c in encoded.layout.contents] == [
        ("user", "Hi"),
        ("assistant", ""),
    ]


def test_an_error_names_the_prompt(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint.tokenizer, "chat_template", "{{ raise_exception('no system') }}")
    with pytest.raises(ConfigError, match=r"Prompt 'a': The chat template rejects the chat: no system"):
        encode([Prompt("a", "Hi", (USER,))], checkpoint)


def test_both_renderings_of_a_prompt_share_one_limit(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[None] = []

    def counted(seconds: float, growth: int) -> Any:
        entered.append(None)
        return bounded(seconds, growth)

    monkeypatch.setattr("sweep.inputs.chat_template.bounded", counted)
    encode(prompts.load(PromptsConfig(items=["Hi", "Ho"])), checkpoint)
    assert len(entered) == 2


def test_advice_for_a_model_without_a_template_depends_on_the_prompts(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint.tokenizer, "chat_template", None)
    start = f"The model {checkpoint.model.id!r} has no chat template"
    for entry, advice in (
        ({"prompt": "Hi"}, ". Set prompts.chat=false to send prompts as plain text."),
        ({"messages": [USER]}, ", which chats need. Choose a model that has one."),
    ):
        with pytest.raises(ConfigError) as error:
            encode(prompts.load(PromptsConfig(items=[entry])), checkpoint)
        assert str(error.value) == start + advice
