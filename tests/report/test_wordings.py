"""Prompts are told apart by what they ask: two files may give one id to two prompts."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from sweep.inputs.prompt_digest import prompt_digest
from sweep.inputs.prompts import Prompt
from sweep.report.matrix import Matrix
from sweep.report.results import SweepResults

Row = tuple[int, str, str, str, str, str]  # point, id, digest, prompt, generation, reference


def matrix(*rows: Row, digests: bool = True) -> list[dict[str, Any]]:
    """Of two controls, 0 and 2, with a point each: 1 and 3."""
    names = ["point", "prompt_id", "prompt_digest", "prompt", "generation", "reference"]
    frame = pd.DataFrame(rows, columns=names).assign(sample=0, finish_reason="stop")
    if not digests:
        frame = frame.drop(columns="prompt_digest")
    points = pd.DataFrame({"point": range(4), "name": list("abcd"), "error": None, "control": [0, 0, 2, 2]})
    points["role"] = ["control", "point"] * 2
    return Matrix.of(SweepResults("", "", "", 0.95, points, frame), [0, 1, 2, 3]).rows


@pytest.mark.parametrize("digests", [True, False])
def test_equal_ids_in_two_files_show_each_wording(digests: bool) -> None:
    rows = matrix(
        (0, "q0", "1", "What is 1 + 1?", "2", ""),
        (1, "q0", "1", "What is 1 + 1?", "2 x", ""),
        (2, "q0", "2", "What is 5 + 5?", "10", ""),
        (3, "q0", "2", "What is 5 + 5?", "10", ""),
        digests=digests,
    )
    assert [(row["id"], row["prompt"]) for row in rows] == [("q0", "What is 1 + 1?"), ("q0", "What is 5 + 5?")]
    spans = [[cell[0] and cell[0][0] for cell in row["cells"]] for row in rows]
    assert spans == [[["=2"], ["=2", "+ x"], None, None], [None, None, ["=10"], ["=10"]]]


def test_another_reference_has_a_separate_row() -> None:
    rows = matrix((0, "q0", "1", "Why?", "a", "because"), (2, "q0", "1", "Why?", "a", "no reason"))
    assert [row["reference"] for row in rows] == ["because", "no reason"]


def test_the_first_prompts_of_a_file_are_the_same_prompts() -> None:
    """As with `prompts.limit=1,2`."""
    rows = matrix((0, "q0", "1", "A", "a", ""), (2, "q0", "1", "A", "b", ""), (2, "q1", "2", "B", "c", ""))
    assert [row["prompt"] for row in rows] == ["A", "B"]
    assert [cell[0] and cell[0][0] for cell in rows[0]["cells"]] == [["=a"], None, ["=b"], None]


def test_only_a_points_samples_are_numbered() -> None:
    """A prompt may end like a number of a sample, and points may have several samples or one."""
    frame = pd.DataFrame(
        [(0, 0, "Who is #1"), (1, 0, "Who is #1 #1"), (1, 1, "Who is #1 #2")], columns=["point", "sample", "prompt"]
    ).assign(prompt_id="q", generation="g", reference="", finish_reason="stop")
    points = pd.DataFrame({"point": [0, 1], "name": "n", "error": None, "control": [0, 1], "role": "control"})
    rows = Matrix.of(SweepResults("", "", "", 0.95, points, frame), [0, 1]).rows
    assert [row["prompt"] for row in rows] == ["Who is #1"]


def test_prompt_digest_depends_on_the_users_messages() -> None:
    user, system = {"role": "user", "content": "A"}, {"role": "system", "content": "Be brief."}
    prompt = Prompt("q", "A", (user,), ("x",))
    same = [Prompt("r", "A", (user,)), Prompt("q", "A", (system, user))]
    others = [
        Prompt("q", "A", None),
        Prompt("q", "B", ({"role": "user", "content": "B"},)),
        Prompt("q", "A", (user, {"role": "assistant", "content": "Yes?"}, user)),
    ]
    assert {prompt_digest(other) for other in same} == {prompt_digest(prompt)}
    assert len({prompt_digest(other) for other in [prompt, *others]}) == 4
