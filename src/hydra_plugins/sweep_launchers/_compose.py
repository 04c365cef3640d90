"""Composition of a sweep's points without Hydra's full price of 130 ms, paid twice, for each.

Points of one sweep differ mostly in values.  One full composition for each choice of config groups, and a copy with the
values set for each point, gives the same configuration and the same errors.  Rests on internals of the pinned Hydra.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf


class Composer:
    """Composes points, and makes the sweeper's own check of each batch use the same results."""

    def __init__(self, loader: Any) -> None:
        self._loader, self._compose = loader, loader.load_sweep_config
        self._parser = OverridesParser.create()
        self._bases: dict[tuple[str, ...], DictConfig] = {}
        self._checked: dict[tuple[str, ...], DictConfig] = {}
        loader.load_sweep_config = self._check

    def compose(self, master: DictConfig, overrides: Sequence[str]) -> DictConfig:
        """Return a point's configuration: the one made when the sweeper checked it, if it did."""
        checked = self._checked.pop(tuple(overrides), None)
        return checked if checked is not None else self._fast(master, list(overrides))

    def _check(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        composed = self._checked[tuple(sweep_overrides)] = self._fast(master_config, list(sweep_overrides))
        return composed

    def _fast(self, master: DictConfig, overrides: list[str]) -> DictConfig:
        parsed = self._parser.parse_overrides(overrides)
        if any(o.is_delete() or o.key_or_group.startswith("hydra") for o in parsed):
            return self._compose(master, overrides)  # type: ignore[no-any-return]
        groups = [o for o in parsed if self._loader.repository.group_exists(o.key_or_group)]
        choices = tuple(o.input_line or "" for o in groups)
        if choices not in self._bases:
            self._bases[choices] = self._compose(master, list(choices))
        composed = copy.deepcopy(self._bases[choices])
        self._loader._apply_overrides_to_config([o for o in parsed if o not in groups], composed)
        composed.hydra.overrides.task = overrides
        OmegaConf.copy_cache(from_config=master, to_config=composed)
        return composed
