"""Guard against code in configurations: Hydra's own section may choose a launcher and a sweeper, and nothing else.

Hydra's section can configure logging (which imports classes and opens files), call callbacks, set environment
variables, and write to other folders. Sweeps need none of that: the log is `sweep.log`, and `sweep.dir` is the folder.

The guard has two layers. It disables the functions of Hydra that would run code or write files, and it refuses by name
a configuration that asks for them. It relies on internals that Hydra 1.3 and 1.4 share;
`tests/config/test_code_guard.py` runs on both.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import hydra._internal.core_plugins.basic_launcher
import hydra._internal.hydra
import hydra.core.plugins
import hydra.core.utils
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from sweep.errors import ConfigError
from sweep.util.validators import require, require_choice

FOLDER = "${sweep_folder:${sweep.dir}}"
PLACE = "set sweep.dir instead"
RERUN = "--experimental-rerun"
LOG = "the log is sweep.log in the sweep's folder. Use verbose=true to show it"
CODE = "a configuration must not name code"
VARIABLE = "set the environment variable before the command instead"
NO_LOGGING = {"version": 1, "root": None, "disable_existing_loggers": False}

# Keys of Hydra's section that must not be changed: their allowed values, and what to do instead.
FIXED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "run.dir": ((FOLDER,), PLACE),
    "sweep.dir": ((FOLDER,), PLACE),
    "sweep.subdir": ((".",), PLACE),
    "output_subdir": ((None,), PLACE),
    "job.chdir": ((None, False), PLACE),
    "callbacks": (({}, None), CODE),
    "hydra_logging": ((NO_LOGGING,), LOG),
    "job_logging": ((NO_LOGGING,), LOG),
    "verbose": ((False,), LOG),
    "job.env_copy": (([],), VARIABLE),
    "job.env_set": (({},), VARIABLE),
}
PLUGINS: Mapping[str, type] = {"launcher": Launcher, "sweeper": Sweeper}

_load = ConfigLoaderImpl._load_configuration_impl
_append = ConfigSearchPathImpl.append
_instantiate = hydra.core.plugins.instantiate  # type: ignore[attr-defined]


def install() -> None:
    """Install the guard in Hydra, for every configuration that this process composes."""
    for module in (hydra.core.utils, hydra._internal.hydra, hydra._internal.core_plugins.basic_launcher):
        module.configure_log = _configure_no_log  # type: ignore[attr-defined]
    # Otherwise Hydra would instantiate every `_target_` below a launcher's or a sweeper's options.
    hydra.core.plugins.instantiate = functools.partial(_instantiate, _recursive_=False)  # type: ignore[attr-defined]
    ConfigSearchPathImpl.append = _append_folder  # type: ignore[method-assign]
    ConfigLoaderImpl._load_configuration_impl = _load_checked  # type: ignore[method-assign]


def refuse_modes(arguments: Sequence[str]) -> None:
    """Refuse Hydra's option that reads a pickle, which can contain any code.

    Raises:
        ConfigError: The arguments have the option.
    """
    has_option = any(argument.partition("=")[0] == RERUN for argument in arguments)
    require(not has_option, RERUN, "is not supported: run the same command again", None)


def check(section: Mapping[str, Any], overrides: list[str]) -> None:
    """Check Hydra's section of a composed configuration, as plain values.

    Args:
        section: The section, with unresolved interpolations.
        overrides: The overrides that it was composed with.

    Raises:
        ConfigError: A key asks for code, for files or for another folder.
    """
    for key, (values, instead) in FIXED.items():
        require(_at(section, key) in values, f"hydra.{key}", f"cannot be set: {instead}", None)
    for key, kind in PLUGINS.items():
        _check_plugin(f"hydra.{key}", section.get(key), kind)
    recorded = section["overrides"]
    unchanged = sorted([*recorded["task"], *recorded["hydra"]]) == sorted(overrides)
    require(unchanged, "hydra.overrides", "cannot be set: it records the overrides of the command line", None)


def _check_plugin(key: str, options: Any, kind: type) -> None:
    """Check that a launcher or sweeper is an installed plugin, and that its options name no other class."""
    require(isinstance(options, dict), key, f"must be chosen by name: {key.replace('.', '/')}=NAME", None)
    plugins = {f"{plugin.__module__}.{plugin.__name__}": plugin for plugin in Plugins.instance().discover(kind)}
    target = options.get("_target_")
    require(target in plugins, f"{key}._target_", f"cannot be set: choose by name, {key.replace('.', '/')}=NAME", None)
    parameters = inspect.signature(plugins[target]).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for option, value in options.items():
        if option != "_target_" and (str(option).startswith("_") or _names_code(value)):
            raise ConfigError(f"{key}.{option} cannot be set: {CODE}.")
        if option != "_target_" and not takes_any:
            require_choice(key, option, list(parameters), what="option")


def _names_code(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_names_code, value))
    if isinstance(value, dict):
        return any(key == "_target_" or _names_code(entry) for key, entry in value.items())
    return False


def _at(section: Any, key: str) -> Any:
    for part in key.split("."):
        section = section.get(part) if isinstance(section, dict) else None
    return section


def _load_checked(self: ConfigLoaderImpl, *arguments: Any, **named: Any) -> DictConfig:
    config = _load(self, *arguments, **named)
    if named.get("config_name", arguments[0] if arguments else None) is not None:  # None: --hydra-help, runs nothing
        overrides = named.get("overrides", arguments[1] if len(arguments) > 1 else ())
        plain: Any = OmegaConf.to_container(config.hydra)
        check(plain, list(overrides))
    return config


def _configure_no_log(*arguments: Any, **named: Any) -> None:
    """Leave Python's logging unchanged."""


def _append_folder(self: ConfigSearchPathImpl, provider: str, path: str, anchor: Any = None) -> None:
    if provider.startswith("hydra.searchpath"):
        scheme = path.partition("://")[0] if "://" in path else "file"
        rule = "may name folders only, because a Python package would be imported"
        require(scheme == "file", "hydra.searchpath", rule, path)
    _append(self, provider, path, anchor)
