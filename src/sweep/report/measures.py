"""Measures in the report: which columns are measures, their titles, and which are shown first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# Titles, in the order of the terminal table.
COLUMNS = {
    "quality/exact_match": "exact match",
    "quality/contains": "contains",
    "divergence/first_divergence": "first divergence",
    "divergence/token_agreement": "token agreement",
    "divergence/edit_distance": "edit distance",
    "perturbation/relative_l2": "relative L2",
    "perturbation/nearest_token_flips": "token flips",
    "perturbation/dose_achieved": "achieved dose",
    "cost/output_tokens": "tokens",
}
GROUPS = ("quality", "divergence", "health", "perturbation", "cost")
MAIN = {
    "quality": ("exact_match", "normalised_exact_match", "contains", "token_f1", "numeric_match", "chrf"),
    "divergence": (
        "token_agreement",
        "first_divergence",
        "edit_distance",
        "control_answer_logprob_change",
        "first_token_kl",
    ),
    "health": ("loop", "empty"),
    "perturbation": ("relative_l2",),
    "cost": ("output_tokens",),
}
SHOWN_PER_GROUP = {"quality": 2, "divergence": 4, "health": 1, "perturbation": 1, "cost": 1}
# Endings of divergence measures that are higher for answers closer to the control. All others are lower.
CLOSER = ("agreement", "first_divergence", "top1", "logprob")


def measures(columns: Iterable[str]) -> list[str]:
    """Return the columns that are measures, in the order of their groups; `<measure>/…` are statistics of one."""
    parts = {name: name.split("/") for name in columns}
    prefixes = {name: {"/".join(words[:end]) for end in range(2, len(words))} for name, words in parts.items()}
    found = [name for name, words in parts.items() if words[0] in GROUPS and not prefixes[name] & parts.keys()]
    return sorted(found, key=lambda name: GROUPS.index(parts[name][0]))


def main_measures(names: Iterable[str], groups: Iterable[str] = GROUPS, first: Sequence[str] = ()) -> list[str]:
    """Return the few measures that are shown initially: the preferred ones, then others.

    Args:
        names: measures that exist.
        groups: groups to choose from, in this order.
        first: measures that are shown before others of their group, all of them.
    """
    names, chosen = list(dict.fromkeys(names)), []
    for group in groups:
        preferred = [*first, *(f"{group}/{name}" for name in MAIN[group])]
        rank = {name: place for place, name in reversed(list(enumerate(preferred)))}
        existing = sorted((n for n in names if n.startswith(f"{group}/")), key=lambda n: rank.get(n, len(rank)))
        chosen += existing[: max(SHOWN_PER_GROUP[group], sum(name in first for name in existing))]
    return chosen


def title(name: str) -> str:
    """Return a measure's readable name: "exact match" for `quality/exact_match`."""
    return COLUMNS.get(name) or name.split("/", 1)[1].replace("_", " ").replace("/", ", ")


def short_key(key: str) -> str:
    """Return the last part of a swept key, as in points' names: "factor" for `transform.factor`."""
    return key.rsplit(".", 1)[-1]


def closer_is_higher(name: str) -> bool:
    """Whether a higher value of a divergence measure means closer to the control."""
    return name.endswith(CLOSER)
