"""What Hydra 1.3 does not do: leave errors to its caller, and say what a mistyped name was meant to be.

It rests on internals of the pinned Hydra; it is all in this module, and `tests/test_cli.py` fails if they move.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hydra._internal.hydra
import hydra._internal.utils
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, RangeSweep
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep.building import COMPOSE, one_line
from sweep.checks import did_you_mean, require
from sweep.errors import ConfigError
from sweep.paths import conf_dir
from sweep.transforms import TRANSFORMS

_load_configuration = ConfigLoaderImpl.load_configuration


def pass_errors_on() -> None:
    """Let exceptions reach the caller of a `hydra.main` function; Hydra would print some and exit with 1."""

    def run_and_report(func: Any) -> Any:
        return func()

    hydra._internal.utils.run_and_report = run_and_report


def refuse_code() -> None:
    """Refuse configurations in which Hydra would find names of callables: what is in a file must not run anything."""

    def checked(*arguments: Any, **named: Any) -> DictConfig:
        config = _load_configuration(*arguments, **named)
        require(not config.hydra.callbacks, "hydra.callbacks", "names code, which configurations cannot do", None)
        for key in ("hydra_logging", "job_logging"):
            plain = OmegaConf.to_container(config.hydra[key]) or {}
            require(not _names_code(plain), f"hydra.{key}", "may name only classes of Python's logging", None)
        return config

    ConfigLoaderImpl.load_configuration = checked  # type: ignore[method-assign]


def _names_code(plain: Any) -> bool:
    if isinstance(plain, list):
        return any(map(_names_code, plain))
    if not isinstance(plain, dict):
        return False
    named = plain.get("class", "logging.")
    return "()" in plain or not str(named).startswith("logging.") or any(map(_names_code, plain.values()))


def compose_once() -> None:
    """Have Hydra take `--multirun` at its word: it would compose everything once more, only to read `hydra.mode`."""
    hydra._internal.hydra.Hydra.get_mode = lambda *_, **__: None  # type: ignore[method-assign]


def list_options_quickly() -> None:
    """Have `--help` look the options of groups up where they are: for each group it would copy all there are."""
    copied = ConfigLoaderImpl.get_group_options

    def looked_up(
        self: ConfigLoaderImpl,
        group_name: str,
        results_filter: ObjectType | None = ObjectType.CONFIG,
        config_name: str | None = None,
        overrides: list[str] | None = None,
    ) -> list[str]:
        if overrides:  # there may be a search path among them
            return copied(self, group_name, results_filter, config_name, overrides)
        return self.repository.get_group_options(group_name, results_filter)

    ConfigLoaderImpl.get_group_options = looked_up  # type: ignore[method-assign]


def list_override(key: str, arguments: Sequence[str]) -> list[str]:
    """Return what `key=[a,b]` or `key=a` says on a command line; nothing if it is not there or cannot be read."""
    for argument in arguments:
        if argument.partition("=")[0].lstrip("+") == key:
            try:
                value = OverridesParser.create().parse_override(argument).value()
            except HydraException:
                return []  # Hydra's own parsing will say what is wrong
            return [str(entry) for entry in (value if isinstance(value, list) else [value]) if entry is not None]
    return []


def expand_compositions(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `transform=a+b` as Hydra spells it: an option for each step, in a package of its own.

    Raises:
        ConfigError: compositions stand in a comma list, for which Hydra has no spelling.
    """
    expanded = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key != "transform" or "+" not in value:
            expanded.append(argument)
            continue
        if "," in value:
            raise ConfigError(f"{argument}: compositions cannot stand in a comma list; run one sweep for each.")
        if not all(value.split("+")):
            raise ConfigError(f"{argument}: a composition names its steps: transform=scale+noise.")
        steps = [f"+transform@transform.{place}={name}" for place, name in enumerate(value.split("+"))]
        expanded += [f"transform={COMPOSE}", *steps]
    return expanded


def check_values(arguments: Sequence[str]) -> None:
    """Refuse values that Hydra fails on without saying where they stand.

    Raises:
        ConfigError: something that is no name is given as a group's option, or a range has no step.
    """
    for argument in arguments:
        try:
            override = OverridesParser.create().parse_override(argument)
        except HydraException:
            continue  # Hydra's own parsing will say what is wrong
        value = override.value()
        if isinstance(value, RangeSweep) and not value.step:
            raise ConfigError(f"{argument}: the step of a range must not be 0.")
        group = conf_dir() / override.key_or_group
        given = value.list if isinstance(value, ChoiceSweep) else [value]
        no_name = any(each is None or isinstance(each, (int, float, dict)) for each in given)
        own = override.key_or_group == "transform"  # whose options are the registered classes, and no files
        if (own or group.is_dir()) and not override.is_delete() and no_name:
            options = sorted(TRANSFORMS) if own else sorted(path.stem for path in group.glob("*.yaml"))
            raise ConfigError(f"{argument}: there is no such option. {did_you_mean('', options)}")


def explain(error: HydraException | OmegaConfBaseException, arguments: Sequence[str]) -> str:
    """Return an error of Hydra or OmegaConf in a line or three, with the nearest name that exists."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        own = "\nOne of your own needs plugins=[its_module] on the command line." if group == "transform" else ""
        return f"{group}={option}: there is no such option. {did_you_mean(option, error.options)}{own}"
    cause: Any = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, OmegaConfBaseException):
        parent, key = cause.parent_node, cause.key
        if isinstance(parent, DictConfig) and key is not None and key not in parent:
            full_key = cause.full_key or str(key)
            known = [str(name) for name in parent if name != "hydra"]
            return f"{full_key}: there is no such key. {did_you_mean(str(key), known)}"
        return one_line(cause)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read: {str(error).splitlines()[0]}"
    if "does not support sweep type" in str(error):
        named = next((argument for argument in arguments if "interval(" in argument), "interval()")
        return (
            f"{named}: an interval needs a sweeper that optimises, such as hydra/sweeper=optuna; "
            "list values, or give a range(start,stop,step)."
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "\n".join(lines[:3]) or type(error).__name__
