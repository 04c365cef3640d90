"""Keys of prompt entries: known keys, unused keys, and probable misspellings."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sweep.errors import ConfigError
from sweep.inputs.config import PromptsConfig

# Known regardless of prompts.prompt_key, reference_key and id_key.
CHATS = ("messages", "conversations")
KEYS = (*CHATS, "system", "tools", "values")

MAX_KEY_LENGTH = 20  # characters of a key shown in messages
SHORT = 4  # characters up to which one edit usually gives another word: id and idx, text and test
WORDS = frozenset(["preference"])  # common columns one letter away from a known key


def configured_keys(config: PromptsConfig) -> dict[str, str]:
    """Return the entry keys named in the configuration, by configuration key."""
    keys = {
        "prompts.prompt_key": config.prompt_key,
        "prompts.reference_key": config.reference_key,
        "prompts.id_key": config.id_key,
    }
    return keys if config.choices_key is None else keys | {"prompts.choices_key": config.choices_key}


def is_missing(value: Any) -> bool:
    """Return whether a value means absent: null, or NaN, which pandas writes instead."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def lookup(entry: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key, or of a path such as `reward_model.ground_truth`; None if it is absent."""
    value: Any = entry
    if key in entry:
        value = entry[key]
    else:
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    return None if is_missing(value) else value


def has_key(entry: Mapping[str, Any], key: str) -> bool:
    """Return whether an entry has a key or path, even if its value is null."""
    parent, _, last = key.rpartition(".")
    return key in entry or (bool(parent) and isinstance(value := lookup(entry, parent), Mapping) and last in value)


def is_similar(key: object, names: tuple[str, ...]) -> bool:
    """Return whether a key may be a misspelling of one of the names."""
    return _closest_name(key, names) is not None


def check_keys(entry: Mapping[str, Any], place: str, config: PromptsConfig) -> None:
    """Reject keys that look like a misspelling of a known key that the entry lacks.

    Raises:
        ConfigError: names the key and the known one.
    """
    names = [*configured_keys(config).values(), *KEYS]
    absent = tuple(name for name in names if lookup(entry, name) is None)
    if any(lookup(entry, name) is not None for name in (config.prompt_key, *CHATS, "body", "arguments")):
        absent = tuple(name for name in absent if name not in CHATS)
    for key, value in entry.items():
        if key in names or is_missing(value):
            continue
        intended = _closest_name(key, absent)
        if intended is None or not _fits(intended, value):
            continue
        option = next((option for option, name in configured_keys(config).items() if name == intended), None)
        alternative = f", or set {option}={key}" if option else ""
        raise ConfigError(f"{place}: unknown key {key!r}. Did you mean {intended!r}? Rename it{alternative}.")


def check_configured_keys(entries: Iterable[Mapping[str, Any]], config: PromptsConfig, where: str) -> None:
    """Reject a `prompts.prompt_key`, `reference_key`, `id_key` or `choices_key` set to a key that no entry has.

    Raises:
        ConfigError: names the option and the existing keys.
    """
    defaults = configured_keys(PromptsConfig(items=[]))
    changed = {option: key for option, key in configured_keys(config).items() if key != defaults.get(option)}
    if not changed:
        return
    listed = list(entries)
    for option, key in changed.items():
        if any(has_key(entry, key) for entry in listed):
            continue
        keys = list(dict.fromkeys(key for entry in listed for key in entry))
        near = difflib.get_close_matches(key, keys, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{option}: no entry of {where} has {key!r} (keys: {_listed(keys)}).{hint}")


def describe_keys(entry: Mapping[str, Any]) -> str:
    """Return the keys of an entry, for a message."""
    return f"keys: {_listed([str(key) for key in entry])}"


def _listed(keys: Sequence[str], most: int = 8) -> str:
    shown = [key if len(key) <= MAX_KEY_LENGTH else f"{key[:MAX_KEY_LENGTH]}…" for key in keys[:most]]
    return ", ".join([*shown, *(["…"] if len(keys) > most else [])]) or "none"


@lru_cache(4096)  # entries of a file have the same keys
def _closest_name(key: object, names: tuple[str, ...]) -> str | None:
    """Return the name of which a key seems to be a misspelling; None if there is none."""
    if not isinstance(key, str) or key in names:
        return None
    plain = {name.casefold(): name for name in reversed(names)}
    typed = key.strip().casefold()
    if typed in plain:
        return plain[typed]
    return next((name for name in names if _is_typo(typed, name.casefold())), None)


def _is_typo(typed: str, name: str) -> bool:
    """Return whether two words differ by one edit or one swap of neighbours; digits never count as a typo."""
    if max(len(typed), len(name)) <= SHORT or typed in WORDS or sum(map(str.isdigit, typed + name)):
        return False
    start = next((i for i, (a, b) in enumerate(zip(typed, name, strict=False)) if a != b), min(len(typed), len(name)))
    one, other = typed[start:], name[start:]
    swapped = one[:2] == other[1::-1] and one[2:] == other[2:]
    return swapped or one[1:] == other[1:] or one[1:] == other or one == other[1:]


def _fits(name: str, value: Any) -> bool:
    """Return whether a value has the type of a name's values: a column `value` of numbers is not `values`."""
    kinds = {"messages": list, "conversations": list, "tools": list, "values": dict}
    return isinstance(value, kinds.get(name, object))
