"""The report's matrix: prompts by points, and in each cell what the model said."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sweep.report.difference import SAME, spans
from sweep.report.measures import main, measures, title
from sweep.report.results import SweepResults

SHOWN_COLUMNS = 13  # a control and twelve points
SHOWN_SCORES = 4
LARGEST = 30_000  # generations: what a browser opens at once
COLUMNS = ["point", "prompt_id", "prompt", "sample", "generation", "reference", "finish_reason"]
GROUPS = ("quality", "divergence", "health")


@dataclass(frozen=True, slots=True)
class Matrix:
    """What the browser shows, as JSON.

    Attributes:
        columns: `point`, `name`, `control` (whether it is one), `error`, `shown` (whether it is at first).
        scores: `name`, `title`, `shown`.
        rows: `id`, `prompt`, `reference`, and for each column a list of samples: `[spans, distance, end, scores]`, with
            the share of words that differ from the control's (None for a control) and the scores in `scores`' order.
        samples: the most that a prompt has.
        prompts: how many there are; `rows` may be fewer.
    """

    columns: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    samples: int
    prompts: int

    def payload(self) -> dict[str, Any]:
        """Return what the page's script reads."""
        return {"columns": self.columns, "scores": self.scores, "rows": self.rows, "samples": self.samples}

    @classmethod
    def of(cls, results: SweepResults, order: list[int]) -> Matrix:
        """Lay out a sweep's generations, the points in the order that is given (positions in `results.points`)."""
        points, frame = results.points, results.generations
        if frame.empty:
            frame = pd.DataFrame(columns=COLUMNS)
        prompts = list(dict.fromkeys(frame["prompt_id"]))
        fitting = prompts[: max(1, LARGEST * len(prompts) // max(1, len(frame)))]
        names = [name for name in measures(frame.columns) if name.startswith(GROUPS)]
        chosen = main(names, ("quality", "divergence"))[:SHOWN_SCORES]
        rows = _rows(points, frame[frame["prompt_id"].isin(fitting)], order, names)
        scores = [{"name": name, "title": title(name), "shown": name in chosen} for name in names]
        samples = int(frame["sample"].max()) + 1 if len(frame) else 1
        return cls(_columns(points, order), scores, rows, samples, len(prompts))


def by_strength(points: pd.DataFrame) -> list[int]:
    """Return the points' positions: each control, then its points along the axes, numbers ascending."""
    keys = pd.DataFrame({"control": _controls(points), "role": (points["role"] != "control").to_numpy()})
    for column in (name for name in points.columns if name.startswith("axis/")):
        numbers = pd.to_numeric(points[column], errors="coerce")
        keys[column] = numbers.to_numpy()
        keys[f"{column} text"] = pd.factorize(points[column].where(numbers.isna()))[0]
    return [int(place) for place in keys.sort_values(list(keys.columns), kind="stable").index]


def _columns(points: pd.DataFrame, order: list[int]) -> list[dict[str, Any]]:
    # Weak and strong ones alike, so that what is left out lies between two that are there.
    shown = {round(place) for place in np.linspace(0, len(order) - 1, min(SHOWN_COLUMNS, len(order)))}
    records = points.to_dict("records")
    return [
        {
            "point": int(records[index]["point"]),
            "name": str(records[index]["name"]),
            "control": records[index]["role"] == "control",
            "error": "" if pd.isna(records[index].get("error")) else str(records[index]["error"]),
            "shown": place in shown or records[index]["role"] == "control",
        }
        for place, index in enumerate(order)
    ]


def _rows(points: pd.DataFrame, frame: pd.DataFrame, order: list[int], names: list[str]) -> list[dict[str, Any]]:
    places = {int(point): place for place, point in enumerate(points["point"].iloc[order])}
    controls = dict(zip(points["point"].astype(int), _controls(points), strict=True))
    keys = list(zip(frame["prompt_id"], frame["point"], frame["sample"], strict=True))
    texts = dict(zip(keys, frame["generation"], strict=True))
    scores = frame[names].astype(float).to_numpy().tolist()
    samples = range(int(frame["sample"].max()) + 1) if len(frame) else range(1)
    rows: dict[Any, dict[str, Any]] = {}
    for key, prompt, reference, end, values in zip(
        keys, frame["prompt"], frame["reference"], frame["finish_reason"], scores, strict=True
    ):
        identifier, point, sample = key
        row = rows.setdefault(
            identifier,
            {
                "id": str(identifier),
                # Tables in MLflow need a prompt to be different for each sample.
                "prompt": _text(prompt).removesuffix(f" #{sample + 1}" if len(samples) > 1 else ""),
                "reference": _text(reference),
                "cells": [[None for _ in samples] for _ in order],
            },
        )
        cell = _compare(_text(texts[key]), texts.get((identifier, controls[point], sample)), controls[point] == point)
        row["cells"][places[point]][sample] = [*cell, _text(end), [_rounded(value) for value in values]]
    return list(rows.values())


def _controls(points: pd.DataFrame) -> list[int]:
    # A point that failed has not been compared with anything, but belongs to the control, if there is only one.
    controls = points.loc[points["role"] == "control", "point"]
    own = points["point"] if len(controls) != 1 else pd.Series(controls.iloc[0], points.index)
    return [int(control) for control in pd.to_numeric(points["control"]).fillna(own)]


def _compare(text: str, control: str | None, alone: bool) -> tuple[list[str], float | None]:
    if alone or control is None:
        return ([SAME + text] if text else []), None
    found, distance = spans(text, control)
    return found, round(distance, 4)


def _text(value: Any) -> str:
    return "" if pd.isna(value) else str(value)


def _rounded(value: float) -> float | None:
    # A full double's digits would double the file.
    return float(f"{value:.4g}") if math.isfinite(value) else None
