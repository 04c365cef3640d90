"""Tokens of given answers: the continuation of a prompt."""

from __future__ import annotations

from typing import Any

import pytest

from sweep.inputs import prompts
from sweep.inputs.checkpoint import Checkpoint, find
from sweep.inputs.config import ModelConfig, PromptsConfig
from sweep.inputs.embedding_loader import open_table
from sweep.inputs.given_answers import GivenAnswers, encode_given
from sweep.inputs.prompt_set import PromptSet
from sweep.inputs.tokenization import encode


@pytest.fixture(scope="module")
def demo() -> Checkpoint:
    return find(ModelConfig(id="demo"))


def answers(demo: Checkpoint, entry: Any, **changes: Any) -> tuple[PromptSet, GivenAnswers]:
    """Return the given answers of one prompt as plain text."""
    config = PromptsConfig(items=[entry], choices_key="choices" if "choices" in entry else None, chat=False)
    corpus = PromptSet(encode(prompts.load(config), demo), open_table(demo), demo)
    [given] = encode_given(corpus, **{"references": True, "choices": (), "delimiter": None} | changes)
    return corpus, given


def test_answer_continues_the_prompt_as_in_lm_evaluation_harness(demo: Checkpoint) -> None:
    corpus, given = answers(demo, {"prompt": "Question: capital?\nAnswer:", "reference": "Paris"})
    tokenizer = demo.tokenizer
    whole = tokenizer("Question: capital?\nAnswer: Paris")["input_ids"]
    context = tokenizer("Question: capital?\nAnswer:")["input_ids"]
    assert given.sequences == (tuple(whole[len(context) :]),)
    assert corpus.prompts[0].token_ids == tuple(context)
    assert given.references[0].sent == " Paris" and given.references[0].text == "Paris"
    assert given.references[0].tokens == given.longest == len(whole) - len(context)


def test_answer_that_would_change_the_prompts_tokens_is_encoded_by_itself(demo: Checkpoint) -> None:
    tokenizer = demo.tokenizer
    corpus, given = answers(demo, {"prompt": "Tell me the c", "reference": "apital"}, delimiter="")
    prompt = list(corpus.prompts[0].token_ids)
    together = tokenizer("Tell me the capital")["input_ids"]
    assert together[: len(prompt)] != prompt, "the test needs texts that merge"
    assert given.sequences == (tuple(tokenizer("apital", add_special_tokens=False)["input_ids"]),)


@pytest.mark.parametrize(
    ("prompt", "reference", "delimiter", "sent"),
    [
        ("Answer:", "Paris", None, " Paris"),
        ("Answer: ", "Paris", None, "Paris"),
        ("Answer:\n", "Paris", None, "Paris"),
        ("Answer:", " Paris", None, " Paris"),
        ("Answer:", "\nParis", " ", "\nParis"),
        ("Answer:", "Paris", "", "Paris"),
        ("Answer:", "Paris", "\n", "\nParis"),
    ],
)
def test_delimiter(demo: Checkpoint, prompt: str, reference: str, delimiter: str | None, sent: str) -> None:
    _, given = answers(demo, {"prompt": prompt, "reference": reference}, delimiter=delimiter)
    assert given.references[0].sent == sent


def test_nothing_is_put_before_an_answer_in_a_chat(corpus: PromptSet) -> None:
    given = encode_given(corpus, references=True, choices=(), delimiter=None)
    assert [[one.sent for one in answers.references] for answers in given] == [["General"], [], ["2", "two"]]


def test_equal_answers_share_their_tokens(demo: Checkpoint) -> None:
    entry = {"prompt": "Q:", "reference": "Paris", "choices": ["Rome", " Paris"]}
    _, given = answers(demo, entry)
    assert len(given.sequences) == 2 and given.right == (1,)
    assert given.references[0].sequence == given.choices[1].sequence != given.choices[0].sequence


def test_own_choices_come_before_those_of_all_prompts(demo: Checkpoint) -> None:
    common = ("Paris", "Oslo")
    _, own = answers(demo, {"prompt": "Q:", "reference": "b", "choices": ["a", "b"]}, choices=common)
    assert [choice.text for choice in own.choices] == ["a", "b"]
    _, other = answers(demo, {"prompt": "Q:", "reference": "Oslo"}, choices=common, references=False)
    assert [choice.text for choice in other.choices] == ["Paris", "Oslo"] and other.right == (1,)
    assert other.references == ()
    _, without = answers(demo, {"prompt": "Q:"}, choices=common)
    assert without == GivenAnswers()
