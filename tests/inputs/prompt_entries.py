"""Entries of prompt files for tests: chats, and what is read from them."""

from __future__ import annotations

from typing import Any

import pytest

from sweep.errors import ConfigError
from sweep.inputs import prompts
from sweep.inputs.config import PromptsConfig
from sweep.inputs.prompts import Prompt

USER = {"role": "user", "content": "Capital of Japan?"}
ANSWER = {"role": "assistant", "content": "Tokyo."}
SYSTEM = {"role": "system", "content": "Be kind."}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "minProperties": 1}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}


def read(*entries: Any, **config: Any) -> list[Prompt]:
    return prompts.load(PromptsConfig(items=list(entries), **config))


def summary(*entries: Any, **config: Any) -> str:
    made = PromptsConfig(items=list(entries), **config)
    return str(prompts.summarise(prompts.load(made), made))


def refusal(*entries: Any, **config: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(*entries, **config)
    return str(caught.value)
