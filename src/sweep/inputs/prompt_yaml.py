"""YAML files of prompts: unquoted scalars stay text as written, and aliases are limited.

YAML 1.1 reads `yes`, `12:30` and `2024-01-01` as booleans, numbers and dates. Here an unquoted scalar is the text in
the file; null and NaN mean absent. Tools and tool calls, which chat templates write as JSON, keep numbers and booleans.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode

from sweep.errors import ConfigError

MAX_NODES = 5_000_000  # maximum nodes of a document with its aliases expanded
CHATS = ("messages", "conversations")

_TAG = "tag:yaml.org,2002:"
_TYPED = {
    "bool": re.compile(r"true|false", re.IGNORECASE),
    "int": re.compile(r"[-+]?(0|[1-9][0-9]*)"),
    "float": re.compile(r"[-+]?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?"),
}


def read_yaml(text: str, name: str) -> Any:
    """Return the contents of a YAML document.

    Raises:
        ConfigError: not YAML, a duplicate key, an alias that contains itself, or more than `MAX_NODES` values with
            aliases expanded. Names file and line.
    """
    try:
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            _check(root, name)
            _keep_texts(root, set(), typed=False)
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ConfigError(f"{name}:{line}: not YAML: {error.problem}.") from error
    except yaml.reader.ReaderError as error:  # an illegal character
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{name}:{line}: not YAML: {str(error).splitlines()[0]}.") from error
    except (ValueError, TypeError) as error:  # an explicit tag with an invalid value
        raise ConfigError(f"{name}: not YAML: {error}.") from error


def _check(root: Node, name: str) -> None:
    sizes: dict[int, int | None] = {}  # None: in progress; found again, the node contains itself

    def size(node: Node) -> int:
        if id(node) in sizes:
            count = sizes[id(node)]
            if count is None:
                raise ConfigError(f"{name}:{_line(node)}: this value contains an alias to itself.")
            return count
        sizes[id(node)] = None
        if isinstance(node, MappingNode):
            _check_keys(node, name)
        sizes[id(node)] = total_size = 1 + sum(map(size, _children(node)))
        return total_size

    if (total := size(root)) > MAX_NODES:
        shown = f"{total:,}" if total < 10**15 else "more than 10^15"
        raise ConfigError(f"{name}: it has {shown} values with aliases expanded; the limit is {MAX_NODES:,}.")


def _check_keys(node: MappingNode, name: str) -> None:
    seen = set[str]()
    for key, _ in node.value:
        if isinstance(key, ScalarNode) and key.value != "<<":
            if key.value in seen:
                raise ConfigError(f"{name}:{_line(key)}: duplicate key {key.value!r}.")
            seen.add(key.value)


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _children(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, CollectionNode) else []


def _keep_texts(node: Node, done: set[int], typed: bool) -> None:
    """Tag unquoted scalars as strings, except numbers and booleans where `typed` is set."""
    if id(node) in done:
        return
    done.add(id(node))
    if isinstance(node, ScalarNode):
        yaml_type = node.tag.removeprefix(_TAG)
        number = typed and yaml_type in _TYPED and _TYPED[yaml_type].fullmatch(node.value)
        missing = yaml_type == "float" and node.value.lower() == ".nan"
        if yaml_type in ("bool", "int", "float", "timestamp", "value") and not number and not missing:
            node.tag = f"{_TAG}str"
    elif isinstance(node, MappingNode):
        for key, value in node.value:
            _keep_texts(key, done, typed=False)
            name = key.value if isinstance(key, ScalarNode) else ""
            _keep_texts(value, done, typed=_is_typed(name, value, typed))
    else:
        for child in _children(node):
            _keep_texts(child, done, typed)


def _is_typed(key: str, value: Node, typed: bool) -> bool:
    """Return whether the value of a key keeps numbers: tools, and fields of messages other than their texts."""
    if key == "content" or key in CHATS:
        return False
    return typed or key in ("tools", "tool_calls", "function_call")
