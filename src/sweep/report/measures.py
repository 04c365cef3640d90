"""Measures in the report: which columns are measures, their titles, and which are shown initially."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sweep.scoring.registry import GROUPS, shown_in, spec


def measures(columns: Iterable[str]) -> list[str]:
    """Return the columns that are measures, in the order of their groups; `<measure>/…` are statistics of one."""
    parts = {name: name.split("/") for name in columns}
    prefixes = {name: {"/".join(words[:end]) for end in range(2, len(words))} for name, words in parts.items()}
    measure_names = [name for name, words in parts.items() if words[0] in GROUPS and not prefixes[name] & parts.keys()]
    order = list(GROUPS)
    return sorted(measure_names, key=lambda name: order.index(parts[name][0]))


def main_measures(names: Iterable[str], groups: Iterable[str] = tuple(GROUPS), first: Sequence[str] = ()) -> list[str]:
    """Return the few measures that are shown initially: the preferred ones, then others.

    Args:
        names: measures that exist.
        groups: groups to choose from, in this order.
        first: measures that are shown before others of their group, all of them.
    """
    names, chosen = list(dict.fromkeys(names)), []
    for group in groups:
        preferred = [*first, *(name for name in shown_in("report") if spec(name).group.name == group)]
        rank = {name: place for place, name in reversed(list(enumerate(preferred)))}
        existing = sorted((n for n in names if n.startswith(f"{group}/")), key=lambda n: rank.get(n, len(rank)))
        chosen += existing[: max(GROUPS[group].main, sum(name in first for name in existing))]
    return chosen


def ranking_of(names: Iterable[str], first: Sequence[str] = ()) -> str | None:
    """Return the measure that ranks points as best and worst; None if there is none.

    Args:
        names: measures that exist.
        first: measures that are preferred, in this order.
    """
    measured = set(names)
    for name in (*first, *shown_in("ranking")):
        if name in measured:
            return name
    return next((name for name in sorted(measured) if spec(name).group.breaks), None)


def headline_groups() -> list[str]:
    """Return the groups of measures that are plotted and shown first."""
    return [group.name for group in GROUPS.values() if group.headline]


def title(name: str) -> str:
    """Return a measure's readable name: "exact match" for `quality/exact_match`."""
    return spec(name).title


def short_key(key: str) -> str:
    """Return the last part of a swept key, as in points' names: "factor" for `transform.factor`."""
    return key.rsplit(".", 1)[-1]
