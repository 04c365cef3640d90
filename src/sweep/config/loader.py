"""Configuration loader: turns a configuration composed by Hydra into the frozen dataclasses of the schema.

Hydra composes `conf/` over the node `schema` in its ConfigStore, which refuses unknown keys and wrong types. `parse`
then makes a `SweepConfig`. Until then `transform` and `engine` are plain mappings, whose `name` selects the registered
class that reads the rest. Classes of plugins are therefore checked like built-in ones. The options of `transform=` are
generated from the classes, so that each parameter and its default are defined once.
"""

from __future__ import annotations

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

from sweep.config.dataclass_reader import COMPOSE, build, build_pipeline, one_line, read, writable
from sweep.config.schema import SECTIONS, SweepConfig
from sweep.config.scoring_config import ScoringConfig
from sweep.console.signals import Interrupted
from sweep.engines import ENGINES
from sweep.errors import ConfigError
from sweep.transforms import TRANSFORMS
from sweep.util.paths import conf_dir
from sweep.util.plugins import import_plugin
from sweep.util.validators import did_you_mean, require

GENERATION_SECTIONS = ("model", "prompts", "transform", "sampling", "seed")  # they decide the generations
NO_REPORT: dict[str, Any] = {}
_UNSTABLE = re.compile(r"\$\{(now|hydra|oc\.env):")
_REFERENCE = re.compile(r"\$\{([\w.\[\]]+)\}")


def register(plugins: Sequence[str] = ()) -> None:
    """Put the schema and an option for each registered transform and engine into Hydra's ConfigStore.

    Args:
        plugins: Modules to import first, which may register transforms and engines.

    Raises:
        ConfigError: A module cannot be imported, or one of its transforms has a parameter of an unsupported type.
    """
    for module in plugins:
        _import_plugin(module)
    store = ConfigStore.instance()
    for name, transform in TRANSFORMS.items():
        try:
            values = OmegaConf.to_container(writable(transform))
        except OmegaConfBaseException as error:  # a parameter type that OmegaConf does not support
            where = f"{transform.__module__}.{transform.__qualname__}"
            raise ConfigError(f"plugins: the transform {name!r} ({where}): {one_line(error)}") from error
        assert isinstance(values, dict)
        node = {"name": name, **values, "span": transform.default_span, "control": None}
        store.store(group="transform", name=name, node=node)
    store.store(group="transform", name=COMPOSE, node={"name": COMPOSE})
    for name, engine in ENGINES.items():
        if not (conf_dir() / "engine" / f"{name}.yaml").is_file():
            node = {"name": name, **OmegaConf.to_container(writable(engine))}  # type: ignore[dict-item]
            store.store(group="engine", name=name, node=node)
    root: dict[str, Any] = {key: writable(section) for key, section in SECTIONS.items()}
    root |= {"transform": None, "engine": None, "seed": IntegerNode(0), "verbose": BooleanNode(False)}
    root["plugins"] = ListConfig([], element_type=str)
    store.store(name="schema", node=OmegaConf.create(root))


def parse(composed: DictConfig) -> SweepConfig:
    """Check a composed configuration and return it as frozen dataclasses.

    Raises:
        ConfigError: A value of the wrong type or out of range, or an unknown transform, engine, parameter or plugin.
            Also an interpolation that changes between runs, in a section that decides the generations.
    """
    config = without_hydra(composed)
    unresolved: Any = OmegaConf.to_container(config)
    for section in GENERATION_SECTIONS:
        _require_stable(unresolved.get(section), section, unresolved)
    try:
        plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(one_line(error)) from error
    return Parser().parse(plain)


class Parser:
    """Parser of plain values into `SweepConfig`. Equal sections of several points are made once and shared.

    Owned by the thread that creates it. The configurations are immutable and may be used by any thread.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[Any, Any]] = {}
        self._by_text: dict[str, dict[str, Any]] = {}

    def parse(self, plain: dict[str, Any]) -> SweepConfig:
        """Return the configuration of plain values, which must not be changed afterwards.

        Raises:
            ConfigError: See `parse` of this module.
        """
        plain = {"report": NO_REPORT} | plain  # archives and plans of earlier versions lack the section
        keys = [field.name for field in fields(SweepConfig)]
        for key in plain.keys() - keys:  # Hydra lets `+key=value` add any key
            raise ConfigError(f"{key}: there is no such key. {did_you_mean(key, keys)}")
        plugins = plain["plugins"]
        require(isinstance(plugins, list), "plugins", "must be a list of module names", str(plugins))
        for module in plugins:
            _import_plugin(module)
        scoring = self._make("scoring", plain, partial(read, ScoringConfig, "scoring"))
        for module in scoring.modules:  # otherwise a configuration could name any callable
            listed = any(f"{module}.".startswith(f"{plugin}.") for plugin in plugins)
            rule = f"names a function of {module!r}, which is not a plugin: set plugins=[{module}]"
            require(listed, "scoring.quality", rule, None)
        return SweepConfig(
            transform=self._make("transform", plain, build_pipeline),
            engine=self._make("engine", plain, lambda values: build("engine", values, ENGINES)),
            seed=_require_integer("seed", plain["seed"]),
            verbose=_require_bool("verbose", plain["verbose"]),
            plugins=tuple(plugins),
            **{key: self._make(key, plain, partial(read, section, key)) for key, section in SECTIONS.items()},
        )

    def _make(self, key: str, plain: dict[str, Any], make: Callable[[Any], Any]) -> Any:
        values = plain[key]
        last = self._last.get(key)
        if last is not None and last[0] is values:  # usual for sections that are not swept
            return last[1]
        sections, text = self._by_text.setdefault(key, {}), repr(values)
        if text not in sections:
            sections[text] = make(values)
        self._last[key] = values, sections[text]
        return sections[text]


def _require_bool(key: str, value: Any) -> bool:
    require(isinstance(value, bool), key, "must be true or false", value)
    return bool(value)


def _require_integer(key: str, value: Any) -> int:
    require(isinstance(value, int) and not isinstance(value, bool), key, "must be an integer", value)
    return int(value)


def _require_stable(plain: Any, key: str, root: Any, followed: tuple[str, ...] = ()) -> None:
    """Refuse interpolations whose value depends on time or machine, also through other keys."""
    if isinstance(plain, dict):
        for name, value in plain.items():
            _require_stable(value, f"{key}.{name}", root, followed)
    elif isinstance(plain, list):
        for value in plain:
            _require_stable(value, key, root, followed)
    elif isinstance(plain, str):
        if match := _UNSTABLE.search(plain):
            rule = f"must have the same value on every run, but {match[0]}…}} changes. Set a fixed value"
            require(False, key, rule, None)
        for other in _REFERENCE.findall(plain):
            if other not in followed:
                _require_stable(_at(root, other), key, root, (*followed, other))


def _at(root: Any, path: str) -> Any:
    """Return the plain value at a path; None if there is none, or if only OmegaConf can resolve the path."""
    for part in re.split(r"[.\[\]]+", path.rstrip("]")):
        if isinstance(root, list) and part.isdecimal() and int(part) < len(root):
            root = root[int(part)]
        elif isinstance(root, dict):
            root = root.get(part)
        else:
            return None
    return root


def without_hydra(composed: DictConfig) -> DictConfig:
    """Return a composed configuration without Hydra's own section."""
    return OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])


def _import_plugin(module: str) -> None:
    if (folder := os.getcwd()) not in sys.path:  # `python -m sweep` has it, the command `sweep` does not
        sys.path.append(folder)
    try:
        import_plugin(module)
    except SyntaxError as error:
        raise ConfigError(f"plugins: {error.filename}:{error.lineno}: {error.msg}.") from error
    except Interrupted:
        raise
    except (Exception, SystemExit) as error:  # user code may raise anything
        reason = str(error).split("\n")[0]
        what = f"{type(error).__name__}: {reason}"
        raise ConfigError(f"plugins: the module {module!r} cannot be imported: {what}") from error
