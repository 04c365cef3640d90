"""From what Hydra composes to the frozen values of the schema, or to an error that names the key.

Hydra composes `conf/` over the node `schema` in its ConfigStore, which refuses unknown keys and wrong types.  `parse`
then makes the values that the rest of the program reads.  `transform` and `engine` are plain mappings until then, whose
`name` decides which registered class reads the rest: so a class that came in through `plugins` is checked exactly like
one of ours.  The options of `transform=` are made of the classes themselves, so that a default or a parameter stands in
one place.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import BooleanNode, DictConfig, IntegerNode, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep.building import COMPOSE, build, build_pipeline, one_line, read, writable
from sweep.checks import did_you_mean, require
from sweep.config import SECTIONS, ScoringConfig, SweepConfig
from sweep.engines import ENGINES
from sweep.errors import ConfigError
from sweep.signals import Interrupted
from sweep.transforms import TRANSFORMS

IDENTITY = ("model", "prompts", "transform", "sampling", "seed")  # what decides what is generated
_UNSTABLE = re.compile(r"\$\{(now|hydra|oc\.env):")
_REFERENCE = re.compile(r"\$\{([\w.\[\]]+)\}")


def register(plugins: Sequence[str] = ()) -> None:
    """Put the schema and an option for each registered transform into Hydra's ConfigStore.

    Args:
        plugins: modules that may register transforms, to be imported first.

    Raises:
        ConfigError: one of them cannot be imported.
    """
    for module in plugins:
        _import_plugin(module)
    store = ConfigStore.instance()
    for name, transform in TRANSFORMS.items():
        values = OmegaConf.to_container(writable(transform))
        assert isinstance(values, dict)
        node = {"name": name, **values, "span": transform.default_span, "control": None}
        store.store(group="transform", name=name, node=node)
    store.store(group="transform", name=COMPOSE, node={"name": COMPOSE})
    root: dict[str, Any] = {key: writable(section) for key, section in SECTIONS.items()}
    root |= {"transform": None, "engine": None, "seed": IntegerNode(0), "verbose": BooleanNode(False)}
    root["plugins"] = ListConfig([], element_type=str)
    store.store(name="schema", node=OmegaConf.create(root))


def parse(composed: DictConfig) -> SweepConfig:
    """Check a composed configuration and return it as frozen values.

    Raises:
        ConfigError: a value of the wrong type or out of range, an unknown transform, engine, parameter or plugin; a
            value that would be another one the next time, where it decides what is generated.
    """
    ours = without_hydra(composed)
    unresolved: Any = OmegaConf.to_container(ours)
    for section in IDENTITY:
        _require_stable(unresolved.get(section), section, unresolved)
    try:
        plain: Any = OmegaConf.to_container(ours, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(one_line(error)) from error
    return Parser().parse(plain)


class Parser:
    """Makes configurations of plain values; sections that it has seen before are not made again."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[Any, Any]] = {}
        self._equal: dict[str, dict[str, Any]] = {}

    def parse(self, plain: dict[str, Any]) -> SweepConfig:
        """Return a configuration of plain values, which must not be changed afterwards; errors as of `parse`."""
        known = [field.name for field in fields(SweepConfig)]
        for key in plain.keys() - known:  # Hydra lets `+key=value` add whatever it likes
            raise ConfigError(f"{key}: there is no such key. {did_you_mean(key, known)}")
        plugins = plain["plugins"]
        require(isinstance(plugins, list), "plugins", "must be a list of modules' names", str(plugins))
        for module in plugins:
            _import_plugin(module)
        scoring = self._make("scoring", plain, partial(read, ScoringConfig, "scoring"))
        for module in scoring.modules:  # lest a configuration name any callable
            listed = any(f"{module}.".startswith(f"{plugin}.") for plugin in plugins)
            require(listed, "scoring.quality", f"has a function of {module!r}, which needs plugins=[{module}]", None)
        return SweepConfig(
            transform=self._make("transform", plain, build_pipeline),
            engine=self._make("engine", plain, lambda values: build("engine", values, ENGINES)),
            seed=_whole("seed", plain["seed"]),
            verbose=_switch("verbose", plain["verbose"]),
            plugins=tuple(plugins),
            **{key: self._make(key, plain, partial(read, section, key)) for key, section in SECTIONS.items()},
        )

    def _make(self, key: str, plain: dict[str, Any], make: Callable[[Any], Any]) -> Any:
        values = plain[key]
        last = self._last.get(key)
        if last is not None and last[0] is values:  # as it mostly is with sections that are not swept
            return last[1]
        equal, text = self._equal.setdefault(key, {}), repr(values)
        if text not in equal:
            equal[text] = make(values)
        self._last[key] = values, equal[text]
        return equal[text]


def _switch(key: str, value: Any) -> bool:
    require(isinstance(value, bool), key, "must be true or false", value)
    return bool(value)


def _whole(key: str, value: Any) -> int:
    require(isinstance(value, int) and not isinstance(value, bool), key, "must be a whole number", value)
    return int(value)


def _require_stable(plain: Any, key: str, root: Any, through: tuple[str, ...] = ()) -> None:
    """Refuse interpolations of what is another thing at another time or place, by way of other keys too."""
    if isinstance(plain, dict):
        for name, value in plain.items():
            _require_stable(value, f"{key}.{name}", root, through)
    elif isinstance(plain, list):
        for value in plain:
            _require_stable(value, key, root, through)
    elif isinstance(plain, str):
        if found := _UNSTABLE.search(plain):
            rule = f"must say the same whenever the command is repeated, which {found[0]}…}} does not"
            require(False, key, rule, None)
        for other in _REFERENCE.findall(plain):
            if other not in through:
                _require_stable(_at(root, other), key, root, (*through, other))


def _at(root: Any, path: str) -> Any:
    """Return what is at a path of plain values; None: nothing, or what only OmegaConf finds."""
    for part in re.split(r"[.\[\]]+", path.rstrip("]")):
        if isinstance(root, list) and part.isdecimal() and int(part) < len(root):
            root = root[int(part)]
        elif isinstance(root, dict):
            root = root.get(part)
        else:
            return None
    return root


def without_hydra(composed: DictConfig) -> DictConfig:
    """Return what is ours of a composed configuration."""
    return OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])


def _import_plugin(module: str) -> None:
    if (here := os.getcwd()) not in sys.path:  # where `python -m sweep` looks, and the command `sweep` would not
        sys.path.append(here)
    try:
        importlib.import_module(module)
    except SyntaxError as error:
        raise ConfigError(f"plugins: {error.filename}:{error.lineno}: {error.msg}.") from error
    except Interrupted:
        raise
    except (Exception, SystemExit) as error:  # it is the user's, and may raise anything
        reason = str(error).split("\n")[0]
        what = f"{type(error).__name__}: {reason}"
        raise ConfigError(f"plugins: the module {module!r} cannot be imported: {what}") from error
