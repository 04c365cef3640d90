"""Judge: a language model at a server with OpenAI's API grades answers from 1 to 5.

Computed if `scoring.measures` names `quality/judge_score`. Two controls of the judge come with it, at control points:
its verdict on the reference as an answer, and on an answer to another prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sweep.scoring.registry import MeasureSpec

if TYPE_CHECKING:
    from sweep.scoring.batch import Item, MeasureSettings
    from sweep.scoring.judge_config import JudgeConfig

NAME = "quality/judge_score"
POSITIVE, NEGATIVE = "health/judge_positive_control", "health/judge_negative_control"


def judge_score(items: Sequence[Item], settings: MeasureSettings) -> list[float]:
    """Return the judge's score of the answer, from 0 (it gave 1) to 1 (it gave 5).

    An item whose verdict cannot be read has no score; the reason is logged.
    """
    return _shares(items, [item.answer.text for item in items], settings)


def positive_control(items: Sequence[Item], settings: MeasureSettings) -> list[float]:
    """Return the judge's score of the first reference as an answer, at control points; it should be near 1."""
    answers = [item.prompt.references[0] if _is_first(item) and item.prompt.references else None for item in items]
    return _shares(items, answers, settings)


def negative_control(items: Sequence[Item], settings: MeasureSettings) -> list[float]:
    """Return the judge's score of the answer to another prompt, at control points; it should be near 0."""
    first = [item for item in items if _is_first(item)]
    others = {id(item): _other_answer(first, place) for place, item in enumerate(first)}
    return _shares(items, [others.get(id(item)) for item in items], settings)


def _is_first(item: Item) -> bool:
    return item.metadata["role"] == "control" and item.sample == 0


def _other_answer(items: Sequence[Item], place: int) -> str | None:
    """Return the next item's answer that differs from this one's, from half of the items away on."""
    text = items[place].answer.text
    start = place + max(len(items) // 2, 1)  # neighbours in a file are often alike
    texts = (items[(start + step) % len(items)].answer.text for step in range(len(items)))
    return next((other for other in texts if other != text), None)


def _shares(items: Sequence[Item], answers: Sequence[str | None], settings: MeasureSettings) -> list[float]:
    from sweep.scoring.judge_client import ask  # the client imports httpx and PyTorch

    judge: JudgeConfig = settings.scoring.judge
    questions = [
        None if answer is None else judge.question(item.prompt.text, "\n".join(item.prompt.references), answer)
        for item, answer in zip(items, answers, strict=True)
    ]
    asked = [question for question in questions if question is not None]
    verdicts = dict(zip(asked, ask(judge, asked, settings.cache / "judge"), strict=True)) if asked else {}
    return [math.nan if question is None else verdicts[question].share for question in questions]


def _check(scoring: Any, contact: bool) -> None:
    from sweep.scoring.judge_client import check_judge

    check_judge(scoring.judge, contact=contact)


def _judged(name: str, compute: Any, **more: Any) -> MeasureSpec:
    return MeasureSpec(name, "", "batch", (0.0, 1.0), compute=compute, configured=True, **more)


MEASURES = (
    _judged(
        NAME,
        judge_score,
        direction="higher",
        check=_check,
        companions=(POSITIVE, NEGATIVE),
        source="LLM-as-a-judge, Zheng et al. 2023, arXiv:2306.05685",
    ),
    _judged(POSITIVE, positive_control),
    _judged(NEGATIVE, negative_control),
)
