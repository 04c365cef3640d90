"""Planning of given answers: which references and choices the points score, checked before an engine starts."""

from __future__ import annotations

from collections.abc import Sequence

from sweep.config.schema import SweepConfig
from sweep.config.scoring_config import ScoringConfig
from sweep.errors import ConfigError
from sweep.inputs.given_answers import GivenAnswers, encode_given
from sweep.inputs.prompt_set import PromptSet
from sweep.inputs.tokenization import EncodedPrompt

_Key = tuple[PromptSet, bool, tuple[str, ...], str | None]


class GivenPlanner:
    """Encodes the given answers of each prompt set once for all points that score the same ones.

    Owned by the thread that plans.
    """

    def __init__(self) -> None:
        self._encoded: dict[_Key, list[GivenAnswers]] = {}

    def of(self, corpus: PromptSet, config: SweepConfig, limit: int) -> Sequence[GivenAnswers]:
        """Return the given answers of a point, one entry per prompt; empty if it scores none.

        Args:
            corpus: the point's prompts.
            config: the point's configuration.
            limit: the largest number of tokens in prompt and answer together.

        Raises:
            ConfigError: no prompt has what is scored, or an answer does not fit; see also `encode_given`.
        """
        scoring, own_choices = config.scoring, config.prompts.choices_key is not None
        has_choices = bool(scoring.choices) or own_choices
        _check_primary(scoring, has_choices)
        if not scoring.reference_logprob and not has_choices:
            return ()
        key = (corpus, scoring.reference_logprob, tuple(scoring.choices), scoring.target_delimiter)
        if key not in self._encoded:
            given = encode_given(
                corpus,
                references=scoring.reference_logprob,
                choices=scoring.choices,
                delimiter=scoring.target_delimiter,
            )
            choices_key = "prompts.choices_key" if own_choices else "scoring.choices" if scoring.choices else None
            _check_present(given, scoring.reference_logprob, choices_key)
            self._encoded[key] = given
        for encoded, answers in zip(corpus.prompts, self._encoded[key], strict=True):
            _check_length(encoded, answers, config.transform.max_rows(len(encoded.token_ids)), limit)
        return self._encoded[key]


def _check_primary(scoring: ScoringConfig, has_choices: bool) -> None:
    """Refuse a primary measure of given answers that are not scored."""
    name = scoring.primary or ""
    if name in scoring.measures:  # a plugin's, which needs no given answers
        return
    if name.startswith("likelihood/reference"):
        if not scoring.reference_logprob:
            raise ConfigError(f"scoring.primary: {name} needs scoring.reference_logprob=true.")
    elif name.startswith("likelihood/") and not has_choices:
        raise ConfigError(f"scoring.primary: {name} needs scoring.choices or prompts.choices_key.")


def _check_present(given: Sequence[GivenAnswers], references: bool, choices_key: str | None) -> None:
    """Refuse to score what no prompt has."""
    if references and not any(answers.references for answers in given):
        raise ConfigError(
            "scoring.reference_logprob: no prompt has a reference. Add references to the prompts, or set "
            "prompts.reference_key to the key that holds them."
        )
    if choices_key is not None and not any(answers.choices for answers in given):
        raise ConfigError(
            f"{choices_key}: no prompt has both choices and a reference, which names the right one. Add references to "
            "the prompts, or set prompts.reference_key to the key that holds them."
        )


def _check_length(encoded: EncodedPrompt, answers: GivenAnswers, rows: int, limit: int) -> None:
    """Refuse an answer that does not fit, with one token more, after the rows that a prompt can have."""
    if rows + answers.longest >= limit:
        raise ConfigError(
            f"Prompt {encoded.prompt.id!r}: up to {rows} rows and a reference or choice of {answers.longest} tokens do "
            f"not fit the context of {limit}. Shorten them, or raise engine.max_model_len if it is set."
        )
