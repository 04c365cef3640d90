"""Spans: which rows of a prompt a transform may touch.

A span picks tokens of the prompt as it was before any transform, by the text they stand for.  Rows keep track of the
tokens they stem from, so that a span means the same after rows were moved, merged or inserted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sweep.checks import require, require_choice
from sweep.errors import ConfigError, TransformError
from sweep.inputs.layout import Characters, Layout

PARTS = ("all", "content", "template", "injected")
Origins = Sequence[tuple[int, ...]]  # for each row, the prompt's tokens that it stems from


@dataclass(frozen=True, slots=True)
class Span:
    """The rows that fit all that is given.

    Attributes:
        part: `all` rows; `content`, the messages' own texts; `template`, everything else of the prompt: template and
            special tokens; `injected`, rows that stem from no token.
        role: contents of messages of this role: `user`, `system`, `assistant`.
        substring: each occurrence of a text in the contents.
        regex: each match of a regular expression in the contents.
        placeholder: each place of `{name}`.
        positions: numbers among the tokens that fit all of the above; negative ones count from their end.
        window: [start, stop) among the tokens that fit all of the above; either may be null or negative.
        exclude: spans whose rows are left out.
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
        """Return the numbers of the rows in this span, ascending.

        Args:
            layout: the prompt's.
            origins: what tokens the rows stem from; None if they are the prompt's own, one for each token.
            count: the number of rows.

        Raises:
            TransformError: no row is in it, a position is outside the prompt, or the texts could not be located.
        """
        found = self._find(layout, origins, count)
        for excluded in self.exclude:
            found -= excluded._find(layout, origins, count)
        if not found:
            raise TransformError(f"the span {self} is empty: the prompt has no such rows")
        return sorted(found)

    def _find(self, layout: Layout, origins: Origins | None, count: int) -> set[int]:
        if self.part == "injected":
            return {i for i, tokens in enumerate(origins or ()) if not tokens}
        if not self._narrows:
            return set(range(count))
        tokens = set(self.tokens(layout))
        if origins is None:
            return tokens
        return {i for i, stem in enumerate(origins) if not tokens.isdisjoint(stem)}

    @property
    def _narrows(self) -> bool:
        return self.part != "all" or any(
            value is not None
            for value in (self.role, self.substring, self.regex, self.placeholder, self.positions, self.window)
        )

    def tokens(self, layout: Layout) -> list[int]:
        """Return the tokens of the prompt in this span, `exclude` left aside."""
        tokens = self._by_text(layout)
        if self.window is not None:
            tokens = tokens[slice(*self.window)]
        if self.positions is not None:
            if any(not -len(tokens) <= position < len(tokens) for position in self.positions):
                raise TransformError(f"the span {self} reaches outside the prompt, which has {len(tokens)} such tokens")
            tokens = sorted({tokens[position] for position in self.positions})
        return tokens

    def _by_text(self, layout: Layout) -> list[int]:
        ranges: list[Characters] | None = None
        if self.part != "all" or self.role or self.substring is not None or self.regex is not None:
            ranges = self._contents(layout)
        if self.substring is not None or self.regex is not None:
            pattern = re.compile(self.regex if self.regex is not None else re.escape(self.substring or ""))
            # In the text by itself, where ^ is its start and nothing of the template can be looked at.
            texts = [(a, layout.text[a:b]) for a, b in ranges or ()]
            matches = [(a + m.start(), a + m.end()) for a, text in texts for m in pattern.finditer(text)]
            ranges = [(start, stop) for start, stop in matches if start < stop]
        tokens = range(len(layout.offsets))
        chosen = set(tokens if ranges is None else layout.overlapping(ranges))
        if self.part == "template":
            chosen = set(tokens) - chosen
        if self.placeholder is not None:
            chosen &= set(layout.overlapping(self._places(layout)))
        return sorted(chosen)

    def _contents(self, layout: Layout) -> list[Characters]:
        if layout.contents is None:
            raise TransformError(
                f"the span {self} cannot be found: the chat template rewrites the messages' texts, or the tokenizer "
                "says nothing of its tokens' places; use the span all, positions or window"
            )
        return [(c.start, c.stop) for c in layout.contents if self.role in (None, c.role)]

    def _places(self, layout: Layout) -> list[Characters]:
        places = [characters for name, characters in layout.placeholders if name == self.placeholder]
        if not places:
            raise TransformError(
                f"the prompt has no placeholder {{{self.placeholder}}}; "
                f"it is declared by prompts.placeholders=[{self.placeholder}] or filled by the prompt's values"
            )
        return places

    def config(self) -> Any:
        """Return what `parse_span` makes this span of."""
        said = {name: getattr(self, name) for name in _SAID}
        given = {key: list(v) if isinstance(v, tuple) else v for key, v in said.items() if v is not None}
        if self.exclude:
            given["exclude"] = [excluded.config() for excluded in self.exclude]
        if len(given) > 1 and self.part == "all":
            del given["part"]
        return self.part if list(given) == ["part"] else given

    def __str__(self) -> str:
        return str(self.config()).replace("'", "")


_SAID = tuple(field.name for field in fields(Span) if field.name != "exclude")


def parse_span(value: Any, key: str) -> Span:
    """Make a span of a part's name or a mapping.

    One that names texts or a role looks in the contents, one with positions or a window alone in the whole prompt.

    Raises:
        ConfigError: neither a part nor a mapping of the fields of `Span`, or a field of the wrong kind.
    """
    if isinstance(value, str):
        require_choice(key, value, PARTS, what="part of a prompt")
        return Span(part=value)
    if not isinstance(value, Mapping) or not value:
        raise ConfigError(f"{key} must be one of {', '.join(PARTS)}, or a mapping such as {{substring: blue}}.")
    given = dict(value)
    for name in given:
        require_choice(key, name, [field.name for field in fields(Span)], what="field of a span")
    for name in ("role", "substring", "regex", "placeholder"):
        if name in given:
            require(bool(given[name]) and isinstance(given[name], str), f"{key}.{name}", "must be a text", given[name])
    require_choice(f"{key}.part", given.setdefault("part", "all"), PARTS)
    require("substring" not in given or "regex" not in given, key, "has a substring or a regex, not both", value)
    alone = given["part"] != "injected" or not set(given) - {"part", "exclude"}
    require(alone, key, "of injected rows can have an exclude, nothing else", value)
    text = given["part"] != "template" or not {"role", "substring", "regex"} & set(given)
    require(text, key, "of the template has no role, substring or regex: those look in the contents", value)
    if "regex" in given:
        try:
            re.compile(given["regex"])
        except re.error as error:
            raise ConfigError(f"{key}.regex: {given['regex']!r} is no regular expression: {error}.") from error
    if "positions" in given:
        given["positions"] = _integers(given["positions"], f"{key}.positions")
    if "window" in given:
        window = given["window"]
        pair = isinstance(window, Sequence) and len(window) == 2 and all(v is None or _is_int(v) for v in window)
        require(pair, f"{key}.window", "must be [start, stop]", window)
        given["window"] = (window[0] or None, window[1])
    if "exclude" in given:
        excluded = given["exclude"] if isinstance(given["exclude"], list | tuple) else [given["exclude"]]
        spans = {parse_span(one, f"{key}.exclude") for one in excluded}
        given["exclude"] = tuple(sorted(spans, key=str))
    if given["part"] == "content" and {"role", "substring", "regex"} & set(given):
        given["part"] = "all"  # they look in the contents anyway
    return Span(**given)


def _integers(value: Any, key: str) -> tuple[int, ...]:
    values = [value] if _is_int(value) else value
    fits = isinstance(values, list | tuple) and bool(values) and all(_is_int(v) for v in values)
    require(fits, key, "must be a list of whole numbers", value)
    return tuple(values)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
