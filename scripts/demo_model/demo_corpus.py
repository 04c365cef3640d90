"""Corpus of the demo model: small facts with many phrasings, some of which are held out of training.

A `Category` is a table of facts and two lists of phrasings, `trained` and `held_out` (`demo_facts.py`). The answer to a
fact does not depend on the phrasing, so that exact match is a meaningful measure.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from demo_facts import ANY_STORY, Category, Slots, categories


@dataclass(frozen=True, slots=True)
class Example:
    """One question with the answer to train."""

    category: str
    prompt: str
    answer: str
    system: str = ""


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


_SYSTEMS = ("You are a helpful assistant.", "Answer in one sentence.", "You are a friendly teacher.", "Be brief.")
_BEFORE = ("Hello! ", "Quick question. ", "I have a question. ", "Question: ", "Please answer this. ", "Hi! ")
_AFTER = (" Thank you!", " Please answer.", " Thanks.", " I would like to know.", " Tell me.")


def make_example(category: Category, fact: Slots, phrasing: str) -> Example:
    """Return the example for one fact in one phrasing."""
    prompt, answer = _sentence(phrasing.format(**fact)), _sentence(category.answer.format(**fact))
    return Example(category.name, prompt, answer)


def bare_examples(held_out: bool) -> Iterator[Example]:
    """Yield all facts in all trained (or all held-out) phrasings, without decoration."""
    for category in categories():
        for phrasing in category.held_out if held_out else category.trained:
            for fact in category.facts:
                yield make_example(category, fact, phrasing)


def training_examples(rng: random.Random, count: int) -> list[Example]:
    """Return random training examples; about half have a greeting, a system message or sloppy typing."""
    pool, weights = categories(), [len(c.facts) ** 0.5 * c.weight for c in categories()]
    examples = []
    for category in rng.choices(pool, weights, k=count):
        example = make_example(category, rng.choice(category.facts), rng.choice(category.trained))
        examples.append(_decorated(example, rng))
    return examples


def _decorated(example: Example, rng: random.Random) -> Example:
    prompt = example.prompt
    if rng.random() < 0.08:
        prompt = prompt.rstrip("?.")
    if rng.random() < 0.08:
        prompt = prompt[0].lower() + prompt[1:]
    if rng.random() < 0.15:
        prompt = rng.choice(_BEFORE) + prompt
    if rng.random() < 0.1:
        prompt += rng.choice(_AFTER)
    system = rng.choice(_SYSTEMS) if rng.random() < 0.1 else ""
    return Example(example.category, prompt, example.answer, system)


def held_out_examples(rng: random.Random, per_category: int) -> list[Example]:
    """Return the evaluation set: for each scored category, facts in held-out phrasings, without repetition."""
    examples = []
    for category in categories():
        if category.name != ANY_STORY:
            examples_of_category = [
                make_example(category, fact, phrasing) for phrasing in category.held_out for fact in category.facts
            ]
            examples += rng.sample(examples_of_category, min(per_category, len(examples_of_category)))
    return examples


def normalised(prompt: str) -> str:
    """Return a prompt in lower case without punctuation, for comparing phrasings."""
    return " ".join(re.findall(r"[a-z0-9+=-]+", prompt.lower()))
