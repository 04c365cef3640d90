"""The report's matrix of generations: prompts by points."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd

from sweep.report.measures import headline_groups, main_measures, measures
from sweep.report.results import SweepResults
from sweep.report.text_diff import SAME, spans
from sweep.scoring.registry import spec

SHOWN_COLUMNS = 13  # a control and twelve points
SHOWN_SCORES = 4
LISTED_POINTS = 3  # whose names stand above a rendered prompt
LARGEST = 30_000  # number of generations that a browser can open at once
COLUMNS = ["point", "prompt_id", "prompt", "sample", "generation", "reference", "finish_reason"]


Form = tuple[str, list[int]]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Contents of the matrix, for the page's script.

    Attributes:
        columns: `point`, `name`, `control` (whether it is one), `error`, `shown` (whether it is visible initially).
        scores: `name`, `title`, `shown`, `floor` (whether the control's is the noise floor), `implied` (whether it says
            nothing of an answer that equals the control's).
        rows: `id`, `prompt`, `reference`, `rendered` (see `rendered_prompts`), and `cells`: for each column a list of
            samples. A sample is `[spans, distance, end, scores]`, with the share of words that differ from the
            control's (None for a control) and the scores in the order of `scores`.
        samples: largest number of samples of a prompt.
        prompts: number of prompts in the sweep; `rows` may have fewer.
    """

    columns: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    samples: int
    prompts: int

    def payload(self) -> dict[str, Any]:
        """Return the matrix as the page's script expects it, for JSON."""
        return {"columns": self.columns, "scores": self.scores, "rows": self.rows, "samples": self.samples}

    @classmethod
    def of(cls, results: SweepResults, order: list[int]) -> Matrix:
        """Lay out a sweep's generations; `order` has positions in `results.points`."""
        points, frame = results.points, results.generations
        if frame.empty:
            frame = pd.DataFrame(columns=COLUMNS)
        frame = frame.assign(row=_row_keys(frame))
        prompts = list(dict.fromkeys(frame["row"]))
        fitting = prompts[: max(1, LARGEST * len(prompts) // max(1, len(frame)))]
        names = [name for name in measures(frame.columns) if spec(name).group.tested]
        chosen = main_measures(names, headline_groups(), results.first)
        chosen = chosen[: max(SHOWN_SCORES, sum(name in results.first for name in chosen))]
        rows = _rows(points, frame[frame["row"].isin(fitting)], order, names)
        scores = [_score(name, name in chosen) for name in names]
        samples = int(frame["sample"].max()) + 1 if len(frame) else 1
        return cls(_columns(points, order), scores, rows, samples, len(prompts))


def _score(name: str, shown: bool) -> dict[str, Any]:
    measure = spec(name)
    return {
        "name": name,
        "title": measure.title,
        "shown": shown,
        "floor": measure.group.floor,
        "implied": measure.implied,
    }


def by_strength(points: pd.DataFrame) -> list[int]:
    """Return the positions of the points: each control, then its points along the axes, in ascending order."""
    keys = pd.DataFrame({"control": _controls(points), "role": (points["role"] != "control").to_numpy()})
    for column in (name for name in points.columns if name.startswith("axis/")):
        numbers = pd.to_numeric(points[column], errors="coerce")
        keys[column] = numbers.to_numpy()
        keys[f"{column} text"] = pd.factorize(points[column].where(numbers.isna()))[0]
    return [int(position) for position in keys.sort_values(list(keys.columns), kind="stable").index]


def _columns(points: pd.DataFrame, order: list[int]) -> list[dict[str, Any]]:
    # Evenly spaced, so that weak and strong doses are both visible.
    shown = {round(position) for position in np.linspace(0, len(order) - 1, min(SHOWN_COLUMNS, len(order)))}
    records = points.to_dict("records")
    return [
        {
            "point": int(records[index]["point"]),
            "name": str(records[index]["name"]),
            "control": records[index]["role"] == "control",
            "error": "" if pd.isna(records[index].get("error")) else str(records[index]["error"]),
            "shown": position in shown or records[index]["role"] == "control",
        }
        for position, index in enumerate(order)
    ]


def _rows(points: pd.DataFrame, frame: pd.DataFrame, order: list[int], names: list[str]) -> list[dict[str, Any]]:
    positions = {int(point): position for position, point in enumerate(points["point"].iloc[order])}
    controls = dict(zip(points["point"].astype(int), _controls(points), strict=True))
    keys = list(zip(frame["row"], frame["point"], frame["sample"], strict=True))
    texts = dict(zip(keys, frame["generation"], strict=True))
    scores = frame[names].astype(float).to_numpy().tolist()
    samples = range(int(frame["sample"].max()) + 1) if len(frame) else range(1)
    rows: dict[Any, dict[str, Any]] = {}
    shown, rendered = _prompts(frame), rendered_prompts(points, frame)
    for key, identifier, prompt, reference, end, values in zip(
        keys, frame["prompt_id"], shown, frame["reference"], frame["finish_reason"], scores, strict=True
    ):
        row_key, point, sample = key
        row = rows.setdefault(
            row_key,
            {
                "id": str(identifier),
                "prompt": prompt,
                "reference": _text(reference),
                "rendered": rendered.get(row_key, []),
                "cells": [[None for _ in samples] for _ in order],
            },
        )
        cell = _compare(_text(texts[key]), texts.get((row_key, controls[point], sample)), controls[point] == point)
        row["cells"][positions[point]][sample] = [*cell, _text(end), [_rounded(value) for value in values]]
    return list(rows.values())


def rendered_prompts(points: pd.DataFrame, frame: pd.DataFrame) -> dict[Any, list[tuple[str, list[Form]]]]:
    """Return each prompt as the models receive it, by row key.

    Returns:
        For each row key, the distinct rendered prompts, each with its forms: the names of the points, and the borders
        of the spans that their transforms may change, alternately start and stop, in UTF-16 code units as JavaScript
        counts. A control has a form only if no other point has its prompt.
    """
    if not {"rendered_prompt", "span"} <= set(frame.columns):  # archives of older versions lack them
        return {}
    names = dict(zip(points["point"].astype(int), points["name"].astype(str), strict=True))
    controls = dict(zip(points["point"].astype(int), _controls(points), strict=True))
    first = frame[frame["sample"] == 0]
    columns = [first[name] for name in ("row", "point", "rendered_prompt", "span")]
    texts = {(row, int(point)): text for row, point, text, _ in zip(*columns, strict=True) if isinstance(text, str)}
    found: dict[Any, dict[str, dict[str, list[str]]]] = {}  # names by row key, rendered prompt and span
    for row, point, _, span in zip(*columns, strict=True):
        if isinstance(span, str) and (text := texts.get((row, controls[int(point)]))) is not None:
            found.setdefault(row, {}).setdefault(text, {}).setdefault(span, []).append(names[int(point)])
    for (row, point), text in texts.items():
        if text not in found.setdefault(row, {}):
            found[row][text] = {"[]": [names[point]]}
    return {
        row: [
            (text, [(_listed(points), _borders(text, span)) for span, points in forms.items()])
            for text, forms in of.items()
        ]
        for row, of in found.items()
    }


def _listed(names: list[str]) -> str:
    more = len(names) - LISTED_POINTS
    return ", ".join(names[:LISTED_POINTS]) + (f" and {more} more" if more > 0 else "")


def _borders(text: str, span: str) -> list[int]:
    borders = list(chain.from_iterable(json.loads(span)))
    if not text.isascii():
        borders = [len(text[:border].encode("utf-16-le", "surrogatepass")) // 2 for border in borders]
    return borders


def _row_keys(frame: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Return each row's prompt identity: id, content and reference, since two files may use one id for two prompts."""
    contents = pd.Series(_prompts(frame), frame.index, dtype=object)
    if "prompt_digest" in frame:  # archives of older versions lack it
        contents = frame["prompt_digest"].fillna(contents)
    references = (_text(reference) for reference in frame["reference"])
    return list(zip(frame["prompt_id"].astype(str), contents, references, strict=True))


def _prompts(frame: pd.DataFrame) -> list[str]:
    """Return the prompts without the sample number that makes a point's rows distinct in MLflow tables."""
    several = frame.groupby("point")["sample"].transform("max") > 0
    numbered = zip(frame["prompt"], frame["sample"], several, strict=True)
    return [_text(prompt).removesuffix(f" #{sample + 1}" if more else "") for prompt, sample, more in numbered]


def _controls(points: pd.DataFrame) -> list[int]:
    # A failed point was not compared. It belongs to the control if there is only one.
    controls = points.loc[points["role"] == "control", "point"]
    default = points["point"] if len(controls) != 1 else pd.Series(controls.iloc[0], points.index)
    return [int(control) for control in pd.to_numeric(points["control"]).fillna(default)]


def _compare(text: str, control: str | None, alone: bool) -> tuple[list[str], float | None]:
    if alone or control is None:
        return ([SAME + text] if text else []), None
    compared, distance = spans(text, control)
    return compared, round(distance, 4)


def _text(value: Any) -> str:
    return "" if pd.isna(value) else str(value)


def _rounded(value: float) -> float | None:
    # All digits of a double would make the file twice as large.
    return float(f"{value:.4g}") if math.isfinite(value) else None
