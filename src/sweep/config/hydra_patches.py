"""Patches of Hydra 1.3: options between overrides, exceptions for the caller, point counts, faster help.

They rely on internals of the pinned Hydra. `tests/test_cli.py` and `tests/config` fail if the internals change.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NoReturn

import hydra._internal.hydra
import hydra._internal.utils
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from sweep.config.combinations import combine
from sweep.config.dataclass_reader import one_line
from sweep.config.point_count import check_count
from sweep.engines.vllm.arguments import argument_key
from sweep.errors import ConfigError
from sweep.transforms import TRANSFORMS
from sweep.util.validators import did_you_mean, require

_get_args_parser = hydra._internal.utils.get_args_parser
_split_arguments = BasicSweeper.split_arguments
_compose_config = hydra._internal.hydra.Hydra.compose_config
_STARTS = {name: getattr(hydra._internal.hydra.Hydra, name) for name in ("run", "multirun")}


def raise_errors() -> None:
    """Let exceptions reach the caller of a `hydra.main` function; Hydra would print some and exit with 1."""

    def run_and_report(func: Any) -> Any:
        return func()

    hydra._internal.utils.run_and_report = run_and_report


def allow_options_anywhere() -> None:
    """Allow options such as `--multirun` between overrides, and raise `ConfigError` for unknown options."""

    def make_parser() -> ArgumentParser:
        parser = _get_args_parser()
        parser.allow_abbrev = False
        parser.error = _refuse_option  # type: ignore[method-assign]
        parser.parse_args = parser.parse_intermixed_args  # type: ignore[method-assign]
        return parser

    sys.modules["hydra.main"].get_args_parser = make_parser  # type: ignore[attr-defined]


def _refuse_option(message: str) -> NoReturn:
    what, _, names = message.partition(": ")
    if what == "unrecognized arguments":  # argparse lists the overrides after it as well
        message = f"{what}: {' '.join(name for name in names.split() if name.startswith('-'))}"
    raise ConfigError(f"{message[:1].upper()}{message[1:]}. See --help and --hydra-help.")


def skip_mode_lookup() -> None:
    """Keep Hydra from composing the configuration once more with `--multirun`, only to read `hydra.mode`."""
    hydra._internal.hydra.Hydra.get_mode = lambda *_, **__: None  # type: ignore[method-assign]


def call_before_run(function: Callable[[DictConfig], None]) -> None:
    """Call a function with the composed configuration before Hydra runs a sweeper or a job, but not to show it.

    Hydra's callbacks cannot do this, because Hydra turns their exceptions into warnings.
    """
    running: list[str] = []

    def compose_config(*arguments: Any, **named: Any) -> DictConfig:
        config = _compose_config(*arguments, **named)
        if running:  # the first configuration that is composed to run something
            running.clear()
            function(config)
        return config

    def started(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def start(*arguments: Any, **named: Any) -> Any:
            running.append(name)
            return original(*arguments, **named)

        return start

    hydra._internal.hydra.Hydra.compose_config = compose_config  # type: ignore[method-assign]
    for name, original in _STARTS.items():
        setattr(hydra._internal.hydra.Hydra, name, started(name, original))


def combine_points() -> None:
    """Make Hydra's own sweeper zip lists and set parameters of one of several transforms; refuse too many points."""
    configs: list[DictConfig] = []

    def sweep(self: Any, arguments: list[str]) -> Any:
        configs.append(self.config)
        return original(self, arguments)

    def split_arguments(overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        valid = max_batch_size is None or max_batch_size >= 1
        require(valid, "hydra.sweeper.max_batch_size", "must be 1 or more, or null", max_batch_size)
        config = configs[-1]
        points = combine(overrides, config.sweep.zip, str(config.transform.name))
        if points is not None:
            return list(sweeper.split_overrides_to_chunks(points, max_batch_size)) if points else [[]]
        check_count(overrides)
        return _split_arguments(overrides, max_batch_size)

    Plugins.instance()  # plugin discovery executes the modules again, which makes new classes
    sweeper: Any = sys.modules[BasicSweeper.__module__].BasicSweeper
    original = sweeper.sweep
    sweeper.sweep, sweeper.split_arguments = sweep, staticmethod(split_arguments)


def list_options_quickly() -> None:
    """Make `--help` list a group's options without copying the whole repository, as Hydra does for each group."""
    original = ConfigLoaderImpl.get_group_options

    def get_group_options(
        self: ConfigLoaderImpl,
        group_name: str,
        results_filter: ObjectType | None = ObjectType.CONFIG,
        config_name: str | None = None,
        overrides: list[str] | None = None,
    ) -> list[str]:
        if overrides:  # they may change the search path
            return original(self, group_name, results_filter, config_name, overrides)
        return self.repository.get_group_options(group_name, results_filter)

    ConfigLoaderImpl.get_group_options = get_group_options  # type: ignore[method-assign]


def explain(error: HydraException | OmegaConfBaseException, arguments: Sequence[str]) -> str:
    """Return an error of Hydra or OmegaConf in at most three lines, with the nearest existing name."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        hint = "\nIf it is your transform, add plugins=[its_module]." if group == "transform" else ""
        return f"{group}={option}: there is no such option. {did_you_mean(option, error.options)}{hint}"
    cause: Any = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, OmegaConfBaseException):
        parent, key = cause.parent_node, cause.key
        if isinstance(parent, DictConfig) and key is not None and key not in parent:
            full_key = cause.full_key or str(key)
            if argument := argument_key(full_key):
                return f"{full_key}: there is no such key. Set {argument} instead."
            keys = [str(name) for name in parent if name != "hydra"]
            return f"{full_key}: there is no such key. {did_you_mean(str(key), keys)}{_scope_hint(full_key, arguments)}"
        return one_line(cause)
    if isinstance(cause, ConfigError):  # raised by a launcher or sweeper that Hydra instantiates
        return str(cause)
    if isinstance(error, OverrideParseException) and error.override.lstrip().startswith("zip("):
        return f"{error.override}: write the keys with their values, and sweep.zip=KEY+KEY."
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be parsed: {str(error).splitlines()[0]}"
    if "does not support sweep type" in str(error):
        culprit = next((argument for argument in arguments if "interval(" in argument), "interval()")
        return (
            f"{culprit}: an interval needs an optimising sweeper, such as hydra/sweeper=optuna. "
            "Otherwise list values or use range(start,stop,step)."
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "\n".join(lines[:3]) or type(error).__name__


def _scope_hint(key: str, arguments: Sequence[str]) -> str:
    """Return how to set a parameter of one of several transforms, if the command sweeps over transforms."""
    group, _, parameter = key.partition(".")
    chosen = next((value for name, _, value in (a.partition("=") for a in arguments) if name == "transform"), "")
    names = chosen.split(",") if group == "transform" and "," in chosen else []
    owners = [name for name in names if name in TRANSFORMS and parameter.split(".")[0] in _parameters(name)]
    return f"\nIt is a parameter of one of the transforms: set transform.{owners[0]}.{parameter}." if owners else ""


def _parameters(transform: str) -> set[str]:
    return {field.name for field in fields(TRANSFORMS[transform])}
