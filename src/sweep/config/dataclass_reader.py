"""Readers that make frozen dataclasses from plain mappings: sections, registered classes, pipelines."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep.errors import ConfigError, SweepError
from sweep.transforms import CONTROLS, TRANSFORMS, Pipeline, Stage, parse_span
from sweep.util.validators import did_you_mean, require, require_choice

T = TypeVar("T")

COMPOSE = "compose"  # option of `transform` with numbered steps


def build(key: str, values: Any, registry: Mapping[str, type[T]]) -> T:
    """Make an instance of the registered class that `values["name"]` names.

    Args:
        key: Configuration key, for error messages.
        values: The name, and the parameters of the class.
        registry: Classes by name.

    Raises:
        ConfigError: A missing or unknown name, an unknown parameter, or a value of the wrong type or out of range.
    """
    if not isinstance(values, dict) or "name" not in values:
        raise ConfigError(f"{key} must be one of its options, not {values!r}. {did_you_mean('', sorted(registry))}")
    parameters = dict(values)
    name = parameters.pop("name")
    require_choice(f"{key}.name", name, sorted(registry))
    known = [parameter.name for parameter in fields(registry[name])]  # type: ignore[arg-type]
    elsewhere: Mapping[str, str] = getattr(registry[name], "not_here", {})
    for parameter in parameters:
        if parameter in elsewhere and parameter not in known:
            raise ConfigError(f"{key}.{parameter} {elsewhere[parameter]}; got {key}={name}.")
        require_choice(key, parameter, known, what=f"parameter of {name}")
    return read(registry[name], key, parameters)


def build_pipeline(value: Any) -> Pipeline:
    """Make the transforms of one mapping, of a list of mappings, or of a composition with numbered keys.

    Raises:
        ConfigError: See `build`; also a composition without steps, or an invalid span.
    """
    if isinstance(value, dict) and value.get("name") == COMPOSE:
        steps = {str(key): step for key, step in value.items() if key != "name"}
        for key in steps:
            require(
                key.isdecimal(), "transform", f"{COMPOSE} must have steps under the keys 0, 1, …, not {key!r}", None
            )
        value = [steps[key] for key in sorted(steps, key=int)]
    if not isinstance(value, list):
        return Pipeline((_build_stage("transform", value),))
    require(bool(value), "transform", f"{COMPOSE} needs steps. Example: transform=scale+noise", None)
    return Pipeline(tuple(_build_stage(f"transform.{index}", step) for index, step in enumerate(value)))


def _build_stage(key: str, values: Any) -> Stage:
    common: dict[str, Any] = {"span": None, "control": None}
    if isinstance(values, dict):
        common |= {name: value for name, value in values.items() if name in common}
        values = {name: value for name, value in values.items() if name not in common}
    try:
        transform = build(key, values, TRANSFORMS)
    except ConfigError as error:  # a transform does not know its index in a composition
        raise ConfigError(re.sub(r"^transform\b(?!\.\d)", key, str(error))) from error
    for parameter in fields(transform):
        value = getattr(transform, parameter.name)
        is_number = not isinstance(value, float) or not math.isnan(value)
        require(is_number, f"{key}.{parameter.name}", "must be a number", value)
    span = parse_span(transform.default_span if common["span"] is None else common["span"], f"{key}.span")
    control = common["control"]
    if control is not None:
        require_choice(f"{key}.control", control, CONTROLS)
        changes_rows = transform.name != "identity"
        require(changes_rows, f"{key}.control", "needs a transform other than identity", None)
    return Stage(transform, span, control)


def read(section: type[T], key: str, values: dict[str, Any]) -> T:
    """Make a frozen dataclass from its values.

    Raises:
        ConfigError: An unknown key, or a value of the wrong type or out of range.
    """
    cached = _last_read.get(section)
    if cached is None or (converted := _convert(values, *cached)) is None:
        try:
            instance: Any = OmegaConf.to_object(OmegaConf.merge(writable(section), values))
        except OmegaConfBaseException as error:
            raise ConfigError(f"{key}.{_locate(section, values, error)}") from error
        except Exception as error:
            raise _plugin_error(section, key, error) from error
        _last_read[section] = values, instance
        return cast(T, instance)
    try:
        return section(**converted)
    except Exception as error:
        raise _plugin_error(section, key, error) from error


def _plugin_error(section: type, key: str, error: Exception) -> Exception:
    """Return the error to raise when a section cannot be made; a plugin's class may raise anything."""
    if isinstance(error, SweepError) or section.__module__.startswith("sweep."):
        return error
    reason = str(error).partition("\n")[0]
    where = f"{section.__module__}.{section.__qualname__}"
    return ConfigError(f"{key}: {where} refuses these values: {type(error).__name__}: {reason}")


def _locate(section: type, values: dict[str, Any], error: OmegaConfBaseException) -> str:
    """Return a read error as `key: message`; OmegaConf does not name the key in every error."""
    for name, value in {} if error.full_key else values.items():
        try:
            OmegaConf.merge(writable(section), {name: value})
        except OmegaConfBaseException as located:
            return f"{name}: {one_line(located)}"
    return one_line(error)


# For each class, the values that OmegaConf read last, and the resulting instance.
_last_read: dict[type, tuple[dict[str, Any], Any]] = {}


def _convert(values: dict[str, Any], last_values: dict[str, Any], last_instance: Any) -> dict[str, Any] | None:
    """Return values as OmegaConf would convert them; None unless only scalars differ, and keep their types.

    This holds for the points of a sweep, and saves the 5 ms that OmegaConf takes for each.
    """
    if values.keys() != last_values.keys():
        return None
    converted = {}
    for name, value in values.items():
        target = getattr(last_instance, name)
        if type(value) is not type(last_values[name]):
            return None
        if value == last_values[name]:
            converted[name] = target
        elif type(value) in (int, float, str) and type(target) in (int, float, str):
            try:
                converted[name] = value if type(target) is type(value) else type(target)(value)
            except (ValueError, OverflowError):
                return None
        else:
            return None
    return converted


def writable(section: type) -> DictConfig:
    """Return a class as an OmegaConf node that overrides can change; nodes of frozen dataclasses are read-only."""
    node: DictConfig = OmegaConf.structured(section)
    _set_writable(node)
    return node


def _set_writable(node: Any) -> None:
    OmegaConf.set_readonly(node, None)
    if isinstance(node, DictConfig) and not node._is_none():
        for key in node:
            if OmegaConf.is_config(child := node._get_node(key)):
                _set_writable(child)


def one_line(error: OmegaConfBaseException) -> str:
    """Return an OmegaConf error as `key: message`, on one line."""
    message = str(error.msg or error).split("\n")[0]
    return f"{error.full_key}: {message}" if error.full_key else message
