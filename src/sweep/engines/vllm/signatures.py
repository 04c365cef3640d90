"""Signatures of the installed vLLM, read from its source files: names and types of arguments.

Importing `vllm.engine.arg_utils` or `vllm.sampling_params` takes 10 s, parsing both files 0.1 s. So mistakes are
reported before anything starts, dry runs included.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PRIMITIVES: Mapping[str, type | tuple[type, ...]] = {
    "bool": bool,
    "int": int,
    "float": (int, float),
    "str": str,
    "list": list,
    "set": list,
    "tuple": list,
    "dict": dict,
}
NAMES = {"bool": "true or false", "int": "an integer", "float": "a number", "str": "text", "dict": "a mapping"}
NAMES |= {"list": "a list", "set": "a list", "tuple": "a list"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """Type of an argument, as far as its annotation tells.

    Attributes:
        kinds: names of accepted plain types, as in Python: `int`, `list`.
        choices: accepted constants of a `Literal`.
        is_open: whether other values may be valid, because the annotation names a class.
    """

    kinds: frozenset[str] = frozenset()
    choices: tuple[Any, ...] = ()
    is_open: bool = False

    def accepts(self, value: Any) -> bool:
        """Return whether a plain value can be valid. null stands for vLLM's default."""
        if value is None or self.is_open or value in self.choices:
            return True
        if isinstance(value, bool):
            return "bool" in self.kinds
        return any(isinstance(value, PRIMITIVES[kind]) for kind in self.kinds if kind != "bool")

    def __str__(self) -> str:
        """Return the accepted values as text."""
        kinds = dict.fromkeys(NAMES[kind] for kind in PRIMITIVES if kind in self.kinds)
        return " or ".join([*map(str, self.choices), *kinds])


@lru_cache
def parameters(module: str, name: str) -> Mapping[str, Parameter]:
    """Return the public fields of a class of the installed vLLM, without importing it.

    Args:
        module: module within vLLM, such as `sampling_params`.
        name: name of the class.

    Returns:
        Types by name. Empty if vLLM is not installed, or has no such class.
    """
    source = _Source.of(module)
    if source is None or (fields := source.classes.get(name)) is None:
        return {}
    return {field: _parameter(annotation, source) for field, annotation in fields.items() if not field.startswith("_")}


@dataclass(frozen=True)
class _Source:
    """Definitions at the top level of one of vLLM's modules.

    Attributes:
        module: dotted name within vLLM.
        classes: annotations of each class's fields.
        aliases: values of assignments.
        imports: module within vLLM of each imported name.
    """

    module: str
    classes: Mapping[str, Mapping[str, ast.expr]]
    aliases: Mapping[str, ast.expr]
    imports: Mapping[str, str]

    @staticmethod
    @lru_cache
    def of(module: str) -> _Source | None:
        """Return a module's definitions; None if it is not installed or cannot be read."""
        spec = find_spec("vllm")
        if spec is None or not spec.submodule_search_locations:
            return None
        path = Path(spec.submodule_search_locations[0], *module.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, SyntaxError):
            return None
        classes: dict[str, Mapping[str, ast.expr]] = {}
        aliases: dict[str, ast.expr] = {}
        imports: dict[str, str] = {}
        for node in _statements(tree.body):
            match node:
                case ast.ClassDef(name=name, body=body):
                    annotated = (line for line in body if isinstance(line, ast.AnnAssign))
                    classes[name] = {
                        line.target.id: line.annotation for line in annotated if isinstance(line.target, ast.Name)
                    }
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    aliases.setdefault(name, value)
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                    aliases.setdefault(name, value)
                case ast.ImportFrom(module=str() as origin, names=names) if origin.startswith("vllm."):
                    imports |= {alias.asname or alias.name: origin.removeprefix("vllm.") for alias in names}
        return _Source(module, classes, aliases, imports)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield statements, also those below `if TYPE_CHECKING`."""
    for node in body:
        yield node
        if isinstance(node, ast.If):
            yield from _statements(node.body)


def _parameter(node: ast.expr, source: _Source) -> Parameter:
    """Return what an annotation accepts."""
    match node:
        case ast.Constant(value=None):
            return Parameter()
        case ast.Constant(value=str() as text):  # a quoted annotation
            return _parameter(ast.parse(text, mode="eval").body, source)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _union(_parameter(left, source), _parameter(right, source))
        case ast.Subscript(value=ast.Name(id="Literal"), slice=values):
            constants = values.elts if isinstance(values, ast.Tuple) else [values]
            return Parameter(choices=tuple(one.value for one in constants if isinstance(one, ast.Constant)))
        case ast.Subscript(value=ast.Name(id=name)) | ast.Name(id=name) if name in PRIMITIVES:
            return Parameter(kinds=frozenset([name]))
        case ast.Name(id=name):
            return _named(name, source)
    return Parameter(is_open=True)


def _named(name: str, source: _Source, depth: int = 8) -> Parameter:
    """Return what a named type accepts; names of classes, and unknown names, accept anything."""
    if name in source.aliases:
        return _parameter(source.aliases[name], source)
    if depth and name in source.imports and (origin := _Source.of(source.imports[name])) is not None:
        return _named(name, origin, depth - 1)
    return Parameter(is_open=True)


def _union(one: Parameter, other: Parameter) -> Parameter:
    return Parameter(one.kinds | other.kinds, one.choices + other.choices, one.is_open or other.is_open)
