"""Jinja templates of the user over an entry's keys, in Jinja's sandbox."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateError, UndefinedError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sweep.errors import ConfigError
from sweep.inputs.bounded import bounded
from sweep.inputs.entry_keys import describe_keys

MARKERS = ("{{", "{%")

_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=StrictUndefined,
    keep_trailing_newline=True,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=lambda value: "" if value is None else value,
)


def is_template(text: str) -> bool:
    """Return whether a text contains Jinja's markers."""
    return any(marker in text for marker in MARKERS)


class JinjaText:
    """A template that makes one text of a mapping. Immutable.

    Attributes:
        variables: the top-level names that it reads.
    """

    def __init__(self, source: str, where: str) -> None:
        """Compile a template.

        Args:
            source: the template.
            where: configuration key, or place in a file; starts every error message.

        Raises:
            ConfigError: not a Jinja template.
        """
        self._where = where
        try:
            tree = _ENVIRONMENT.parse(source)
            self._template = _ENVIRONMENT.from_string(source)
        except TemplateError as error:
            raise ConfigError(f"{where}: not a Jinja template: {error}.") from error
        self.variables = frozenset(meta.find_undeclared_variables(tree))

    def render(self, values: Mapping[str, Any], where: str) -> str:
        """Return the text for a mapping.

        Raises:
            ConfigError: a name is missing, or the template fails. Starts with `where`.
        """
        try:
            return self._template.render(values)
        except UndefinedError as error:
            missing = [name for name in self.variables if name not in values]
            near = difflib.get_close_matches(missing[0], list(map(str, values)), 1) if missing else []
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{where}: {self._where}: {error.message} ({describe_keys(values)}).{hint}") from error
        except Exception as error:  # filters and operators of the template raise anything
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(f"{where}: {self._where}: the template fails: {reason}.") from error


def render_limited(template: JinjaText, values: Mapping[str, Any], where: str) -> str:
    """Return the text of a template that comes with a file, within the limits of `bounded`.

    Raises:
        ConfigError: see `JinjaText.render`; also if a limit is exceeded.
    """
    try:
        with bounded():
            return template.render(values, where)
    except (TimeoutError, MemoryError) as error:
        raise ConfigError(f"{where}: the template needs too much time or memory ({error}).") from error
