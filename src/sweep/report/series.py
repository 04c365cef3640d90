"""Series: points along a swept number that agree in every other swept key.

Only repetitions with another seed are pooled. The comparison and the plots share this grouping.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from sweep.points.point import DIGITS, Value, as_text

MAX_VALUE_LENGTH = 40  # characters of a value in a name
# Last parts of keys that are ambiguous alone: "control" is also the untransformed point.
VAGUE = ("control", "name")

Fixed = tuple[tuple[str, Value], ...]


@dataclass(frozen=True, slots=True)
class TreatedPoint:
    """A point other than a control.

    Attributes:
        point: its index in the sweep.
        axes: its swept values by key.
        control: index of the control that it is compared with, or of the first of several that differ in
            `sampling.seed` alone; None if there is none.
    """

    point: int
    axes: Mapping[str, Value]
    control: int | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """Points along an axis that agree in every other swept key except seeds.

    Attributes:
        axis: the swept key that holds the dose.
        name: distinguishes it from the axis' other series, such as `span=all`; empty if there are no others.
        pooled: the seeds that are averaged, such as `seed=0,1,2`; empty if there is one.
        doses: finite, ascending.
        points: indices of the points in the sweep, one per dose.
        control: index of the common control, or of the first one if the pooled seeds include `sampling.seed`; None if
            there is none, or several because the axis changes the control.
        zipped: the other keys that change with the dose (`sweep.zip`), such as `sampling.max_tokens`.
    """

    axis: str
    name: str
    pooled: str
    doses: tuple[float, ...]
    points: tuple[int, ...]
    control: int | None
    zipped: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Name, zipped keys and pooled seeds: `span=all (with max_tokens) (pooled over seed=0,1)`."""
        together = f"(with {', '.join(key.rsplit('.', 1)[-1] for key in self.zipped)})" if self.zipped else ""
        return " ".join(filter(None, (self.name, together, self.pooling)))

    @property
    def pooling(self) -> str:
        """Pooled seeds in parentheses; empty if nothing is pooled."""
        return f"(pooled over {self.pooled})" if self.pooled else ""


def find_series(entries: Sequence[TreatedPoint], zips: Sequence[Sequence[str]] = ()) -> list[Series]:
    """Return the series along every numeric axis, in the order of the axes and of their first points.

    Args:
        entries: the points.
        zips: groups of keys that were zipped. A group is one axis: its first numeric key with a different number for
            each combination of its values. A group without such a key is several axes.
    """
    numeric = numeric_axes(entries)
    followers: dict[str, tuple[str, ...]] = {}
    for group in zips:
        lead = next((key for key in group if key in numeric and _identifies(key, group, entries)), None)
        if lead is not None:
            followers[lead] = tuple(key for key in group if key != lead)
    following = {key for keys in followers.values() for key in keys}
    axes = [axis for axis in numeric if axis not in following]
    return [series for axis in axes for series in _along(axis, entries, followers.get(axis, ()))]


def _identifies(key: str, group: Sequence[str], entries: Sequence[TreatedPoint]) -> bool:
    """Return whether the values of a key tell the combinations of a group's values apart."""
    cells = {tuple(entry.axes.get(other) for other in group) for entry in entries if key in entry.axes}
    return len({entry.axes[key] for entry in entries if key in entry.axes}) == len(cells)


def numeric_axes(entries: Iterable[TreatedPoint]) -> list[str]:
    """Return the swept keys with only numbers, at least two of them finite. Seeds are not doses and are left out."""
    values: dict[str, set[Value]] = {}
    for entry in entries:
        for key, value in entry.axes.items():
            values.setdefault(key, set()).add(value)
    return [key for key, distinct in values.items() if not is_seed(key) and _are_doses(distinct)]


def is_seed(key: str) -> bool:
    """Whether a swept key is a seed."""
    return key.rsplit(".", 1)[-1] == "seed"


def names(rows: Sequence[Mapping[str, Value]]) -> list[str]:
    """Return a short name for each combination of swept values, from the keys in which the combinations differ.

    Keys are shortened to their last part, and values to the part that differs, if the names stay distinct.
    """
    keys = [key for key in dict.fromkeys(k for row in rows for k in row) if len({row.get(key) for row in rows}) > 1]
    leaves = [key.rsplit(".", 1)[-1] for key in keys]
    titles = {
        key: leaf if leaves.count(leaf) == 1 and leaf not in VAGUE else key
        for key, leaf in zip(keys, leaves, strict=True)
    }
    long = {key: {row[key]: as_text(row[key], DIGITS) for row in rows if key in row} for key in keys}
    for texts in ({key: _shortened(values) for key, values in long.items()}, long):
        short_names = [", ".join(f"{titles[key]}={texts[key][row[key]]}" for key in keys if key in row) for row in rows]
        if len(set(short_names)) == len(short_names):
            break
    return short_names


def _are_doses(values: set[Value]) -> bool:
    numbers = [value for value in values if not isinstance(value, str)]
    return len(numbers) == len(values) and len([number for number in numbers if math.isfinite(number)]) > 1


def _along(axis: str, entries: Sequence[TreatedPoint], zipped: tuple[str, ...]) -> Iterator[Series]:
    groups: dict[tuple[Fixed, int | None], list[TreatedPoint]] = {}
    # Keys outside of `transform` change the control too: there, each dose has its own control.
    one_control = all(key.split(".")[0] == "transform" for key in (axis, *zipped))
    for entry in entries:
        dose = entry.axes.get(axis)
        if isinstance(dose, float) and math.isfinite(dose):
            fixed = tuple(
                sorted((k, v) for k, v in entry.axes.items() if k not in (axis, *zipped) and not is_pooled(k))
            )
            groups.setdefault((fixed, entry.control if one_control else None), []).append(entry)
    order = {key: index for index, key in enumerate(dict.fromkeys(key for entry in entries for key in entry.axes))}
    fixed_values = [dict(sorted(fixed, key=lambda pair: order[pair[0]])) for fixed, _ in groups]
    for members, name in zip(groups.values(), _distinct(names(fixed_values), list(groups.values())), strict=True):
        members.sort(key=lambda entry: entry.axes[axis])
        controls = {entry.control for entry in members}
        yield Series(
            axis,
            name,
            seed_names([entry.axes for entry in members]),
            tuple(float(entry.axes[axis]) for entry in members),
            tuple(entry.point for entry in members),
            controls.pop() if len(controls) == 1 else None,
            tuple(key for key in zipped if any(key in entry.axes for entry in members)),
        )


def is_pooled(key: str) -> bool:
    """Whether a swept key is a seed whose repetitions are averaged: of the point, of a transform, or of sampling."""
    return is_seed(key) and key.split(".")[0] in ("seed", "transform", "sampling")


def seed_names(members: Iterable[Mapping[str, Value]]) -> str:
    """Return the seeds in which points differ, as text: `seed=0,1,2`; empty if they do not.

    Args:
        members: the points' swept values by key.
    """
    seeds: dict[str, dict[Value, None]] = {}
    for axes in members:
        for key, value in axes.items():
            if is_pooled(key):
                seeds.setdefault(key, {})[value] = None
    several = {key: values for key, values in seeds.items() if len(values) > 1}
    titles = {key: key if len(several) > 1 else "seed" for key in several}
    return ", ".join(
        f"{titles[key]}={','.join(as_text(value, DIGITS) for value in sorted(values, key=_order))}"
        for key, values in several.items()
    )


def _order(value: Value) -> tuple[bool, float, str]:
    return (True, 0.0, value) if isinstance(value, str) else (False, value, "")


def _distinct(labels: Sequence[str], members: Sequence[Sequence[TreatedPoint]]) -> list[str]:
    """Make equal names distinct by adding the index of the control or, if still equal, of the first point."""
    for kind in ("control", "point"):
        labels = [
            name if labels.count(name) == 1 else f"{name} {kind} #{getattr(points[0], kind)}".strip()
            for name, points in zip(labels, members, strict=True)
        ]
    return list(labels)


def _shortened(texts: Mapping[Value, str]) -> dict[Value, str]:
    """Return the texts of one key's values without the folders that all paths share, cut in the middle if long."""
    folders = [text.split("/")[:-1] for text in texts.values()]
    common = takewhile(lambda names: len(set(names)) == 1, zip(*folders, strict=False))
    shared = len("/".join([*(names[0] for names in common), ""])) if all(folders) else 0
    short = {value: text[shared:] for value, text in texts.items()}
    half = MAX_VALUE_LENGTH // 2
    return {v: t if len(t) <= MAX_VALUE_LENGTH else f"{t[: half - 1]}…{t[-half:]}" for v, t in short.items()}
