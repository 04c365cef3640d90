"""One-line summary of the prompts that were read, shown before a sweep starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sweep.util.counts import counted

MAX_KEYS = 24  # unused keys listed in a summary


@dataclass(frozen=True, slots=True)
class Reading:
    """Reading record of a prompt.

    Attributes:
        form: name of the foreign format of its entry; empty for this project's own.
        text: whether its entry has a text instead of messages.
        system: whether it has a system message.
        answer: whether its chat ended with an answer, which is not sent.
        answer_is_reference: whether that answer is used as its reference.
        unused: keys of its entry without meaning for the prompt.
        source: name of the file or data set; empty for `prompts.items`.
    """

    form: str = ""
    text: bool = False
    system: bool = False
    answer: bool = False
    answer_is_reference: bool = False
    unused: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True)
class PromptSummary:
    """Counts over prompts that were read together.

    Attributes:
        source: the file or data set; empty for `prompts.items`.
        prompts: number of prompts.
        references, choices, systems, tools: number of prompts with reference answers, choices, a system message, or
            tools.
        answers: number of chats that ended with an answer, which is not sent.
        answers_as_references: number of chats whose answer is used as the reference.
        forms: (name, count) of foreign formats.
        unused: (key, count) of keys without meaning for prompts.
    """

    source: str
    prompts: int
    references: int
    systems: int
    tools: int
    answers: int
    answers_as_references: int
    forms: tuple[tuple[str, int], ...]
    unused: tuple[tuple[str, int], ...]
    choices: int = 0

    @classmethod
    def of(
        cls, readings: Sequence[Reading], references: int, tools: int, source: str, choices: int = 0
    ) -> PromptSummary:
        """Count over the readings of prompts."""
        return cls(
            source=source,
            prompts=len(readings),
            references=references,
            systems=sum(reading.system for reading in readings),
            tools=tools,
            answers=sum(reading.answer for reading in readings),
            answers_as_references=sum(reading.answer_is_reference for reading in readings),
            forms=tuple(Counter(r.form for r in readings if r.form).items()),
            unused=tuple(Counter(key for r in readings for key in r.unused).items()),
            choices=choices,
        )

    def __str__(self) -> str:
        return (f"{self.source}: " if self.source else "") + ", ".join(self._pieces())

    def _pieces(self) -> Iterator[str]:
        yield counted(self.prompts, "prompt")
        yield f"{self.references} with references"
        if self.choices:
            yield f"{self.choices} with choices"
        if self.systems:
            yield f"{self.systems} with a system message"
        if self.tools:
            yield f"{self.tools} with tools"
        for form, count in self.forms:
            yield f"read as {form}" + (f" ({count})" if count < self.prompts else "")
        if self.answers_as_references:
            yield f"last answer taken as reference for {self.answers_as_references}"
        if rest := self.answers - self.answers_as_references:
            yield f"last answer left out of {rest}"
        if self.unused:
            shown = ", ".join(key or "a column without a name" for key, _ in self.unused[:MAX_KEYS])
            more = len(self.unused) - MAX_KEYS
            yield f"not used: {shown}" + (f" and {counted(more, 'more key')}" if more > 0 else "")
