"""`prompts.map` and `prompts.template`: own keys of an entry made from its other keys."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from sweep.errors import ConfigError
from sweep.inputs.config import PromptsConfig
from sweep.inputs.entry_keys import describe_keys, has_key, is_missing, lookup
from sweep.inputs.jinja_text import JinjaText, is_template
from sweep.util.validators import require, require_choice

NAMES = ("prompt", "messages", "reference", "id", "choices", "system", "tools", "values")


class EntryMap:
    """Makes the keys that `prompts.map` and `prompts.template` name. Immutable.

    A value of the map is a key, a path such as `doc.question`, or a Jinja template over the entry's keys.

    Attributes:
        columns: top-level keys that the map reads, by the name that they make.
    """

    def __init__(self, config: PromptsConfig) -> None:
        """Compile the map of a configuration.

        Raises:
            ConfigError: an unknown name, a value that is empty or not a template, or two sources of one name.
        """
        sources = dict(config.map)
        for name, source in sources.items():
            require_choice("prompts.map", name, NAMES, what="key of an entry")
            require(bool(source.strip()), f"prompts.map.{name}", "must name a key, or be a template", None)
        for name, (option, default) in {
            "prompt": ("prompt_key", "prompt"),
            "reference": ("reference_key", "reference"),
            "id": ("id_key", "id"),
            "choices": ("choices_key", None),
        }.items():
            made = name in sources or (name == "prompt" and config.template is not None)
            clear = not made or getattr(config, option) == default
            require(clear, f"prompts.{option}", f"cannot be used with a map or template of {name!r}: remove it", None)
        one = config.template is None or not {"prompt", "messages"} & sources.keys()
        require(one, "prompts.template", "cannot be used with prompts.map.prompt or prompts.map.messages", None)
        self._keys = {name: source.strip() for name, source in sources.items() if not is_template(source)}
        self._templates = {
            name: _compiled(source, f"prompts.map.{name}") for name, source in sources.items() if is_template(source)
        }
        if config.template is not None:
            self._templates["prompt"] = _compiled(config.template, "prompts.template")
        self.columns: dict[str, tuple[str, ...]] = {
            name: tuple(sorted(template.variables)) for name, template in self._templates.items()
        }
        self.columns |= {name: (key.split(".")[0], key) for name, key in self._keys.items()}

    @property
    def has_templates(self) -> bool:
        """Whether any value is a template, whose time and memory must be limited."""
        return bool(self._templates)

    def apply(self, entry: Mapping[str, Any], place: str) -> dict[str, Any]:
        """Return the values of an entry's own keys that are not missing.

        Raises:
            ConfigError: see `JinjaText.render`.
        """
        values = {name: lookup(entry, key) for name, key in self._keys.items()}
        if self._templates:
            given = {str(key): None if is_missing(value) else value for key, value in entry.items()}
            values |= {name: template.render(given, place) or None for name, template in self._templates.items()}
        return {name: value for name, value in values.items() if value is not None}

    def check(self, entries: Iterable[Mapping[str, Any]], where: str) -> None:
        """Reject a key of the map that no entry has.

        Raises:
            ConfigError: names the key and the existing ones.
        """
        listed = list(entries) if self._keys else []
        for name, key in self._keys.items():
            if any(has_key(entry, key) for entry in listed):
                continue
            keys = dict.fromkeys(str(key) for entry in listed for key in entry)
            near = difflib.get_close_matches(key, list(keys), 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"prompts.map.{name}: no entry of {where} has {key!r} ({describe_keys(keys)}).{hint}")


def entry_map(config: PromptsConfig) -> EntryMap | None:
    """Return the map of a configuration; None if it has none.

    Raises:
        ConfigError: see `EntryMap`.
    """
    if not config.map and config.template is None:
        return None
    return EntryMap(config)


ESCAPES = {"\\n": "\n", "\\t": "\t", "\\\\": "\\"}
# Whole Jinja blocks match first: Jinja reads the escapes in its own texts.
ESCAPED = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}|\\[nt\\]", re.DOTALL)


@lru_cache(64)
def _compiled(source: str, key: str) -> JinjaText:
    r"""Return a template. Shells and Hydra keep `\n`, `\t` and `\\` as typed: a line end, a tab and a backslash."""
    return JinjaText(ESCAPED.sub(lambda match: ESCAPES.get(match[0], match[0]), source), key)
