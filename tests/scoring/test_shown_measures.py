"""Which measures a sweep has, and where they are shown in which order: recorded, so that a change is seen.

`tests/data/shown_measures.json` has been recorded before measures had a registry.
"""

from __future__ import annotations

import base64
import csv
import json
import re
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from sweep.engines.base import Completion
from sweep.scoring.measures import by_measure, mean_scores, score, summarise_scores
from sweep.scoring.registry import GROUPS, measures
from sweep.scoring.scorers import select

RECORDED = Path(__file__).parents[1] / "data" / "shown_measures.json"
QUALITY = [
    *("exact_match", "normalised_exact_match", "contains", "regex_match"),
    *("token_f1", "numeric_match", "chrf", "bleu"),
]
ITEMS = "[{prompt: Hi, reference: a}, {prompt: Ho, reference: [b, c]}, {prompt: He}]"


def shown(outputs: Path, printed: str) -> dict[str, Any]:
    """Return all lists of measures that a sweep has printed, written and published."""
    [folder] = (outputs / "sweeps").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    page = (folder / "report" / "report.html").read_text("utf-8")
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    payload = json.loads(data)
    with (folder / "report" / "points.csv").open() as file:
        points = next(csv.reader(file))
    client = MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")
    [experiment] = client.search_experiments(filter_string="name = 'sweep'")
    [view] = [json.loads(value) for key, value in experiment.tags.items() if key.startswith("mlflow.sharedViewState")]
    state = json.loads(zlib.decompress(base64.b64decode(view["state"].removeprefix("deflate;"))))
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    [parent] = [run for run in runs.values() if run.data.tags["sweep.role"] == "sweep"]
    note = parent.data.tags["mlflow.note.content"]
    return {
        "generations": list(pd.read_parquet(folder / "report" / "generations.parquet").columns),
        "points": points,
        "metrics": sorted(set(runs["factor=4"].data.metrics) - {"cost/shared/gpu_memory_gib"}),
        "terminal": summary["columns"],
        "live": [re.sub(r" -?[\d.]+(e-?\d+)?(?=,|$)", "", line) for line in re.findall(r"factor=4: (.*)", printed)],
        "view": [state["selectedColumns"], [chart.get("yaxis") for chart in state["compareRunCharts"]]],
        "description": re.findall(r"(?m)^\| point \|.*$", note),
        "best": re.findall(r"(?m)^- (\S+) best", note),
        "matrix": [[score["name"], score["title"], score["shown"]] for score in payload["scores"]],
        "plots": [payload["main"], [plot["layout"]["title"]["text"] for plot in payload["figures"]]],
        "table": re.findall(r"<th[^>]*>(.*?)</th>", page, re.DOTALL),
        "files": sorted(file.name for file in (folder / "report").glob("**/*.png")),
    }


def recorded(name: str) -> Any:
    return json.loads(RECORDED.read_text())[name]


def test_shown_measures(sweep_here: Callable[..., str], tmp_path: Path) -> None:
    quality = f"scoring.quality=[{','.join(QUALITY)}]"
    printed = sweep_here("transform.factor=1.5,4", "scoring=full", quality, f"prompts.items={ITEMS}")
    found = shown(tmp_path / "outputs", printed)
    for place, expected in recorded("shown").items():
        assert found[place] == expected, place
    metrics = {name for name in found["metrics"] if name.startswith(tuple(f"{group}/" for group in GROUPS))}
    means = {name for name in metrics if not any(name.startswith(f"{other}/") for other in metrics)}
    assert means <= {measure.name for measure in measures()}, "all that is measured is registered"


def completion(text: str, tokens: tuple[int, ...], end: str = "stop") -> Completion:
    """Return an answer with the log-probabilities of five tokens at each step."""
    steps = [{token + i: -1.0 - 1.1 * i * (1 + step) for i in range(5)} for step, token in enumerate(tokens)]
    return Completion(text, tokens, end, tuple(steps))


def measured() -> dict[str, Any]:
    """Return the scores and summaries of fixed answers."""
    answers = [
        (completion("Paris.", (5, 6, 7)), ["Paris", "paris"], completion("Paris", (5, 6, 9, 3))),
        (completion("It is 12 % of the the the the", (1, 2, 3, 4, 4, 4, 4, 4, 4), "length"), ["12 %"], None),
        (completion("", ()), ["x"], completion("I cannot say", (8, 9))),
        (completion("I cannot say", (8, 9)), [], completion("I cannot say", (8, 9))),
    ]
    scorers = select(QUALITY)
    samples = [score(answer, references, control, scorers, 5) for answer, references, control in answers]
    values = by_measure([mean_scores([one]) for one in samples] + [mean_scores(samples[:2])])
    extra = ["perturbation/cosine", "perturbation/snr_db", "perturbation/1/dose_achieved", "perturbation/rows_kept"]
    values |= {name: np.array([-0.9, 0.2, 1.0, 0.8, 0.9]) for name in (*extra, "quality/mine", "cost/other")}
    values |= {name: np.array([-3.0, -0.2, 0.0, -1.0, -0.5]) for name in ("divergence/answer_logprob", "health/other")}
    summaries = summarise_scores(values, 0.95)
    return {"scores": samples, "summaries": {name: list(asdict(one).values()) for name, one in summaries.items()}}


def test_values_of_measures() -> None:
    found, expected = json.loads(json.dumps(measured())), recorded("measured")
    for mine, theirs in zip(found["scores"], expected["scores"], strict=True):
        assert list(mine) == list(theirs) and mine == pytest.approx(theirs, rel=1e-9)
    assert list(found["summaries"]) == list(expected["summaries"])
    for name, numbers in expected["summaries"].items():
        assert found["summaries"][name] == pytest.approx(numbers, rel=1e-6, nan_ok=True), name
