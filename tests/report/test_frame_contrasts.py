"""`sweep.contrast`: points of two frames of generations, paired by prompt id."""

from __future__ import annotations

import pandas as pd
import pytest
from scipy import stats

import sweep

EXACT, EDIT = "quality/exact_match", "divergence/edit_distance"


def answers(points: dict[str, dict[str, list[float]]], digest: str = "d") -> pd.DataFrame:
    """Generations of points: by name, the scores of each prompt's samples. The edit distance is half the score."""
    return pd.DataFrame(
        {
            "point": index,
            "name": name,
            "prompt_id": prompt,
            "prompt_digest": digest + prompt,
            "sample": sample,
            EXACT: score,
            EDIT: score / 2,
        }
        for index, (name, prompts) in enumerate(points.items())
        for prompt, scores in prompts.items()
        for sample, score in enumerate(scores)
    )


def test_points_of_two_sweeps_are_paired_by_prompt() -> None:
    first = answers({"factor=2": {"a": [1], "b": [1], "c": [0], "d": [1], "x": [1]}})
    second = answers({"control": {"d": [0], "c": [1], "b": [0], "a": [1]}})
    table = sweep.contrast(first, second)
    assert table["measure"].tolist() == [EXACT, EDIT]
    row = table.iloc[0]
    assert (row["first"], row["second"], row["n"], row["only_first"], row["only_second"]) == (
        "factor=2", "control", 4, 1, 0,
    )  # fmt: skip
    assert (row["difference"], row["gained"], row["lost"]) == (0.25, 2, 1)
    assert row["p"] == pytest.approx(stats.binomtest(1, 3).pvalue) == row["q"]
    assert pd.isna(table["gained"].iloc[1]) and table["difference"].iloc[1] == 0.125
    back = sweep.contrast(second, first, [EXACT]).iloc[0]
    assert (back["difference"], back["gained"], back["lost"], back["difference/ci_low"]) == (
        -0.25, 1, 2, -row["difference/ci_high"],
    )  # fmt: skip


def test_several_points_are_paired_by_name_and_one_with_each() -> None:
    first = answers({"control": {"a": [1]}, "factor=2": {"a": [1]}, "factor=3": {"a": [0]}})
    second = answers({"control": {"a": [0]}, "factor=3": {"a": [1]}, "factor=4": {"a": [0]}})
    both = sweep.contrast(first, second, [EXACT])
    assert both[["first", "second", "difference"]].values.tolist() == [
        ["control", "control", 1.0], ["factor=3", "factor=3", -1.0],
    ]  # fmt: skip
    one = sweep.contrast(first, second[second["name"] == "control"], [EXACT])
    assert one["first"].tolist() == ["control", "factor=2", "factor=3"] and set(one["second"]) == {"control"}
    qs = stats.false_discovery_control(one["p"])
    assert one["q"].tolist() == pytest.approx(list(qs))


def test_two_points_of_one_name_are_not_paired() -> None:
    first = answers({"control": {"a": [1]}, "factor=2": {"a": [1]}})
    twice = first.assign(name="control")
    with pytest.raises(ValueError, match="The second frame has several points named 'control'"):
        sweep.contrast(first, twice)


def test_samples_of_a_prompt_are_averaged_first() -> None:
    first = answers({"p": {"a": [1, 0], "b": [1, 1]}})
    second = answers({"p": {"a": [0], "b": [1]}})
    row = sweep.contrast(first, second, [EXACT]).iloc[0]
    assert (row["difference"], row["n"], row["gained"], row["lost"]) == (0.25, 2, 1, 0)


def test_other_contents_under_one_id_are_noticed() -> None:
    first, second = (answers({"p": {"a": [1], "b": [0]}}, digest) for digest in "xy")
    with pytest.warns(UserWarning, match="2 of 2 prompts have the same id but another content"):
        assert len(sweep.contrast(first, second, [EXACT])) == 1


@pytest.mark.parametrize(
    ("first", "second", "measures", "says"),
    [
        ({"p": {"a": [1]}}, {"p": {"b": [1]}}, None, "have no prompt id in common"),
        ({"p": {"a": [1]}}, {"p": {"a": [1]}}, ["quality/bleu"], "'quality/bleu' is not a tested measure of both"),
        ({"p": {"a": [1]}, "q": {"a": [1]}}, {"r": {"a": [1]}, "s": {"a": [1]}}, None, "No point has the same name"),
    ],
)
def test_frames_that_cannot_be_compared_are_refused(first, second, measures, says) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=says):
        sweep.contrast(answers(first), answers(second), measures)


def test_wrong_frames_are_refused() -> None:
    frame = answers({"p": {"a": [1]}})
    with pytest.raises(ValueError, match="The second frame has no rows"):
        sweep.contrast(frame, frame[:0])
    with pytest.raises(ValueError, match="The first frame has no column 'prompt_id'"):
        sweep.contrast(frame.drop(columns="prompt_id"), frame)
    with pytest.raises(ValueError, match="several rows for one point, prompt and sample"):
        sweep.contrast(pd.concat([frame, frame]), frame)
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\)"):
        sweep.contrast(frame, frame, confidence=95)
