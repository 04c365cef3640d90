"""Which columns of the results are measures, what they are called, and which of them are shown first."""

from __future__ import annotations

from collections.abc import Iterable

from sweep.report.terminal import COLUMNS

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
SHOWN = {"quality": 2, "divergence": 4, "health": 1, "perturbation": 1, "cost": 1}
# Divergences of which more means closer to the control, by how they end; of all others less does.
CLOSER = ("agreement", "first_divergence", "top1", "logprob")


def measures(columns: Iterable[str]) -> list[str]:
    """Return the columns that are measures, in the order of their groups; `<measure>/…` are statistics of one."""
    parts = {name: name.split("/") for name in columns}
    of = {name: {"/".join(words[:end]) for end in range(2, len(words))} for name, words in parts.items()}
    found = [name for name, words in parts.items() if words[0] in GROUPS and not of[name] & parts.keys()]
    return sorted(found, key=lambda name: GROUPS.index(parts[name][0]))


def main(names: Iterable[str], groups: Iterable[str] = GROUPS) -> list[str]:
    """Return the few measures that are shown before one asks for more: the preferred ones, then whichever there are."""
    names, chosen = list(dict.fromkeys(names)), []
    for group in groups:
        rank = {f"{group}/{name}": place for place, name in enumerate(MAIN[group])}
        there = sorted((n for n in names if n.startswith(f"{group}/")), key=lambda n: rank.get(n, len(rank)))
        chosen += there[: SHOWN[group]]
    return chosen


def title(name: str) -> str:
    """Return a measure's name as people write it: `quality/exact_match` is "exact match"."""
    return COLUMNS.get(name) or name.split("/", 1)[1].replace("_", " ").replace("/", ", ")


def short(key: str) -> str:
    """Return the last part of a swept key, which is what a point's name says: `transform.factor` is "factor"."""
    return key.rsplit(".", 1)[-1]


def closer_is_higher(name: str) -> bool:
    """Whether more of a divergence measure means closer to the control."""
    return name.endswith(CLOSER)
