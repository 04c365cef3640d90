"""Chat templates: rendering of chats by the model's template, with a fixed clock and resource limits."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser

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

KWARGS = "prompts.chat_template_kwargs"
MAX_TEMPLATE = 2**20  # maximum bytes of a template in a file
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
    prefill: bool = False,
    seconds: float = SECONDS,
    growth: int = GROWTH,
) -> list[str]:
    """Return chats rendered by the model's template, each up to the start or the continuation of the answer.

    All chats share one resource limit, because entering the limit takes as long as rendering.

    Args:
        chats: the chats, with all keys of each message.
        tokenizer: the `transformers` tokenizer.
        now: called when the template asks for the time.
        tools: definitions of tools that the model may call.
        variables: further template variables, such as `enable_thinking`.
        dated: whether the user set the date. If so, templates that read `date_string` get it too.
        prefill: whether the model continues the last message, which is the assistant's.
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
                    add_generation_prompt=not prefill,
                    **({"continue_final_message": True} if prefill else {}),
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


def with_template(tokenizer: Any, path: str) -> Any:
    """Return a copy of a tokenizer with the chat template in a file.

    Raises:
        ConfigError: the file cannot be read, or is not a Jinja template.
    """
    key = "prompts.chat_template"
    file = Path(path).expanduser()
    try:
        if not file.is_file():
            raise ConfigError(f"{key}: there is no file {path!r}.")
        with file.open("rb") as opened:
            data = opened.read(MAX_TEMPLATE + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: {path[:200]!r} cannot be read: {error}.") from error
    if len(data) > MAX_TEMPLATE:
        raise ConfigError(f"{key}: {path!r} is larger than {MAX_TEMPLATE // 2**10} KiB.")
    try:
        template = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{key}: {path!r} is not UTF-8 text.") from error
    try:
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols", _Generation]).parse(template)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"{key}: {path}:{error.lineno}: not a Jinja template: {error.message}.") from error
    changed = copy.copy(tokenizer)
    changed.chat_template = template
    return changed


class _Generation(Extension):
    """The tag `generation`, which Transformers adds to Jinja to mark the assistant's tokens."""

    tags: set[str] = {"generation"}  # noqa: RUF012  # as the base class declares it

    def parse(self, parser: Parser) -> list[Node]:
        """Return the statements between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def check_variables(variables: Mapping[str, Any], tokenizer: Any, model: str, key: str = KWARGS) -> None:
    """Reject variables that the template does not read, and names that cannot be set.

    Raises:
        ConfigError: names the variable.
    """
    template = template_text(tokenizer)
    for name in variables:
        if name in RESERVED:
            raise ConfigError(f"{key}: {name!r} cannot be set here. It is reserved for rendering the template.")
        if not mentions(template, name):
            raise ConfigError(
                f"{key}: the chat template of {model!r} does not read {name!r}. Check its spelling, or remove it."
            )


def unread_keys(chats: Iterable[Sequence[Mapping[str, Any]]], tokenizer: Any) -> list[str]:
    """Return the keys of messages whose names the chat template does not contain, sorted."""
    keys = {key for messages in chats for message in messages for key in message} - {"role", "content"}
    template = template_text(tokenizer) if keys else ""
    return sorted(key for key in keys if not mentions(template, key))


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
