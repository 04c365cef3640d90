"""Spans: the rows of a prompt that a transform may change.

A span selects tokens of the untransformed prompt by the text they stand for. Rows keep track of the tokens they
originate from, so a span keeps its meaning after rows were moved, merged or inserted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sweep.errors import ConfigError, TransformError
from sweep.inputs.layout import Characters, Layout
from sweep.util.counts import counted
from sweep.util.validators import require, require_choice

PARTS = ("all", "content", "template", "injected")
Origins = Sequence[tuple[int, ...]]  # for each row, the indices of the prompt's tokens it originates from


@dataclass(frozen=True, slots=True)
class Span:
    """The rows that match all given selectors.

    Attributes:
        part: `all` rows; `content`, the messages' own texts; `template`, the rest of the prompt: template and special
            tokens; `injected`, rows that originate from no token.
        role: contents of messages with this role: `user`, `system`, `assistant`.
        substring: every occurrence of a text in the contents.
        regex: every match of a regular expression in the contents.
        placeholder: every position of `{name}`.
        positions: indices among the tokens that match all of the above; negative ones count from the end.
        window: [start, stop) among the tokens that match all of the above; either may be null or negative.
        exclude: spans whose rows are excluded.
    """

    part: str = "all"
    role: str | None = None
    substring: str | None = None
    regex: str | None = None
    placeholder: str | None = None
    positions: tuple[int, ...] | None = None
    window: tuple[int | None, int | None] | None = None
    exclude: tuple[Span, ...] = ()

    def rows(self, layout: Layout, origins: Origins | None, count: int) -> list[int]:
        """Return the indices of the rows in this span, ascending.

        Args:
            layout: the prompt's layout.
            origins: the tokens that each row originates from; None for the prompt's own rows, one per token.
            count: number of rows.

        Raises:
            TransformError: the span is empty, a position is outside the prompt, or the texts cannot be located.
        """
        matches = self._find(layout, origins, count)
        for excluded in self.exclude:
            matches -= excluded._find(layout, origins, count)
        if not matches:
            raise TransformError(f"the span {self} is empty: the prompt has no matching rows")
        return sorted(matches)

    def _find(self, layout: Layout, origins: Origins | None, count: int) -> set[int]:
        if self.part == "injected":
            return {i for i, tokens in enumerate(origins or ()) if not tokens}
        if not self._has_selectors:
            return set(range(count))
        tokens = set(self.tokens(layout))
        if origins is None:
            return tokens
        return {i for i, origin in enumerate(origins) if not tokens.isdisjoint(origin)}

    @property
    def _has_selectors(self) -> bool:
        return self.part != "all" or any(
            value is not None
            for value in (self.role, self.substring, self.regex, self.placeholder, self.positions, self.window)
        )

    def tokens(self, layout: Layout) -> list[int]:
        """Return the indices of the prompt's tokens in this span, ignoring `exclude`.

        Raises:
            TransformError: a position is outside the prompt, or the texts cannot be located.
        """
        tokens = self._by_text(layout)
        if self.window is not None:
            tokens = tokens[slice(*self.window)]
        if self.positions is not None:
            if any(not -len(tokens) <= position < len(tokens) for position in self.positions):
                raise TransformError(
                    f"the span {self} reaches outside the prompt, which has {counted(len(tokens), 'matching token')}"
                )
            tokens = sorted({tokens[position] for position in self.positions})
        return tokens

    def _by_text(self, layout: Layout) -> list[int]:
        ranges: list[Characters] | None = None
        if self.part != "all" or self.role or self.substring is not None or self.regex is not None:
            ranges = self._contents(layout)
        if self.substring is not None or self.regex is not None:
            pattern = re.compile(self.regex if self.regex is not None else re.escape(self.substring or ""))
            # Search each text by itself, so that ^ is its start and lookarounds do not see the template.
            texts = [(a, layout.text[a:b]) for a, b in ranges or ()]
            matches = [(a + m.start(), a + m.end()) for a, text in texts for m in pattern.finditer(text)]
            ranges = [(start, stop) for start, stop in matches if start < stop]
        tokens = range(len(layout.offsets))
        selected = set(tokens if ranges is None else layout.overlapping(ranges))
        if self.part == "template":
            selected = set(tokens) - selected
        if self.placeholder is not None:
            selected &= set(layout.overlapping(self._places(layout)))
        return sorted(selected)

    def _contents(self, layout: Layout) -> list[Characters]:
        if layout.contents is None:
            raise TransformError(
                f"the span {self} cannot be located: the chat template rewrites the messages' texts, or the tokenizer "
                "has no token offsets. Use span=all, positions or window"
            )
        return [(c.start, c.stop) for c in layout.contents if self.role in (None, c.role)]

    def _places(self, layout: Layout) -> list[Characters]:
        places = [characters for name, characters in layout.placeholders if name == self.placeholder]
        if not places:
            raise TransformError(
                f"the prompt has no placeholder {{{self.placeholder}}}. "
                f"Declare prompts.placeholders=[{self.placeholder}], or give the prompt a value for it"
            )
        return places

    def config(self) -> Any:
        """Return the configuration from which `parse_span` creates this span."""
        selectors = {name: getattr(self, name) for name in _SELECTORS}
        config = {key: list(v) if isinstance(v, tuple) else v for key, v in selectors.items() if v is not None}
        if self.exclude:
            config["exclude"] = [excluded.config() for excluded in self.exclude]
        if len(config) > 1 and self.part == "all":
            del config["part"]
        return self.part if list(config) == ["part"] else config

    def __str__(self) -> str:
        return str(self.config()).replace("'", "")


_SELECTORS = tuple(field.name for field in fields(Span) if field.name != "exclude")


def parse_span(value: Any, key: str) -> Span:
    """Create a span from the name of a part, or from a mapping.

    Text selectors and roles apply to the contents; positions or a window alone apply to the whole prompt.

    Args:
        value: the configured value.
        key: the configuration key, for errors.

    Raises:
        ConfigError: neither a part nor a mapping of the fields of `Span`, or a field has the wrong type.
    """
    if isinstance(value, str):
        require_choice(key, value, PARTS, what="part of a prompt")
        return Span(part=value)
    if not isinstance(value, Mapping) or not value:
        raise ConfigError(f"{key} must be one of {', '.join(PARTS)}, or a mapping such as {{substring: blue}}.")
    options = dict(value)
    for name in options:
        require_choice(key, name, [field.name for field in fields(Span)], what="field of a span")
    for name in ("role", "substring", "regex", "placeholder"):
        if name in options:
            require(
                bool(options[name]) and isinstance(options[name], str),
                f"{key}.{name}",
                "must be a non-empty string",
                options[name],
            )
    require_choice(f"{key}.part", options.setdefault("part", "all"), PARTS)
    require("substring" not in options or "regex" not in options, key, "takes a substring or a regex, not both", value)
    valid = options["part"] != "injected" or not set(options) - {"part", "exclude"}
    require(valid, key, "with part=injected takes no other selector than exclude", value)
    valid = options["part"] != "template" or not {"role", "substring", "regex"} & set(options)
    require(valid, key, "with part=template takes no role, substring or regex, which search the contents", value)
    if "regex" in options:
        try:
            re.compile(options["regex"])
        except re.error as error:
            raise ConfigError(
                f"{key}.regex: {options['regex']!r} is not a valid regular expression: {error}."
            ) from error
    if "positions" in options:
        options["positions"] = _integers(options["positions"], f"{key}.positions")
    if "window" in options:
        window = options["window"]
        pair = isinstance(window, Sequence) and len(window) == 2 and all(v is None or _is_int(v) for v in window)
        require(pair, f"{key}.window", "must be [start, stop]", window)
        options["window"] = (window[0] or None, window[1])
    if "exclude" in options:
        excluded = options["exclude"] if isinstance(options["exclude"], list | tuple) else [options["exclude"]]
        excludes = {parse_span(item, f"{key}.exclude") for item in excluded}
        options["exclude"] = tuple(sorted(excludes, key=str))
    if options["part"] == "content" and {"role", "substring", "regex"} & set(options):
        options["part"] = "all"  # these selectors search the contents anyway
    return Span(**options)


def _integers(value: Any, key: str) -> tuple[int, ...]:
    values = [value] if _is_int(value) else value
    valid = isinstance(values, list | tuple) and bool(values) and all(_is_int(v) for v in values)
    require(valid, key, "must be a list of whole numbers", value)
    return tuple(values)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
