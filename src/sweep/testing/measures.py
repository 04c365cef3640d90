"""Conformance tests for measures.

    from sweep.testing import check_measure

    def test_brief():
        check_measure("quality/brief")

This test runs every check on the answers of `demo_items`. A failed check raises an `AssertionError` that describes what
the measure did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace

from sweep.engines.base import Completion
from sweep.inputs.prompts import Prompt
from sweep.scoring.batch import Item, checked_values
from sweep.scoring.registry import MeasureSpec, measures
from sweep.scoring.text import ScorerError

Score = Callable[[Sequence[Item]], list[float]]
MeasureCheck = Callable[[MeasureSpec, Sequence[Item], float], None]
TOP_K = 3  # log-probabilities at each step of the answers of `demo_items`


def check_measure(name: str, items: Sequence[Item] | None = None, *, tolerance: float = 1e-6) -> None:
    """Run all checks on a registered measure of answers.

    Args:
        name: metric name.
        items: answers to score; None: `demo_items`.
        tolerance: largest absolute difference between equal scores. A language model in a batch rounds differently.

    Raises:
        AssertionError: a check failed.
    """
    registered = {measure.name: measure for measure in measures() if measure.compute is not None}
    assert name in registered, f"{name} is not a registered measure of answers. Registered: {', '.join(registered)}"
    for check in MEASURE_CHECKS:
        check(registered[name], demo_items() if items is None else items, tolerance)


def demo_items() -> list[Item]:
    """Return answers with and without references and a control: right, wrong, empty, repetitive, and not in ASCII."""
    examples = [
        ("What is the capital of France?", ("Paris", "Paris."), " Paris.", " Paris."),
        ("What is 6 times 7?", ("42",), " 6 times 7 is 42.", " The answer is 42."),
        ("Name a colour.", (), " Blue", " Red"),
        ("Say nothing.", ("nothing",), "", " nothing"),
        ("Say anything.", ("anything",), " anything at all", ""),
        ("Repeat.", ("again",), " again" * 40, " again"),
        ("Auf Deutsch?", ("schön",), " schön 🙂 \ufffd\n\tÜber", " schön"),
        ("Who are you?", (), " I cannot say.", None),
    ]
    return [_item(number, *one) for number, one in enumerate(examples)]


def _item(number: int, question: str, references: tuple[str, ...], answer: str, control: str | None) -> Item:
    prompt = Prompt(f"p{number}", question, None, references)
    other = None if control is None else _completion(control)
    metadata: dict[str, str | float] = {"name": "factor=1.5", "role": "point", "transform.factor": 1.5}
    return Item(prompt, question, _completion(answer), other, metadata=metadata)


def _completion(text: str) -> Completion:
    ids = tuple(1 + sum(map(ord, word)) % 1000 for word in text.split())
    steps = tuple({token + k: -0.5 - 1.5 * k - 0.01 * (token % 7) for k in range(TOP_K)} for token in ids)
    return Completion(text, ids, "stop", steps)


def scores_of(measure: MeasureSpec, items: Sequence[Item]) -> list[float]:
    """Return a measure's score of each item, NaN where it does not apply."""
    compute = measure.compute
    assert compute is not None
    match measure.per:
        case "batch":
            return checked_values(measure, items)
        case "references":
            return [compute(i.answer.text, i.prompt.references) if i.prompt.references else math.nan for i in items]
        case "completion":
            return [compute(item.answer).get(measure.name, math.nan) for item in items]
        case "pair":
            compared = [None if i.control is None else compute(i.answer, i.control, TOP_K) for i in items]
            return [math.nan if scores is None else scores.get(measure.name, math.nan) for scores in compared]
    raise AssertionError(f"{measure.name} is not a measure of answers")


def scores_are_in_range_or_nan(measure: MeasureSpec, items: Sequence[Item], tolerance: float) -> None:
    """Each item has one score: finite and in the declared range, or NaN. 0 or 1 if declared so."""
    try:
        scores = scores_of(measure, items)
    except ScorerError as error:
        raise AssertionError(str(error)) from error
    low, high = measure.range
    for item, score in zip(items, scores, strict=True):
        context = f"{measure.name} gives {score!r} to {item.answer.text!r}"
        assert not math.isinf(score), f"{context}, which is not finite"
        assert math.isnan(score) or low - tolerance <= score <= high + tolerance, (
            f"{context}, outside {low:g} to {high:g}"
        )
        assert math.isnan(score) or not measure.yes_or_no or score in (0, 1), f"{context}, which is neither 0 nor 1"
    assert not all(map(math.isnan, scores)), f"{measure.name} scores none of the answers"


def order_does_not_matter(measure: MeasureSpec, items: Sequence[Item], tolerance: float) -> None:
    """The same items in reverse order get the same scores."""
    backwards = scores_of(measure, items[::-1])[::-1]
    _expect_equal(measure, items, scores_of(measure, items), backwards, "in reverse order", tolerance)


def batch_does_not_matter(measure: MeasureSpec, items: Sequence[Item], tolerance: float) -> None:
    """Each item alone, and next to a copy of itself, gets the same score as in the batch. No items get no scores."""
    together = scores_of(measure, items)
    alone = [score for item in items for score in scores_of(measure, [item])]
    _expect_equal(measure, items, together, alone, "alone", tolerance)
    twice = scores_of(measure, [*items, *items])
    _expect_equal(measure, [*items, *items], [*together, *together], twice, "twice in a batch", tolerance)
    assert scores_of(measure, []) == [], f"{measure.name} returns scores for no items"


def scores_are_repeatable(measure: MeasureSpec, items: Sequence[Item], tolerance: float) -> None:
    """The same items get the same scores again."""
    first = scores_of(measure, items)
    _expect_equal(measure, items, first, scores_of(measure, items), "the second time", tolerance)


def items_are_not_changed(measure: MeasureSpec, items: Sequence[Item], tolerance: float) -> None:
    """The items are the same afterwards."""
    original = list(deepcopy(list(items)))
    scores_of(measure, original)
    assert original == list(items), f"{measure.name} changes its items"


def point_names_do_not_matter(measure: MeasureSpec, items: Sequence[Item], tolerance: float) -> None:
    """An answer gets the same score at every point."""
    renamed_items = [replace(item, metadata={**item.metadata, "name": "factor=3", "role": "control"}) for item in items]
    renamed = scores_of(measure, renamed_items)
    _expect_equal(measure, items, scores_of(measure, items), renamed, "at another point", tolerance)


def equal_answers_are_closest(measure: MeasureSpec, items: Sequence[Item], tolerance: float) -> None:
    """A divergence of two equal answers is at the end of its range that its direction names, if it has an end there."""
    if not measure.group.floor or measure.direction is None:
        return
    closest = {"lower": measure.range[0], "higher": measure.range[1], "zero": 0.0}[measure.direction]
    equal = [replace(item, control=item.answer) for item in items]
    for item, score in zip(equal, scores_of(measure, equal), strict=True):
        assert math.isinf(closest) or math.isnan(score) or abs(score - closest) <= tolerance, (
            f"{measure.name} gives {score!r} to two equal answers, {item.answer.text!r}, expected {closest:g}"
        )


def measure_is_documented(measure: MeasureSpec, items: Sequence[Item], tolerance: float) -> None:
    """The function has a docstring, whose first sentence describes the measure."""
    assert measure.about, f"{measure.name} has no docstring"


MEASURE_CHECKS: tuple[MeasureCheck, ...] = (
    scores_are_in_range_or_nan,
    order_does_not_matter,
    batch_does_not_matter,
    scores_are_repeatable,
    items_are_not_changed,
    point_names_do_not_matter,
    equal_answers_are_closest,
    measure_is_documented,
)


def _expect_equal(
    measure: MeasureSpec,
    items: Sequence[Item],
    expected: Sequence[float],
    actual: Sequence[float],
    where: str,
    tolerance: float,
) -> None:
    for item, one, other in zip(items, expected, actual, strict=True):
        same = (math.isnan(one) and math.isnan(other)) or abs(one - other) <= tolerance
        assert same, f"{measure.name} gives {one!r} to {item.answer.text!r}, but {other!r} {where}"
