"""Given answers: the references and choices that are scored after each prompt, as token ids.

An answer is tokenized as the continuation of its prompt, as lm-evaluation-harness does: prompt and answer are encoded
together, and the tokens after those of the prompt are the answer's. The prompt's tokens are fixed, because they are
what the transforms change. Where the answer would change the last of them, it is encoded by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sweep.errors import ConfigError, TransformError
from sweep.inputs.choices import right_choices
from sweep.inputs.prompt_set import PromptSet
from sweep.inputs.tokenization import EncodedPrompt


@dataclass(frozen=True, slots=True)
class GivenAnswer:
    """An answer that is scored after a prompt.

    Attributes:
        text: the answer as written.
        sent: the text that follows the prompt: the delimiter and the answer.
        sequence: index of its tokens in `GivenAnswers.sequences`.
        tokens: number of tokens.
    """

    text: str
    sent: str
    sequence: int
    tokens: int


@dataclass(frozen=True, slots=True)
class GivenAnswers:
    """The given answers of one prompt.

    Attributes:
        sequences: distinct token ids. Answers with equal tokens are scored once.
        references: the references whose log-probability is measured.
        choices: the choices that are compared; empty if it is not known which are right.
        right: positions of the right choices.
    """

    sequences: tuple[tuple[int, ...], ...] = ()
    references: tuple[GivenAnswer, ...] = ()
    choices: tuple[GivenAnswer, ...] = ()
    right: tuple[int, ...] = ()

    @property
    def longest(self) -> int:
        """Number of tokens of the longest answer; 0 if there is none."""
        return max(map(len, self.sequences), default=0)


def encode_given(
    corpus: PromptSet, *, references: bool, choices: Sequence[str], delimiter: str | None
) -> list[GivenAnswers]:
    """Return the given answers of each prompt.

    Args:
        corpus: the prompts.
        references: whether references are scored.
        choices: the choices of prompts that have none of their own.
        delimiter: text between prompt and answer; None: a space after plain text that does not end in white space. It
            is left out before answers that begin with white space.

    Raises:
        ConfigError: the choices of a prompt do not fit its references, or an answer has no tokens, or one that the
            model's embedding table lacks. Names the prompt.
    """
    return [_of_prompt(encoded, corpus, references, choices, delimiter) for encoded in corpus.prompts]


def _of_prompt(
    encoded: EncodedPrompt, corpus: PromptSet, references: bool, choices: Sequence[str], delimiter: str | None
) -> GivenAnswers:
    prompt, where = encoded.prompt, f"Prompt {encoded.prompt.id!r}"
    compared = prompt.choices or tuple(choices) if prompt.references else ()
    right = right_choices(prompt.references, compared, where) if compared else ()
    scored = prompt.references if references else ()
    if delimiter is None:
        delimiter = "" if prompt.messages is not None or prompt.text[-1:].isspace() else " "
    sequences: dict[tuple[int, ...], int] = {}
    answers = []
    for text in (*scored, *compared):
        sent = text if text[:1].isspace() else delimiter + text
        try:
            tokens = continuation(encoded, sent, corpus)
        except TransformError as error:
            raise ConfigError(f"{where}: the answer {text!r}: {error}.") from error
        if not tokens:
            raise ConfigError(f"{where}: the answer {text!r} has no tokens.")
        answers.append(GivenAnswer(text, sent, sequences.setdefault(tokens, len(sequences)), len(tokens)))
    return GivenAnswers(tuple(sequences), tuple(answers[: len(scored)]), tuple(answers[len(scored) :]), right)


def continuation(encoded: EncodedPrompt, text: str, corpus: PromptSet) -> tuple[int, ...]:
    """Return the tokens of a text that follows a prompt.

    Raises:
        TransformError: the embedding table has no row for a token.
    """
    prompt = encoded.token_ids
    together = tuple(corpus.tokenize_prompt(encoded.prompt.id, encoded.layout.text + text))
    if together[: len(prompt)] == prompt:
        return together[len(prompt) :]
    return tuple(corpus.tokenize(text))
