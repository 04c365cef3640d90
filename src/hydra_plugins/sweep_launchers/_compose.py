"""Fast composition of a sweep's configurations. Hydra needs 130 ms per point, and composes each point twice.

The points of a sweep usually differ only in plain values. All other overrides are composed once by Hydra, and each
point's plain values are set in a copy, which gives the same configuration. Where this is impossible or raises an error,
Hydra composes the point itself, so that errors are Hydra's own. This uses internals of the pinned Hydra version.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override as HydraOverride
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from sweep.config.loader import Parser, parse
from sweep.config.overrides import Override
from sweep.config.schema import SweepConfig
from sweep.errors import ConfigError

PLAIN = (bool, int, float, type(None))

MAX_CACHED = 512  # entries per cache. Neighbouring points have most overrides in common

Keys = tuple[str, ...]  # path to a value
Job = tuple[tuple[Override, ...], SweepConfig]  # the overrides of a point, and its configuration


@dataclass(frozen=True, slots=True)
class Setting:
    """An override that replaces one plain value by another."""

    path: Keys
    value: Any


class Composer:
    """Reads the overrides of points and composes their configurations.

    Also replaces the loader's method with which Hydra's sweeper validates a batch, so that each point is composed once.
    Owned by the main thread.
    """

    def __init__(self, loader: Any) -> None:
        self._loader, self._load = loader, loader.load_sweep_config
        self._read = lru_cache(MAX_CACHED)(Override.read)
        self._parsed = lru_cache(MAX_CACHED)(OverridesParser.create().parse_override)
        self._bases: dict[tuple[str, ...], DictConfig] = {}
        self._templates: dict[tuple[tuple[str, ...], tuple[Keys, ...]], dict[str, Any] | None] = {}
        self._checked: dict[tuple[str, ...], Job] = {}
        self._parser = Parser()
        loader.load_sweep_config = self._check

    def compose(self, master: DictConfig, lines: Sequence[str]) -> Job:
        """Return a point's overrides and configuration. Reuses the sweeper's validation if there was one.

        Args:
            master: the configuration of the command.
            lines: the point's overrides in Hydra's syntax.

        Raises:
            HydraException, OmegaConfBaseException, ConfigError: an override is invalid.
        """
        checked = self._checked.pop(tuple(lines), None)
        return checked if checked is not None else self._job(master, lines)

    def _check(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        self._checked[tuple(sweep_overrides)] = self._job(master_config, sweep_overrides)
        return master_config

    def _job(self, master: DictConfig, lines: Sequence[str]) -> Job:
        overrides = tuple(map(self._read, lines))
        return overrides, self._compose(master, overrides)

    def _compose(self, master: DictConfig, overrides: Sequence[Override]) -> SweepConfig:
        pairs = [(override, self.setting(override)) for override in overrides]
        settings = [setting for _, setting in pairs if setting is not None]
        others = tuple(override.line for override, setting in pairs if setting is None)
        try:
            plain = self._template(master, others, tuple(setting.path for setting in settings))
            if plain is not None:
                for setting in settings:
                    plain = _replace_value(plain, setting.path, setting.value)
                return self._parser.parse(plain)
        except (KeyError, ConfigError, HydraException, OmegaConfBaseException):  # composing below gives a better error
            pass
        lines = [override.line for override in overrides]
        parsed = [self._parsed(line) for line in lines]
        if any(map(_is_special, parsed)):
            return parse(self._load(master, lines))
        return parse(self._composed(master, parsed))

    def setting(self, override: Override) -> Setting | None:
        """Return the plain value that an override sets, or None for any other kind of override.

        Raises:
            HydraException: the override has invalid syntax.
        """
        if override.plain is None:
            return self._setting(override.line)
        path = self._path(override.key)
        return None if path is None else Setting(path, override.plain)

    @lru_cache(MAX_CACHED)  # noqa: B019 - there is one composer in a process
    def _setting(self, line: str) -> Setting | None:
        parsed = self._parsed(line)
        if self._is_group(parsed.key_or_group) or _is_special(parsed) or parsed.is_add() or parsed.package is not None:
            return None
        value = parsed.value()
        if not isinstance(value, PLAIN) and not (isinstance(value, str) and not _is_unresolved(value)):
            return None
        return Setting(tuple(parsed.key_or_group.split(".")), value)

    @lru_cache(MAX_CACHED)  # noqa: B019
    def _path(self, key: str) -> Keys | None:
        setting = self._setting(f"{key}=0")
        return None if setting is None else setting.path

    @cache  # noqa: B019
    def _is_group(self, key: str) -> bool:
        return bool(self._loader.repository.group_exists(key))

    def _template(self, master: DictConfig, others: tuple[str, ...], paths: tuple[Keys, ...]) -> dict[str, Any] | None:
        """Return the configuration of overrides to which values at `paths` can be added, or None if they interact."""
        cache_key = others, paths
        if cache_key not in self._templates:
            if len(self._templates) == MAX_CACHED:
                self._templates.clear()
            parsed = [self._parsed(override) for override in others]
            other_paths = [tuple(o.key_or_group.split(".")) for o in parsed if not self._is_group(o.key_or_group)]
            overlap = any(a[: len(b)] == b[: len(a)] for a in other_paths for b in paths)  # then their order matters
            interacts = overlap or any(map(_is_special, parsed))
            self._templates[cache_key] = None if interacts else _as_plain(self._composed(master, parsed))
        return self._templates[cache_key]

    def _composed(self, master: DictConfig, overrides: Sequence[HydraOverride]) -> DictConfig:
        groups = [o for o in overrides if self._is_group(o.key_or_group)]
        values = [o for o in overrides if not self._is_group(o.key_or_group)]
        choices = tuple(o.input_line or "" for o in groups)
        if choices not in self._bases:
            # Hydra's own section need not be copied for each point.
            base = self._bases[choices] = self._load(master, list(choices))
            with open_dict(base):
                del base["hydra"]
        if not values:
            return self._bases[choices]
        composed = copy.deepcopy(self._bases[choices])
        self._loader._apply_overrides_to_config(values, composed)
        OmegaConf.copy_cache(from_config=master, to_config=composed)
        return composed


def _is_special(override: HydraOverride) -> bool:
    """Return whether an override configures Hydra itself or deletes a key."""
    return override.is_delete() or override.key_or_group.startswith("hydra")


def _as_plain(composed: DictConfig) -> dict[str, Any] | None:
    """Return a configuration as plain values, or None if a value is unresolved."""
    plain: Any = OmegaConf.to_container(composed)
    return None if _is_unresolved(plain) else plain


def _is_unresolved(value: Any) -> bool:
    """Return whether a value contains an interpolation or a missing value."""
    if isinstance(value, dict):
        return any(map(_is_unresolved, value.values()))
    if isinstance(value, list):
        return any(map(_is_unresolved, value))
    return isinstance(value, str) and ("${" in value or value == "???")


def _replace_value(plain: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """Return a copy with another value at a path. Everything off the path is shared with the original.

    Raises:
        KeyError: the path does not exist, or leads to a mapping or list.
    """
    key, *rest = path
    old = plain[key]
    if rest:
        if not isinstance(old, dict):
            raise KeyError(key)
        return {**plain, key: _replace_value(old, rest, value)}
    if isinstance(old, (dict, list)):
        raise KeyError(key)
    return {**plain, key: value}
