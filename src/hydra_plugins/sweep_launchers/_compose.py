"""Configurations of a sweep's points without Hydra's full price of 130 ms, paid twice, for each.

Points of one sweep differ mostly in values.  One full composition for all that is more than a plain value of a key that
is there, and a copy in which each point's plain values are set, give the same configuration.  What cannot be done so
goes Hydra's own way, and so does what turns out to be wrong, so that errors are Hydra's.  Rests on internals of the
pinned Hydra.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep.config import SweepConfig
from sweep.errors import ConfigError
from sweep.parsing import Parser, parse, without_hydra

PLAIN = (bool, int, float, type(None))

# Numbers that Hydra reads as Python does.  Its parser takes 0.3 ms for one, and a range has one for each point.
NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})(?P<fraction>(?:\.[0-9]{1,25})?(?:e[+-]?[0-9]{1,3})?)")

KEPT = 512  # of what is remembered, the most; points that are neighbours have most in common

Keys = tuple[str, ...]  # on the way to a value


@dataclass(frozen=True, slots=True)
class Setting:
    """An override that puts a plain value in another one's place."""

    path: Keys
    value: Any


class Composer:
    """Composes points, and makes the sweeper's own check of each batch use the same results."""

    def __init__(self, loader: Any) -> None:
        self._loader, self._load = loader, loader.load_sweep_config
        self._parsed = lru_cache(KEPT)(OverridesParser.create().parse_override)
        self._bases: dict[tuple[str, ...], DictConfig] = {}
        self._plains: dict[tuple[tuple[str, ...], tuple[Keys, ...]], dict[str, Any] | None] = {}
        self._checked: dict[tuple[str, ...], SweepConfig] = {}
        self._parser = Parser()
        loader.load_sweep_config = self._check

    def compose(self, master: DictConfig, overrides: Sequence[str]) -> SweepConfig:
        """Return a point's configuration: the one made when the sweeper checked it, if it did.

        Raises:
            HydraException, OmegaConfBaseException, ConfigError: the overrides do not fit.
        """
        checked = self._checked.pop(tuple(overrides), None)
        return checked if checked is not None else self._compose(master, overrides)

    def _check(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        self._checked[tuple(sweep_overrides)] = self._compose(master_config, sweep_overrides)
        return master_config

    def _compose(self, master: DictConfig, overrides: Sequence[str]) -> SweepConfig:
        found = [(override, self.setting(override)) for override in overrides]
        settings = [setting for _, setting in found if setting is not None]
        others = tuple(override for override, setting in found if setting is None)
        try:
            plain = self._plain(master, others, tuple(setting.path for setting in settings))
            if plain is not None:
                for setting in settings:
                    plain = _with(plain, setting.path, setting.value)
                return self._parser.parse(plain)
        except (KeyError, ConfigError, HydraException, OmegaConfBaseException):  # said better below
            pass
        parsed = [self._parsed(override) for override in overrides]
        if any(map(_is_special, parsed)):
            return parse(self._load(master, list(overrides)))
        return parse(self._composed(master, parsed))

    def setting(self, override: str) -> Setting | None:
        """Return what an override sets; None: it is more than a plain value of a key that may be there.

        Raises:
            HydraException: it cannot be read.
        """
        key, _, text = override.partition("=")
        number = NUMBER.fullmatch(text)
        if number is None:
            return self._setting(override)
        path = self._path(key)
        return None if path is None else Setting(path, float(text) if number["fraction"] else int(text))

    @lru_cache(KEPT)  # noqa: B019 - there is one composer in a process
    def _setting(self, override: str) -> Setting | None:
        parsed = self._parsed(override)
        if self._is_group(parsed.key_or_group) or _is_special(parsed) or parsed.is_add() or parsed.package is not None:
            return None
        value = parsed.value()
        if not isinstance(value, PLAIN) and not (isinstance(value, str) and not _is_open(value)):
            return None
        return Setting(tuple(parsed.key_or_group.split(".")), value)

    @lru_cache(KEPT)  # noqa: B019
    def _path(self, key: str) -> Keys | None:
        setting = self._setting(f"{key}=0")
        return None if setting is None else setting.path

    @cache  # noqa: B019
    def _is_group(self, key: str) -> bool:
        return bool(self._loader.repository.group_exists(key))

    def _plain(self, master: DictConfig, others: tuple[str, ...], paths: tuple[Keys, ...]) -> dict[str, Any] | None:
        """Return what some overrides make, as plain values; None if it is not all there is to say of others' paths."""
        known = others, paths
        if known not in self._plains:
            if len(self._plains) == KEPT:
                self._plains.clear()
            parsed = [self._parsed(override) for override in others]
            own = [tuple(o.key_or_group.split(".")) for o in parsed if not self._is_group(o.key_or_group)]
            meet = any(a[: len(b)] == b[: len(a)] for a in own for b in paths)  # then their order counts
            whole = meet or any(map(_is_special, parsed))
            self._plains[known] = None if whole else _as_plain(self._composed(master, parsed))
        return self._plains[known]

    def _composed(self, master: DictConfig, overrides: Sequence[Override]) -> DictConfig:
        groups = [o for o in overrides if self._is_group(o.key_or_group)]
        values = [o for o in overrides if not self._is_group(o.key_or_group)]
        choices = tuple(o.input_line or "" for o in groups)
        if choices not in self._bases:
            self._bases[choices] = self._load(master, list(choices))
        if not values:
            return self._bases[choices]
        composed = copy.deepcopy(self._bases[choices])
        self._loader._apply_overrides_to_config(values, composed)
        OmegaConf.copy_cache(from_config=master, to_config=composed)
        return composed


def _is_special(override: Override) -> bool:
    """Whether an override is about Hydra itself, or takes something away."""
    return override.is_delete() or override.key_or_group.startswith("hydra")


def _as_plain(composed: DictConfig) -> dict[str, Any] | None:
    """Return what is ours as plain values; None if something in it is interpolated or missing."""
    plain: Any = OmegaConf.to_container(without_hydra(composed))
    return None if _is_open(plain) else plain


def _is_open(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_is_open, value.values()))
    if isinstance(value, list):
        return any(map(_is_open, value))
    return isinstance(value, str) and ("${" in value or value == "???")


def _with(plain: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """Return a copy in which the value at a path is another one; what is not on the path is shared.

    Raises:
        KeyError: there is no such path, or something other than a plain value is there.
    """
    key, *rest = path
    old = plain[key]
    if rest:
        if not isinstance(old, dict):
            raise KeyError(key)
        return {**plain, key: _with(old, rest, value)}
    if isinstance(old, (dict, list)):
        raise KeyError(key)
    return {**plain, key: value}
