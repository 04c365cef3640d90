"""Jinja templates of the user over an entry's keys, in Jinja's sandbox."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from jinja2 import StrictUndefined, UndefinedError, meta, nodes, pass_context
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sweep.errors import ConfigError
from sweep.inputs.bounded import bounded
from sweep.inputs.entry_keys import describe_keys

MARKERS = ("{{", "{%")


@pass_context  # with `optimized`: else constant expressions are computed while a template is compiled, without limits
def _finalize(context: Context, value: Any) -> Any:
    return "" if value is None else value


_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=StrictUndefined,
    keep_trailing_newline=True,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=_finalize,
    optimized=False,
)
# The same configuration must always give the same prompts.
del _ENVIRONMENT.filters["random"], _ENVIRONMENT.globals["lipsum"]


def _variables(tree: nodes.Template) -> frozenset[str]:
    """Return what `meta.find_undeclared_variables` does, which computes constants even with `optimized=False`."""
    generator = meta.TrackingCodeGenerator(_ENVIRONMENT)
    generator.optimizer = None
    generator.visit(tree)
    return frozenset(generator.undeclared_identifiers)


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
            self.variables = _variables(tree)
        except Exception as error:  # Python's compiler and parser of numbers raise other errors than Jinja's
            reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
            raise ConfigError(f"{where}: not a Jinja template: {reason}.") from error

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
