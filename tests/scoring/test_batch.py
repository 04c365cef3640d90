"""Measures of plugins that score all answers of a point at once, and the conformance tests of all measures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sweep import load
from sweep.errors import ConfigError
from sweep.scoring import registry
from sweep.scoring.batch import Item, register_measure, score_batch, select_measures
from sweep.scoring.registry import measures, shown_in, spec
from sweep.scoring.text import ScorerError
from sweep.testing import MEASURE_CHECKS, MeasureCheck, check_measure, demo_items

COMPUTED = [measure.name for measure in measures() if measure.compute is not None and measure.per != "batch"]


@pytest.mark.parametrize("check", MEASURE_CHECKS)
@pytest.mark.parametrize("name", COMPUTED)
def test_built_in_measures_conform(name: str, check: MeasureCheck) -> None:
    check(spec(name), demo_items(), 1e-6)


def test_all_that_is_scored_is_tested() -> None:
    assert len(COMPUTED) == 8 + 4 + 10 + 11 + 2


def brief(items: Sequence[Item]) -> list[float]:
    """Return the share of the answer in five words."""
    return [min(len(item.answer.text.split()) / 5, 1.0) for item in items]


@pytest.mark.usefixtures("registered")
def test_a_measure_that_keeps_the_rules() -> None:
    assert register_measure("quality/brief", range=(0, 1), direction="higher")(brief) is brief
    check_measure("quality/brief")
    assert (spec("quality/brief").about, spec("quality/brief").title) == ("share of the answer in five words", "brief")
    [chosen] = select_measures(["quality/brief"])
    assert [scores["quality/brief"] for scores in score_batch([chosen], demo_items()[:2])] == [0.2, 1.0]
    register_measure("quality/brief", range=(0, 1))(brief)  # as on a second import


calls = iter(range(10**6))


def mutate(items: Sequence[Item]) -> list[float]:
    for item in items:
        item.answer.logprobs[0].clear() if item.answer.logprobs else None
    return [0.0] * len(items)


BROKEN: dict[str, tuple[Callable[[Sequence[Item]], Any], dict[str, Any], str]] = {
    "range": (lambda items: [2.0] * len(items), {"range": (0, 1)}, "finite scores from 0 to 1 or NaN, got 2"),
    "infinity": (lambda items: [math.inf] * len(items), {}, "got inf"),
    "yes or no": (lambda items: [0.5] * len(items), {"yes_or_no": True}, "scores of 0 or 1 or NaN, got 0.5"),
    "count": (lambda items: [1.0], {}, "one per item, got 1"),
    "nothing": (lambda items: [math.nan] * len(items), {}, "scores none of the answers"),
    "order": (lambda items: [float(i) for i, _ in enumerate(items)], {}, "in reverse order"),
    "batch": (lambda items: [float(len(items))] * len(items), {}, "alone"),
    "chance": (lambda items: [float(next(calls) // 8 % 2)] * len(items), {}, "gives"),
    "mutation": (mutate, {}, "changes its items"),
    "name of the point": (lambda items: [float(len(i.metadata["name"])) for i in items], {}, "at another point"),
    "direction": (lambda items: [float(i.answer == i.control) for i in items], {"direction": "lower"}, "two equal"),
    "docstring": (lambda items: [0.0] * len(items), {"direction": None}, "has no docstring"),
    "error": (lambda items: 1 / 0, {}, "failed with ZeroDivisionError"),
}


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", BROKEN)
def test_a_measure_that_breaks_a_rule(name: str) -> None:
    function, settings, message = BROKEN[name]
    register_measure("divergence/broken", **{"range": (0, 100), **settings})(function)
    with pytest.raises((AssertionError, ScorerError), match=message):
        check_measure("divergence/broken")


@pytest.mark.usefixtures("registered")
def test_names_are_checked() -> None:
    for name in ("brief", "cost/brief", "quality/", "quality/a/b", "speed/x"):
        with pytest.raises(ValueError, match="is not a name for a measure"):
            register_measure(name)
    with pytest.raises(ValueError, match=r"'quality/chrf' is taken by sweep\.scoring\.text\.chrf"):
        register_measure("quality/chrf")(brief)
    with pytest.raises(ConfigError, match=r"not a measure that a plugin has registered"):
        select_measures(["quality/brief"])
    register_measure("quality/brief")(brief)
    with pytest.raises(ConfigError, match=r"Did you mean 'quality/brief'\?"):
        select_measures(["quality/breif"])
    with pytest.raises(ConfigError, match="listed twice"):
        select_measures(["quality/brief"] * 2)
    with pytest.raises(AssertionError, match="not a registered measure"):
        check_measure("quality/none")


def test_ranks_are_distinct() -> None:
    for place in ("terminal", "description", "live", "ranking", "primary"):
        ranks = [getattr(spec(name).shown, place) for name in shown_in(place)]  # type: ignore[arg-type]
        assert ranks == sorted(set(ranks)), place


def test_definitions_are_checked() -> None:
    good = spec("quality/chrf")
    for changes, message in (
        ({"name": "speed/x"}, "is not a measure"),
        ({"range": (1.0, 0.0)}, "is empty"),
        ({"interval": "wilson", "range": (0.0, 2.0)}, "needs range"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(good, **changes)
    step = spec("perturbation/0/dose_achieved")
    assert (step.range, step.title, step.shown.terminal) == ((-math.inf, math.inf), "0, dose achieved", None)
    assert spec("quality/mine").range == (-math.inf, math.inf) and spec("health/mine").range == (0.0, math.inf)


PLUGIN = '''
from sweep.scoring.batch import register_measure

@register_measure("quality/judge", range=(0, 1), direction="higher", title="judge's mark")
def judge(items):
    """Return 1 if the answer is that of the control, else 0."""
    assert len(items) == 4 and {item.sample for item in items} == {0, 1}
    assert all(item.prompt.text in item.rendered for item in items)
    assert all(len(item.answer.logprobs) == len(item.answer.token_ids) for item in items)
    assert {item.metadata["role"] for item in items} <= {"point", "control"}
    return [item.control is not None and item.answer.text == item.control.text for item in items]

@register_measure("health/shouting", yes_or_no=True, aggregate="max")
def shouting(items):
    """Return 1 for an answer in upper case, else 0; nothing for one without letters."""
    return [float(i.answer.text.isupper()) if any(map(str.isalpha, i.answer.text)) else float("nan") for i in items]
'''


def test_a_sweep_with_measures_of_a_plugin(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_line: Callable[..., tuple[int, str, str]]
) -> None:
    (tmp_path / "my_judge.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    given = ["plugins=[sweep.testing.scripted,my_judge]", "engine=scripted", f"model.id={tiny}", "scoring.logprobs=2"]
    given += [
        "sampling.max_tokens=4",
        "transform=scale",
        "transform.factor=4",
        "prompts.items=[Hi,Ho]",
        "sampling.n=2",
        "sampling.temperature=1",
    ]
    measures = "scoring.measures=[quality/judge,health/shouting]"
    before = dict(registry._measures)
    try:
        code, out, err = command_line(*given, measures)
        assert code == 0, out + err
        assert "judge's mark" in out
        points: pd.DataFrame = load(points=True).set_index("role")
        rows = load()
        assert points.loc["control", "quality/judge"] == 1
        judged = rows[rows["role"] == "point"]["quality/judge"]
        assert points.loc["point", "quality/judge"] == judged.mean() and judged.isin([0, 1]).all()
        assert "quality/judge/p" in points.columns
        loudest = rows[rows["role"] == "point"].groupby("prompt_id")["health/shouting"].max()
        assert points.loc["point", "health/shouting"] == loudest.mean()
        code, out, err = command_line(*given, measures)
        assert code == 0 and "Nothing to do" in out + err
        code, out, err = command_line(*given, "scoring.measures=[quality/jugde]")
        assert code == 2 and "Did you mean 'quality/judge'?" in err
    finally:
        registry._measures.clear()
        registry._add(before.values())
