"""Reference of the configuration keys in `--help`, generated from the `Attributes:` of the classes' docstrings.

`conf/config.yaml` puts it into the help through the resolver `sweep_keys`. Importing this module imports no engine
library and no PyTorch.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from sweep.config.dataclass_reader import COMPOSE
from sweep.config.schema import SECTIONS, SweepConfig
from sweep.engines import ENGINES
from sweep.transforms import TRANSFORMS, Stage
from sweep.util.redaction import redact

VALUE_WIDTH, KEY_WIDTH = 24, 40  # characters shown of a value; columns of `key=value`
TYPES = {
    "bool": "true|false",
    "int": "integer",
    "float": "number",
    "str": "text",
    "list": "list",
    "tuple": "list",
    "dict": "mapping",
}
_ENTRY = re.compile(r" {4}(\w+): (.*)")


@dataclass(frozen=True, slots=True)
class KeyHelp:
    """Help on one configuration key.

    Attributes:
        key: Full key, such as `sampling.top_p`.
        value: Plain value in the composed configuration.
        kind: Type of the value, such as `number` or `integer|null`; empty if it is not known.
        text: Meaning and allowed values, from the docstring; empty if it has no entry.
    """

    key: str
    value: Any
    kind: str
    text: str

    def __str__(self) -> str:
        pair = f"{self.key}={_show(self.value)}"
        kind = f"({self.kind}) " if self.kind else ""
        return f"{pair:<{KEY_WIDTH}} {kind}{self.text.replace('`', '')}".rstrip()


def register() -> None:
    """Register the resolver `sweep_keys`, which `hydra.help.template` uses."""
    OmegaConf.register_new_resolver("sweep_keys", _resolve, replace=True)


def _resolve(*, _root_: DictConfig) -> str:
    plain = OmegaConf.to_container(OmegaConf.masked_copy(_root_, [str(key) for key in _root_ if key != "hydra"]))
    assert isinstance(plain, dict)
    return render({str(key): value for key, value in plain.items()}).replace("$", "$$")  # the template's escape


def render(plain: Mapping[str, Any]) -> str:
    """Return one line for each key of a configuration of plain values: a block for each section, then other keys."""
    blocks = [key_help(key, value) for key, value in plain.items() if isinstance(value, dict)]
    blocks.append(line for key, value in plain.items() if not isinstance(value, dict) for line in key_help(key, value))
    return "\n\n".join("\n".join(map(str, block)) for block in blocks) + "\n"


def key_help(section: str, value: Any) -> Iterator[KeyHelp]:
    """Yield the help on the keys of one section, or on one key of the top level.

    Args:
        section: Section or key, such as `sampling` or `seed`.
        value: Its plain value; for `transform` and `engine`, `name` selects the class.
    """
    if section in SECTIONS:
        yield from _of_class(section, SECTIONS[section], value)
    elif section == "engine" and isinstance(value, dict):
        yield KeyHelp("engine.name", value.get("name"), "text", f"Engine: {', '.join(sorted(ENGINES))}.")
        yield from _of_class(section, ENGINES.get(str(value.get("name"))), _without_name(value))
    elif section == "transform" and isinstance(value, dict):
        yield from _of_transform(section, value)
    else:
        yield from _of_class("", SweepConfig, {section: value})


def attributes(cls: type) -> dict[str, str]:
    """Return the entries below `Attributes:` in the docstrings of a class and its bases, each on one line."""
    entries: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        name = ""
        _, _, block = inspect.cleandoc(base.__dict__.get("__doc__") or "").partition("Attributes:\n")
        for line in block.splitlines():
            if line.strip() and not line.startswith(" "):
                break
            if match := _ENTRY.match(line):
                name = match[1]
                entries[name] = match[2]
            elif name and line.strip():
                entries[name] += f" {line.strip()}"
    return entries


def _of_transform(key: str, values: Mapping[str, Any]) -> Iterator[KeyHelp]:
    name = values.get("name")
    yield KeyHelp(f"{key}.name", name, "text", "Transform, see the choices above; choose with transform=NAME.")
    if name == COMPOSE:
        for step, step_values in _without_name(values).items():
            if isinstance(step_values, dict):
                yield from _of_transform(f"{key}.{step}", step_values)
        return
    yield from _of_class(key, TRANSFORMS.get(str(name)), _without_name(values))


def _of_class(prefix: str, cls: type | None, values: Any) -> Iterator[KeyHelp]:
    """Yield the help on the values of a class; None for a class that is not registered."""
    texts = {} if cls is None else attributes(cls)
    kinds = {} if cls is None else {field.name: _kind(field.type) for field in fields(cls)}
    if prefix.startswith("transform"):
        common = attributes(Stage)
        texts = {"span": common.get("span", ""), "control": common.get("control", "")} | texts
        kinds = {"span": "text|mapping", "control": "text|null"} | kinds
    for name, value in (values if isinstance(values, dict) else {}).items():
        key = f"{prefix}.{name}" if prefix else str(name)
        nested = _nested_class(cls, name) if isinstance(value, dict) else None
        if nested is not None:
            yield from _of_class(key, nested, value)
        else:
            yield KeyHelp(key, value, kinds.get(name, ""), texts.get(name, ""))


def _nested_class(cls: type | None, name: str) -> type | None:
    """Return the dataclass of a parameter such as `transform.vector`."""
    for field in fields(cls) if cls is not None else ():
        factory: Any = field.default_factory
        if field.name == name and isinstance(factory, type) and is_dataclass(factory):
            return factory
    return None


def _without_name(values: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in values.items() if key != "name"}


def _kind(annotation: Any) -> str:
    """Return a type such as `integer|null` for the annotation of a field."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    names = [re.split(r"[\[(]", part.strip())[0] for part in re.sub(r"\[.*?\](?=\s*\||$)", "", text).split("|")]
    return "|".join("null" if name == "None" else TYPES.get(name, "") for name in names).strip("|")


def _show(value: Any) -> str:
    """Return a value as typed on the command line, on one line, shortened and without secrets."""
    plain = value is None or isinstance(value, (bool, int, float, list, dict))
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9) if plain else str(value)
    text = redact(" ".join(text.removesuffix("...\n").split()))
    return text if len(text) <= VALUE_WIDTH else f"{text[: VALUE_WIDTH - 2]} …"
