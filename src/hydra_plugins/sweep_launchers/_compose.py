"""Configurations of a sweep's points without Hydra's full price of 130 ms, paid twice, for each.

Points of one sweep differ mostly in values.  One full composition for each choice of config groups, and a copy in which
each point's values are set, give the same configuration.  Whatever is more than a plain value of a key that is there
goes Hydra's own way, and so does what turns out to be wrong, so that errors are Hydra's.  Rests on internals of the
pinned Hydra.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from sweep.config import SweepConfig
from sweep.errors import ConfigError
from sweep.parsing import Parser, parse, without_hydra

PLAIN = (bool, int, float, type(None))


class Composer:
    """Composes points, and makes the sweeper's own check of each batch use the same results."""

    def __init__(self, loader: Any) -> None:
        self._loader, self._load = loader, loader.load_sweep_config
        self._bases: dict[tuple[str, ...], tuple[DictConfig, dict[str, Any] | None]] = {}
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
        parsed = [_parsed(override) for override in overrides]
        if any(o.is_delete() or o.key_or_group.startswith("hydra") for o in parsed):
            return parse(self._load(master, list(overrides)))
        groups = [o for o in parsed if self._is_group(o.key_or_group)]
        choices = tuple(o.input_line or "" for o in groups)
        if choices not in self._bases:
            composed = self._load(master, list(choices))
            self._bases[choices] = composed, _plain(composed)
        base, plain = self._bases[choices]
        values = [o for o in parsed if o not in groups]
        if plain is not None and all(_is_plain(o) for o in values):
            try:
                for o in values:
                    plain = _with(plain, o.key_or_group.split("."), o.value())
                return self._parser.parse(plain)
            except (KeyError, ConfigError):  # said better below
                pass
        composed = copy.deepcopy(base)
        self._loader._apply_overrides_to_config(values, composed)
        OmegaConf.copy_cache(from_config=master, to_config=composed)
        return parse(composed)

    @cache  # noqa: B019 - there is one composer in a process
    def _is_group(self, key: str) -> bool:
        return bool(self._loader.repository.group_exists(key))


@lru_cache(maxsize=100_000)
def _parsed(override: str) -> Override:
    return OverridesParser.create().parse_override(override)


def _plain(composed: DictConfig) -> dict[str, Any] | None:
    """Return what is ours as plain values; None if something in it is interpolated or missing."""
    plain: Any = OmegaConf.to_container(without_hydra(composed))
    return None if _is_open(plain) else plain


def _is_open(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_is_open, value.values()))
    if isinstance(value, list):
        return any(map(_is_open, value))
    return isinstance(value, str) and ("${" in value or value == "???")


def _is_plain(override: Override) -> bool:
    if override.is_add() or override.package is not None:
        return False
    value = override.value()
    return isinstance(value, PLAIN) or (isinstance(value, str) and not _is_open(value))


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
