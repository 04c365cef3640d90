"""Reference tables of measures, a table for each group of the registry."""

from __future__ import annotations

import math
import re

from doc_markdown import table

from sweep.scoring.registry import GROUPS, MeasureSpec, measures_of

NUMBERS = {math.inf: "∞", -math.inf: "-∞", math.log(2): "ln 2"}


def measure_table(group: str) -> str:
    """Return the table of a group's built-in measures."""
    built_in = [measure for measure in measures_of(group) if measure.per != "batch" or measure.configured]
    rows = [(f"`{measure.name}`", values(measure), meaning(measure)) for measure in built_in]
    return "\n".join(table(("measure", "values", "meaning"), rows))


def measure_names() -> set[str]:
    """Return the names of all measures that the pages list."""
    text = "\n".join(map(measure_table, GROUPS))
    return set(re.findall(r"^\| `([\w/]+)`", text, re.MULTILINE))


def values(measure: MeasureSpec) -> str:
    """Return a measure's range with its unit."""
    if measure.yes_or_no and measure.per != "prompt":  # those of all samples of a prompt may lie between
        return "0 or 1"
    low, high = (NUMBERS.get(limit, f"{limit:g}") for limit in measure.range)
    return f"{low} to {high} {measure.unit}".rstrip()


def meaning(measure: MeasureSpec) -> str:
    """Return what a measure is, with its source."""
    return f"{measure.about} ({measure.source})" if measure.source else measure.about
