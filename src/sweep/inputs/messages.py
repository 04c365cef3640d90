"""Chat messages in the formats of OpenAI and ShareGPT, with content as a string or in parts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sweep.errors import ConfigError
from sweep.inputs.entry_keys import is_missing
from sweep.util.validators import require_choice

Message = dict[str, Any]  # role, content and other keys that the chat template may read: tool_calls, name, …

# Roles known to chat templates. Most templates render unknown roles without an error.
ROLES = ("user", "assistant", "system", "developer", "tool", "function", "ipython", "model", "document")
ASSISTANT_ROLES = ("assistant", "model")
SYSTEM_ROLES = ("system", "developer")
TEXT_ROLES = ("user", *SYSTEM_ROLES, "document")  # messages of these roles need a text

SHAREGPT = {  # ShareGPT's role names
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
TEXT_PARTS = ("text", "input_text", "output_text")


def is_chat(value: Any) -> bool:
    """Return whether a value looks like a list of messages."""
    return isinstance(value, list) and any(isinstance(m, Mapping) and ("role" in m or "from" in m) for m in value)


def read_chat(value: Any, where: str) -> list[Message]:
    """Return messages, each with a role and a text, and with their other keys that are not null.

    Args:
        value: a list of mappings with `role` and `content`, or `from` and `value`.
        where: file, line and key; starts every error message.

    Raises:
        ConfigError: names the message and the problem.
    """
    if value == []:
        raise ConfigError(f"{where} is empty; expected messages with role and content, or from and value.")
    if not isinstance(value, list):
        raise ConfigError(f"{where} must be a list of mappings with role and content; got {describe_type(value)}.")
    return [_message(message, f"{where}[{i}]") for i, message in enumerate(value)]


def split_answer(messages: Sequence[Message], where: str) -> tuple[list[Message], Message | None]:
    """Split a chat into the messages to send and the assistant's final answer, if there is one.

    Raises:
        ConfigError: nothing precedes the answer, or another assistant message does.
    """
    if messages[-1]["role"] not in ASSISTANT_ROLES:
        return list(messages), None
    before = list(messages[:-1])
    if not before:
        raise ConfigError(f"{where} has only an assistant message. Add the message that it answers.")
    if before[-1]["role"] in ASSISTANT_ROLES:
        raise ConfigError(f"{where} ends with two assistant messages. Remove one of them, or both.")
    return before, messages[-1]


def read_tools(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    """Return tool definitions, each a JSON value.

    Raises:
        ConfigError: not a list of mappings, or a value that is not JSON.
    """
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise ConfigError(f"{where} must be a list of tool definitions (mappings); got {describe_type(value)}.")
    for i, tool in enumerate(value):
        _require_json(tool, f"{where}[{i}]")
    return tuple(value)


def describe_type(value: Any) -> str:
    """Return a description of a value's type, for a message."""
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {value!r}"
    names = {str: "a string", list: "a list", tuple: "a list", dict: "a mapping", bytes: "bytes", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise ConfigError(f"{where} must be a mapping with role and content; got {describe_type(message)}.")
    if len(message) == 2 and message.get("role") in ROLES and message.get("content").__class__ is str:
        return {"role": message["role"], "content": message["content"]}  # most messages
    fields = {key: value for key, value in message.items() if not is_missing(value)}
    if "role" not in fields and "from" in fields:
        fields = _from_sharegpt(fields, where)
    role = fields.get("role")
    if not isinstance(role, str):
        keys = ", ".join(map(str, fields)) or "none"
        raise ConfigError(f"{where} has no role (keys: {keys}); expected role and content, or from and value.")
    require_choice(where, role, ROLES, what="role")
    content = _content(fields.pop("content", None), where, role)
    if isinstance(fields.get("tool_calls"), list):
        fields["tool_calls"] = [_call(call) for call in fields["tool_calls"]]
    for key, value in fields.items():
        _require_json(value, f"{where}.{key}")
    return {"role": fields.pop("role"), "content": content} | fields


def _call(call: Any) -> Any:
    """Return a tool call with its arguments as a mapping, which templates expect; OpenAI writes them as JSON.

    Inspect AI's calls have the function's name and the arguments next to each other.
    """
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), str) and "arguments" in call:
        call = call | {"type": "function", "function": {"name": call["function"], "arguments": call["arguments"]}}
        del call["arguments"]
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call
    return call | {"function": function | {"arguments": arguments}} if isinstance(arguments, dict) else call


def _sharegpt_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Return the calls in a ShareGPT message `function_call`: JSON of one call or of a list (LLaMA-Factory)."""
    try:
        calls = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        calls = None
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise ConfigError(f"{where} is a function_call (ShareGPT); expected JSON with name and arguments.")
    return [{"type": "function", "function": {"arguments": {}} | call} for call in calls]


def _from_sharegpt(message: dict[str, Any], where: str) -> dict[str, Any]:
    role = message["from"]
    if role not in SHAREGPT:
        if role == "function_call":
            return {"role": "assistant", "content": None, "tool_calls": _sharegpt_calls(message.get("value"), where)}
        require_choice(where, str(role), list(SHAREGPT), what="ShareGPT role")
    rest = {key: value for key, value in message.items() if key not in ("from", "value")}
    return rest | {"role": SHAREGPT[role], "content": message.get("value", message.get("content"))}


def _content(value: Any, where: str, role: str) -> str:
    if value is None and role not in TEXT_ROLES:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        return "\n".join(_part(part, f"{where}.content[{i}]") for i, part in enumerate(value))
    problem = "has no content" if value is None else f"has {describe_type(value)} as its content"
    raise ConfigError(f"{where} (role {role}) {problem}; expected a string or a list of text parts.")


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        form = part.get("type")
        text = part.get("text")
        if form in (*TEXT_PARTS, None) and isinstance(text, str):
            return text
        if form not in (*TEXT_PARTS, None):
            hint = " The transform encoder puts an image's vectors into a prompt." if "image" in str(form) else ""
            raise ConfigError(f"{where} is a part of type {form!r}. Only text is supported (type 'text').{hint}")
    raise ConfigError(f"{where} must be a part with type and text; got {describe_type(part)}.")


def _require_json(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ConfigError(f"{where}: the key {key!r} is {describe_type(key)}; keys must be strings.")
            _require_json(inner, f"{where}.{key}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _require_json(inner, f"{where}[{i}]")
    elif not (value is None or isinstance(value, str | int | float)) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise ConfigError(f"{where} is {describe_type(value)}, which is not a JSON value.")
