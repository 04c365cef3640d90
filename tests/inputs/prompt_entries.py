"""Entries of prompt files for tests: chats, and what is read from them."""

from __future__ import annotations

from pathlib import Path
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


def load_file(path: Path | None, **config: Any) -> tuple[list[Prompt], str]:
    """Return the prompts of a file, or of a configuration without one, and their summary without the file's name."""
    made = PromptsConfig(path=None if path is None else str(path), **config)
    loaded = prompts.load(made)
    return loaded, str(prompts.summarise(loaded, made)).removeprefix(f"{path}: ")


def refuse_file(path: Path | None, **config: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_file(path, **config)
    return str(caught.value)
