"""From plain mappings to the frozen values that they describe: a section, a registered class, a pipeline."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep.checks import did_you_mean, require, require_choice
from sweep.errors import ConfigError
from sweep.transforms import CONTROLS, TRANSFORMS, Pipeline, Stage, parse_span

T = TypeVar("T")

COMPOSE = "compose"  # the option of `transform` whose steps are transforms


def build(key: str, values: Any, registry: Mapping[str, type[T]]) -> T:
    """Make the registered class that `values["name"]` names from the other entries of `values`.

    Raises:
        ConfigError: no or an unknown name, an unknown parameter, or a value of the wrong type or out of range.
    """
    if not isinstance(values, dict) or "name" not in values:
        raise ConfigError(f"{key} must be one of its options, not {values!r}. {did_you_mean('', sorted(registry))}")
    parameters = dict(values)
    name = parameters.pop("name")
    require_choice(f"{key}.name", name, sorted(registry))
    known = [parameter.name for parameter in fields(registry[name])]  # type: ignore[arg-type]
    for parameter in parameters:
        require_choice(key, parameter, known, what=f"parameter of {name}")
    return read(registry[name], key, parameters)


def build_pipeline(value: Any) -> Pipeline:
    """Make the transforms of one mapping, of a list of them, or of a composition whose steps are numbered keys.

    Raises:
        ConfigError: as `build`; a composition without steps; a span that is none.
    """
    if isinstance(value, dict) and value.get("name") == COMPOSE:
        steps = {str(key): step for key, step in value.items() if key != "name"}
        for key in steps:
            require(key.isdecimal(), "transform", f"{COMPOSE} has steps under the numbers 0, 1, …, not {key!r}", None)
        value = [steps[key] for key in sorted(steps, key=int)]
    if not isinstance(value, list):
        return Pipeline((_build_stage("transform", value),))
    require(bool(value), "transform", f"{COMPOSE} needs steps, such as transform=scale+noise", None)
    return Pipeline(tuple(_build_stage(f"transform.{place}", step) for place, step in enumerate(value)))


def _build_stage(key: str, values: Any) -> Stage:
    common: dict[str, Any] = {"span": None, "control": None}
    if isinstance(values, dict):
        common |= {name: value for name, value in values.items() if name in common}
        values = {name: value for name, value in values.items() if name not in common}
    try:
        transform = build(key, values, TRANSFORMS)
    except ConfigError as error:  # a transform does not know its place in a composition
        raise ConfigError(re.sub(r"^transform\b(?!\.\d)", key, str(error))) from error
    for parameter in fields(transform):
        value = getattr(transform, parameter.name)
        number = not isinstance(value, float) or not math.isnan(value)
        require(number, f"{key}.{parameter.name}", "must be a number", value)
    span = parse_span(transform.default_span if common["span"] is None else common["span"], f"{key}.span")
    control = common["control"]
    if control is not None:
        require_choice(f"{key}.control", control, CONTROLS)
        changes = transform.name != "identity"
        require(changes, f"{key}.control", "needs a transform that changes something", None)
    return Stage(transform, span, control)


def read(section: type[T], key: str, values: dict[str, Any]) -> T:
    """Make a frozen dataclass of its values.

    Raises:
        ConfigError: a key that it does not have, a value of the wrong type or out of range.
    """
    known = _read_before.get(section)
    if known is None or (converted := _convert(values, *known)) is None:
        try:
            made: Any = OmegaConf.to_object(OmegaConf.merge(writable(section), values))
        except OmegaConfBaseException as error:
            raise ConfigError(f"{key}.{_culprit(section, values, error)}") from error
        _read_before[section] = values, made
        return cast(T, made)
    return section(**converted)


def _culprit(section: type, values: dict[str, Any], error: OmegaConfBaseException) -> str:
    """Return an error in reading values as `key: what is wrong`; OmegaConf does not say the key of every one."""
    for name, value in {} if error.full_key else values.items():
        try:
            OmegaConf.merge(writable(section), {name: value})
        except OmegaConfBaseException as own:
            return f"{name}: {one_line(own)}"
    return one_line(error)


# The last values that OmegaConf has read into each class, and what it has made of them.
_read_before: dict[type, tuple[dict[str, Any], Any]] = {}


def _convert(values: dict[str, Any], before: dict[str, Any], made: Any) -> dict[str, Any] | None:
    """Return values as OmegaConf would convert them, if they differ from others but in scalars of the same types.

    The points of a sweep do, and OmegaConf takes 5 ms for each.
    """
    if values.keys() != before.keys():
        return None
    converted = {}
    for name, value in values.items():
        target = getattr(made, name)
        if type(value) is not type(before[name]):
            return None
        if value == before[name]:
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
    """Return a class as a node; OmegaConf makes those of frozen dataclasses read-only, which overrides cannot have."""
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
    """Return an OmegaConf error as `key: what is wrong with it`."""
    message = str(error.msg or error).split("\n")[0]
    return f"{error.full_key}: {message}" if error.full_key else message
