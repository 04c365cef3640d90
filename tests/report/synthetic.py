"""Results that look like a sweep's: answers that fall apart as a factor grows, or falls."""

from __future__ import annotations

import math
import random
from typing import Any

import pandas as pd

from sweep.report.results import SweepResults

WORDS = [
    "the",
    "sky",
    "is",
    "blue",
    "because",
    "sunlight",
    "is",
    "scattered",
    "by",
    "molecules",
    "of",
    "air",
    "and",
    "short",
    "waves",
    "are",
    "scattered",
    "more",
    "than",
    "long",
    "ones",
    "so",
    "that",
    "from",
    "every",
    "direction",
    "we",
    "see",
    "blue",
    "light",
    "at",
    "noon",
    "while",
    "red",
    "remains",
    "near",
    "the",
    "horizon",
    "in",
    "the",
    "evening",
]
MEASURES = (
    "quality/exact_match",
    "quality/contains",
    "divergence/first_divergence",
    "divergence/token_agreement",
    "divergence/edit_distance",
    "health/loop",
    "perturbation/relative_l2",
    "cost/output_tokens",
)
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def make(
    prompts: int = 12,
    factors: int = 5,
    samples: int = 1,
    tokens: int = 40,
    seeds: int = 1,
    below: bool = False,
    evil: bool = False,
    name: str = "How far can embeddings be scaled?",
) -> SweepResults:
    """Make a sweep over `transform.factor` (1.2, 1.4, …; `below`, also 0.25, 0.5, 0.8), and over several `seeds`.

    Prompts 0, 3, 6, … answer as the control at every factor; the others change more words, the farther it is from 1.
    With `evil`, prompt 1 and its id, reference and generations, and the name of point 1 try to be HTML.
    """
    chance = random.Random(0)
    factors_made = [0.25, 0.5, 0.8] * below + [round(1.2 + 0.2 * i, 2) for i in range(factors)]
    doses = [(factor, seed) for seed in range(seeds) for factor in factors_made]
    points: list[dict[str, Any]] = [{"name": "control", "axis/transform.factor": math.nan, "axis/seed": math.nan}]
    for factor, seed in doses:
        text = f"factor={factor:g}" + (f", seed={seed}" if seeds > 1 else "")
        points.append({"name": text, "axis/transform.factor": factor, "axis/seed": float(seed)})
    if evil:
        points[1]["name"] = f"factor=1.2 {EVIL}"
        name = f"{name} {EVIL}"
    rows = []
    for i in range(prompts):
        begin = chance.randrange(len(WORDS))
        clean = [WORDS[(begin + j) % len(WORDS)] for j in range(tokens)]
        prompt = f"Question {i}: why is it that {' '.join(chance.sample(WORDS, 5))}?"
        for index, point in enumerate(points):
            for sample in range(samples):
                words = list(clean)
                strength = 0 if index == 0 or i % 3 == 0 else abs(point["axis/transform.factor"] - 1) / factors
                start = round(tokens * (1 - min(0.9, strength * 2)))
                for j in range(start, tokens):
                    if chance.random() < min(0.9, 0.3 + strength):
                        words[j] = chance.choice(["banana", "qu", "42", "ö", "東京", "never"])
                same = words == clean
                answer = " ".join(words) + "."
                hostile = evil and i == 1
                row = {"point": index, "name": point["name"], "role": "point" if index else "control"}
                row |= {key: value for key, value in point.items() if key.startswith("axis/")}
                row |= {
                    "prompt_id": f"q{i}{EVIL if hostile else ''}",
                    "prompt": f"{prompt}{EVIL if hostile else ''}",
                    "sample": sample,
                    "generation": f"{answer}{EVIL if hostile else ''}",
                    "reference": EVIL if hostile else " ".join(clean[:3]),
                    "finish_reason": "length" if i % 5 == 4 else "stop",
                    "token_ids": list(range(tokens)),
                    "quality/exact_match": float(same),
                    "quality/contains": float(words[:3] == clean[:3]),
                    "health/loop": 0.0,
                    "perturbation/relative_l2": 0.0 if not index else abs(point["axis/transform.factor"] - 1),
                    "cost/output_tokens": float(tokens),
                }
                if sample == 0:
                    rendered = f"<user>{row['prompt']}<end>"
                    row["rendered_prompt"] = None if index else rendered
                    row["span"] = f"[[6, {len(rendered) - 5}]]" if index else None
                if index:
                    agreement = sum(a == b for a, b in zip(words, clean, strict=True)) / tokens
                    first = next((float(j) for j in range(tokens) if words[j] != clean[j]), float(tokens))
                    row |= {"divergence/first_divergence": first, "divergence/token_agreement": agreement}
                    row |= {"divergence/edit_distance": 1 - agreement}
                else:  # what a second run of the control would have
                    row |= {"divergence/first_divergence": 0.98 * tokens, "divergence/token_agreement": 0.98}
                    row |= {"divergence/edit_distance": 0.02}
                rows.append(row)
    generations = pd.DataFrame(rows)
    summary = []
    for index, point in enumerate(points):
        own = generations[generations["point"] == index]
        row = {"point": index, "role": "point" if index else "control", "control": 0, "error": None} | point
        for measure in MEASURES:
            values = own[measure].dropna()
            if not len(values):
                continue
            mean, half = values.mean(), 1.96 * (values.std() if len(values) > 1 else 0) / math.sqrt(len(values))
            row |= {measure: mean, f"{measure}/ci_low": mean - half, f"{measure}/ci_high": mean + half}
            row[f"{measure}/n"] = len(values)
            if index and measure.startswith("quality"):
                difference = mean - generations.loc[generations["point"] == 0, measure].mean()
                row |= {f"{measure}/difference": difference, f"{measure}/difference/ci_low": difference - half}
                row |= {f"{measure}/difference/ci_high": difference + half, f"{measure}/p": 0.01, f"{measure}/q": 0.02}
                row[f"{measure}/significant"] = difference + half < 0
        summary.append(row)
    frame = pd.DataFrame(summary)
    if seeds == 1:
        frame, generations = (table.drop(columns="axis/seed") for table in (frame, generations))
    pooled = f"seed={','.join(map(str, range(seeds)))}" if seeds > 1 else ""
    return SweepResults(
        "20261123-135039-ad5ed0",
        name,
        "sweep transform=scale transform.factor=…",
        0.95,
        frame,
        generations,
        _responses(factors, below, pooled),
        _pooled(frame) if seeds > 1 else _pooled(frame[:0]),
    )


def _pooled(points: pd.DataFrame) -> pd.DataFrame:
    """The means over seeds, with made-up intervals."""
    rows = []
    for dose, own in points[points["role"] == "point"].groupby("axis/transform.factor"):
        for measure in MEASURES:
            mean = own[measure].mean()
            row = {"axis": "transform.factor", "series": "", "dose": dose, "measure": measure, "mean": mean}
            rows.append(row | {"ci_low": mean - 0.1, "ci_high": mean + 0.1})
    return pd.DataFrame(rows, columns=["axis", "series", "dose", "measure", "mean", "ci_low", "ci_high"])


def _responses(factors: int, below: bool, pooled: str) -> pd.DataFrame:
    def row(measure: str, first: float, breaking: float, floor: float, side: str = "above") -> dict[str, Any]:
        found: dict[str, Any] = {
            "control": 0,
            "axis": "transform.factor",
            "series": "",
            "pooled": pooled,
            "measure": measure,
            "side": side,
            "neutral": 1.0,
        }
        found["floor"] = floor
        for name, value, reach in (
            ("rho", -0.9, 0.05),
            ("first_effective", first, 0.2),
            ("breaking_point", breaking, 0.2),
        ):
            found |= {name: value, f"{name}/ci_low": value - reach, f"{name}/ci_high": value + reach}
        return found

    end = 1.0 + 0.2 * factors
    rows = [
        row("quality/exact_match", 1.4, (1.4 + end) / 2, math.nan),
        row("divergence/token_agreement", 1.4, math.nan, 0.98),
        row("divergence/edit_distance", 1.4, math.nan, 0.02),
    ]
    if below:
        rows.insert(1, row("quality/exact_match", 0.5, 0.4, math.nan, "below"))
        rows.append(row("divergence/edit_distance", math.nan, math.nan, 0.02, "below"))
    return pd.DataFrame(rows)
