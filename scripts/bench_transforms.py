"""What transforms cost, measured as ratios within one run on one machine.

    .venv/bin/python scripts/bench_transforms.py                   # rows per second of each, beside a plain copy
    .venv/bin/python scripts/bench_transforms.py --sweep 18.3      # beside a sweep of that many seconds

The first hands 1,024 rows of widths 2048 and 4096 to each transform's `apply`, at the slowest of its examples, with a
table of 32,768 tokens.  The copy is `rows.clone()`, which allocates its result as a transform does.  The second builds
the requests of P=32 points x N=64 prompts of the demo model, with span, cast and measures, and takes the identity's
time off; the seconds are those of (b) in `bench_overhead.py`, on the same machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from sweep import config
from sweep.checkpoint import find
from sweep.config import ModelConfig, PromptsConfig, build_pipeline
from sweep.corpus import Corpus
from sweep.embedding import EmbeddingTable, open_table
from sweep.encoding import encode
from sweep.paths import conf_dir
from sweep.prompts import load
from sweep.request import build
from sweep.scoring.perturbation import nearest_token_flips
from sweep.transforms import TRANSFORMS, Context, Rearrangement, Span, Stage

ROWS, TOKENS = 1024, 32768
POINTS, PROMPTS = 32, 64


def seconds(work: Callable[[], Any], least: float = 0.2) -> float:
    """Return the median time of a call, of at least three and as many as fit into `least` seconds."""
    work()  # what is computed once for a table or a corpus is computed here
    times: list[float] = []
    while len(times) < 3 or sum(times) < least:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def stages() -> Iterator[tuple[str, Stage]]:
    """Yield each transform at each of its examples."""
    for name, transform in TRANSFORMS.items():
        for parameters in transform.examples:
            yield name, build_pipeline({"name": name, **parameters}).stages[0]


def wide_corpus(width: int) -> Corpus:
    """Return two equally long prompts over a random table of some width."""
    checkpoint = find(ModelConfig())
    text = "the owl says what it says " * ROWS
    prompts = load(PromptsConfig(items=[{"id": i, "prompt": text} for i in "ab"], chat=False))
    table = EmbeddingTable(torch.randn(TOKENS, width) * 0.02, torch.float32)
    return Corpus(encode(prompts, checkpoint), table, checkpoint)


def rows_per_second(width: int) -> dict[str, float]:
    """Return the rows per second of a copy and of each transform."""
    corpus = wide_corpus(width)
    rows = corpus.table.rows(corpus.layout("a").token_ids[:ROWS])
    span = Span(window=(0, ROWS))
    speeds = {"copy": ROWS / seconds(rows.clone)}
    for name, stage in stages():
        if name == "anchor" or name == "nearest_token" or name == "knn_blend" or name == "dx_privacy":
            given = rows + 0.01 * torch.randn(rows.shape)
        else:
            given = rows
        stage.transform.check(corpus)
        context = Context(1, 2, corpus, "a", span, [(i,) for i in range(ROWS)])
        speed = ROWS / seconds(lambda stage=stage, given=given, context=context: stage.transform.apply(given, context))
        speeds[name] = min(speed, speeds.get(name, speed))
    return speeds


def sweep_seconds() -> dict[str, float]:
    """Return the seconds that all requests of a sweep take to build and to measure, for each transform."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        overrides = ["prompts=demo_heldout", f"prompts.limit={PROMPTS}", "model.dtype=float32"]
        base = config.parse(compose("config", overrides=overrides))
    checkpoint = find(base.model)
    corpus = Corpus(encode(load(base.prompts), checkpoint), open_table(checkpoint), checkpoint)

    def point(stage: Stage) -> None:
        own = replace(base, transform=config.Pipeline((stage,)))
        built = [build(None, own, encoded, corpus) for encoded in corpus.prompts]
        nearest_token_flips([b.neighbours for b in built], corpus.table)

    found: dict[str, float] = {}
    for name, stage in [("identity", build_pipeline({"name": "identity"}).stages[0]), *stages()]:
        if name == "lerp" or name == "slerp":  # prompts differ in length
            stage = replace(stage, transform=replace(stage.transform, align="resample"))  # type: ignore[call-arg]
        stage.transform.check(corpus)
        found[name] = max(POINTS * seconds(lambda stage=stage: point(stage)), found.get(name, 0.0))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", type=float, metavar="SECONDS", help="of the sweep to compare with")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    config.register()
    results: dict[str, Any] = {"threads": torch.get_num_threads()}
    if arguments.sweep is None:
        speeds = {width: rows_per_second(width) for width in (2048, 4096)}
        results["rows_per_second"] = speeds
        bandwidth = [2 * 4 * width * own["copy"] / 1e9 for width, own in speeds.items()]
        print(f"{results['threads']} threads; the copy moves {bandwidth[0]:.1f} and {bandwidth[1]:.1f} GB/s")
        print("| transform | rows/s, d=2048 | / copy | rows/s, d=4096 | / copy |\n|---|---|---|---|---|")
        for name in speeds[2048]:
            cells = [f"{own[name]:,.0f} | {own['copy'] / own[name]:.1f}" for own in speeds.values()]
            kind = "" if name == "copy" or not issubclass(TRANSFORMS[name], Rearrangement) else " (rearranges)"
            print(f"| {name}{kind} | {' | '.join(cells)} |")
    else:
        results["sweep_seconds"] = spent = sweep_seconds()
        print(f"{POINTS} points x {PROMPTS} prompts; identity {spent['identity']:.2f} s of {arguments.sweep} s")
        for name, own in sorted(spent.items(), key=lambda item: -item[1]):
            more = own - spent["identity"]
            print(f"{name:20} +{more:6.2f} s  {more / arguments.sweep:6.1%}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
