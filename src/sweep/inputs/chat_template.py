"""Chat templates: rendering of chats by the model's template, with a fixed clock and resource limits."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sweep.errors import ConfigError
from sweep.inputs.bounded import GROWTH, SECONDS, bounded

Clock = Callable[[], datetime]

# Parameters of Transformers' `apply_chat_template`, and functions that templates call.
RESERVED = frozenset(
    [
        "conversation",
        "messages",
        "tools",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
        "strftime_now",
        "raise_exception",
    ]
)

MAX_CHARACTERS = 2**24  # of a rendered prompt
CLOCK_NAMES = ("strftime_now", "date_string")
DATE_STRING = "%d %b %Y"  # format of the variable `date_string` of Llama's templates


def render(messages: Sequence[Mapping[str, Any]], tokenizer: Any, **options: Any) -> str:
    """Return one chat rendered by the model's template. See `render_all` for options and errors."""
    [text] = render_all([messages], tokenizer, **options)
    return text


def render_all(
    chats: Sequence[Sequence[Mapping[str, Any]]],
    tokenizer: Any,
    *,
    now: Clock,
    tools: Sequence[Mapping[str, Any]] = (),
    variables: Mapping[str, Any] | None = None,
    dated: bool = False,
    seconds: float = SECONDS,
    growth: int = GROWTH,
) -> list[str]:
    """Return chats rendered by the model's template, each up to the start of the answer.

    All chats share one resource limit, because entering the limit takes as long as rendering.

    Args:
        chats: the chats, with all keys of each message.
        tokenizer: the `transformers` tokenizer.
        now: called when the template asks for the time.
        tools: definitions of tools that the model may call.
        variables: further template variables, such as `enable_thinking`.
        dated: whether the user set the date. If so, templates that read `date_string` get it too.
        seconds: time limit for all chats together.
        growth: memory limit in bytes.

    Raises:
        ConfigError: the template rejects a chat, fails, or exceeds a limit.
    """

    def strftime_now(form: str) -> str:
        return now().strftime(form)

    template_variables = dict(variables or {})
    template = template_text(tokenizer, tools)
    if dated and "date_string" not in template_variables and mentions(template, "date_string"):
        template_variables["date_string"] = strftime_now(DATE_STRING)
    try:
        with bounded(seconds, growth):
            # A variable shadows the function of the same name that Transformers passes to templates.
            texts = [
                tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    tools=[dict(tool) for tool in tools] or None,
                    tokenize=False,
                    add_generation_prompt=True,
                    strftime_now=strftime_now,
                    **template_variables,
                )
                for messages in chats
            ]
    except TimeoutError as error:
        raise ConfigError(f"The chat template did not finish: {error}.") from error
    except MemoryError as error:
        raise ConfigError(f"The chat template needs more than {growth / 2**20:.0f} MiB of memory.") from error
    except Exception as error:  # templates may raise any exception, Jinja's included
        raise ConfigError(f"The chat template rejects the chat: {printable(str(error)) or type(error).__name__}") from (
            error
        )
    if any(not isinstance(text, str) or len(text) > MAX_CHARACTERS for text in texts):
        raise ConfigError(f"The chat template renders a prompt of more than {MAX_CHARACTERS} characters.")
    return texts


def check_variables(variables: Mapping[str, Any], tokenizer: Any, model: str) -> None:
    """Reject variables that the template does not read, and names that cannot be set.

    Raises:
        ConfigError: names the variable.
    """
    key = "prompts.chat_template_kwargs"
    template = template_text(tokenizer)
    for name in variables:
        if name in RESERVED:
            raise ConfigError(f"{key}: {name!r} cannot be set here. It is reserved for rendering the template.")
        if not mentions(template, name):
            raise ConfigError(
                f"{key}: the chat template of {model!r} does not read {name!r}. Check its spelling, or remove it."
            )


def template_text(tokenizer: Any, tools: Sequence[Any] = ()) -> str:
    """Return the template's source; the sources of all templates if there are several and no default."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        chosen = template.get("tool_use") if tools else None
        template = chosen or template.get("default") or "\n".join(map(str, template.values()))
    return str(template or "")


def reads_clock(tokenizer: Any) -> bool:
    """Return whether a template reads the clock or the variable `date_string`."""
    template = tokenizer.chat_template
    texts = template.values() if isinstance(template, dict) else (template,)
    return any(mentions(str(text), name) for text in texts for name in CLOCK_NAMES)


def mentions(template: str, name: str) -> bool:
    """Return whether a template contains a name, comments included."""
    return re.search(rf"\b{re.escape(name)}\b", template) is not None


def printable(text: str, limit: int = 300) -> str:
    """Return a text with control characters escaped, cut after `limit` characters."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: limit + 1])
    return shown if len(text) <= limit else shown[:limit] + " …"
