"""Rendered prompts with the spans of the transforms, for `sweep.show_prompt`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from sweep.errors import TransformError
from sweep.inputs.input_store import InputStore
from sweep.inputs.span import Span
from sweep.inputs.tokenization import EncodedPrompt
from sweep.points.point import Point
from sweep.util.counts import counted


@dataclass(frozen=True, slots=True)
class ShownPrompt:
    """A rendered prompt, cut at the borders of spans.

    Attributes:
        title: id of the prompt, the point, and numbers of tokens.
        pieces: (text, numbers of the spans that cover it), in order; together the whole rendered prompt.
    """

    title: str
    pieces: tuple[tuple[str, tuple[int, ...]], ...]


Shown = set[tuple[str, str, tuple[Span, ...]]]  # digests of models and prompts, and spans, that were shown already


def shown_prompts(points: Sequence[Point], inputs: InputStore, count: int, shown: Shown) -> Iterator[ShownPrompt]:
    """Yield the first prompts of each model, prompts configuration and set of spans, as the model receives them.

    Args:
        points: the points of the sweep.
        inputs: the store that has read the points' prompts.
        count: number of prompts to show of each.
        shown: what earlier batches of points have shown; extended.

    Raises:
        ConfigError: see `InputStore.encoded`.
    """
    for point in points if count else ():
        config = point.config
        stages = [stage for stage in config.transform.stages if stage.transform.name != "identity"]
        spans = tuple(stage.span for stage in stages)
        key = config.model.content_digest, config.prompts.content_digest, spans
        if key in shown:
            continue
        shown.add(key)
        for encoded in inputs.encoded(config.model, config.prompts)[:count]:
            yield show(encoded, point.name, [stage.transform.name for stage in stages], spans)


def show(encoded: EncodedPrompt, point: str, names: Sequence[str], spans: Sequence[Span]) -> ShownPrompt:
    """Return a prompt with its spans.

    Args:
        encoded: the prompt.
        point: name of the point.
        names: names of the transforms.
        spans: the span of each.
    """
    layout = encoded.layout
    total = len(layout.token_ids)
    title = [f"prompt {encoded.prompt.id!r} of {point}: {counted(total, 'token')}"]
    covered: list[set[int]] = [set() for _ in layout.text]
    for number, (name, span) in enumerate(zip(names, spans, strict=True)):
        name = name if len(names) == 1 else f"{number + 1}: {name}"
        try:
            rows = span.rows(layout, None, total)
        except TransformError as error:
            title.append(f"{name}: {error}")
            continue
        title.append(f"{name}, span {span}: {counted(len(rows), 'token')}")
        for row in rows:
            for i in range(*layout.offsets[row]):
                covered[i].add(number)
    numbered = zip(layout.text, (tuple(sorted(numbers)) for numbers in covered), strict=True)
    pieces = tuple(
        ("".join(character for character, _ in group), numbers) for numbers, group in groupby(numbered, lambda p: p[1])
    )
    return ShownPrompt("; ".join(title), pieces)
