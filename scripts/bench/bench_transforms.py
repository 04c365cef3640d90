"""Cost of transforms, as ratios within one run on one machine.

    .venv/bin/python scripts/bench/bench_transforms.py                   # rows per second, compared with a plain copy
    .venv/bin/python scripts/bench/bench_transforms.py --sweep           # share of a whole sweep's time

The first form passes 8,192 rows of widths 2048 and 4096, which exceed the caches, to each transform's `apply`, for the
slowest of its examples. Transforms that use the whole table of 32,768 tokens, or components of the rows, get 256 rows.
The copy is `rows.clone()`, which allocates its result like a transform.

The second form builds the requests of P=32 points x N=64 prompts of the demo model, with span, cast and measures, and
subtracts the time of the identity. It compares the result with (b) of `bench_overhead.py`: a sweep of the same points
with 32 tokens each, run before and after in the same process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bench_overhead import compose_jobs
from hydra import compose, initialize_config_dir

from sweep.app.sweep_runner import SweepRunner
from sweep.config import loader
from sweep.config.dataclass_reader import build_pipeline
from sweep.console.terminal import Terminal
from sweep.inputs.checkpoint import find
from sweep.inputs.config import ModelConfig, PromptsConfig
from sweep.inputs.embedding_loader import open_table
from sweep.inputs.embedding_table import EmbeddingTable
from sweep.inputs.prompt_set import PromptSet
from sweep.inputs.prompts import load
from sweep.inputs.tokenization import encode
from sweep.planning.request_builder import build
from sweep.points.point import make_points
from sweep.scoring.perturbation import nearest_token_flips
from sweep.transforms import TRANSFORMS, Context, Pipeline, Rearrangement, Span, Stage
from sweep.util.paths import conf_dir

ROWS, TOKENS = 8192, 32768
FEW = 256  # rows for transforms that compare each row with the whole table, or compute components of the rows
HEAVY = ("nearest_token", "knn_blend", "anchor", "dx_privacy", "remove_components", "truncate_rank")
POINTS, PROMPTS = 32, 64


def seconds(work: Callable[[], Any], least: float = 0.2) -> float:
    """Return the median time of a call, from at least three calls and at least `least` seconds."""
    work()  # warm-up: results that are cached for a table or a prompt set
    times: list[float] = []
    while len(times) < 3 or sum(times) < least:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def stages() -> Iterator[tuple[str, Stage]]:
    """Yield each transform with each of its examples."""
    for name, transform in TRANSFORMS.items():
        for parameters in transform.examples:
            yield name, build_pipeline({"name": name, **parameters}).stages[0]


def wide_corpus(width: int) -> PromptSet:
    """Return two prompts of equal length with a random table of the given width."""
    checkpoint = find(ModelConfig())
    text = "the owl says what it says " * (ROWS // 10)  # of twelve tokens
    prompts = load(PromptsConfig(items=[{"id": i, "prompt": text} for i in "ab"], chat=False))
    table = EmbeddingTable(lambda: torch.randn(TOKENS, width) * 0.02, TOKENS, width, "float32")
    return PromptSet(encode(prompts, checkpoint), table, checkpoint)


def rows_per_second(width: int) -> dict[str, float]:
    """Return the rows per second of a copy and of each transform."""
    corpus = wide_corpus(width)
    rows = corpus.table.rows(corpus.layout("a").token_ids[:ROWS])
    span = Span(window=(0, ROWS))
    speeds = {"copy": ROWS / seconds(rows.clone)}
    for name, stage in stages():
        if name == "typo":  # it tokenizes a whole text and changes no rows
            continue
        stage.transform.check(corpus)
        count = FEW if name in HEAVY else ROWS
        context = Context(1, 2, corpus, "a", span, [(i,) for i in range(count)])
        part = rows[:count]
        speed = count / seconds(lambda stage=stage, part=part, context=context: stage.transform.apply(part, context))
        speeds[name] = min(speed, speeds.get(name, speed))
    return speeds


def request_seconds() -> dict[str, float]:
    """Return the seconds to build and measure all requests of a sweep, for each transform."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        base = loader.parse(compose("config", overrides=["prompts=demo_heldout", f"prompts.limit={PROMPTS}"]))
    checkpoint = find(base.model)
    corpus = PromptSet(encode(load(base.prompts), checkpoint), open_table(checkpoint), checkpoint)

    def point(stage: Stage) -> None:
        config = replace(base, transform=Pipeline((stage,)))
        built = [build(None, config, encoded, corpus) for encoded in corpus.prompts]
        nearest_token_flips([b.measure().neighbours for b in built], corpus.table)

    spent: dict[str, float] = {}
    for name, stage in [("identity", build_pipeline({"name": "identity"}).stages[0]), *stages()]:
        if hasattr(stage.transform, "align"):  # prompts differ in length
            stage = replace(stage, transform=replace(stage.transform, align="resample"))  # type: ignore[call-arg]
        stage.transform.check(corpus)
        spent[name] = max(POINTS * seconds(lambda stage=stage: point(stage)), spent.get(name, 0.0))
    return spent


def sweep_seconds() -> Iterator[float]:
    """Yield the seconds of one sweep after another, on an engine that is already warm."""
    sizes = argparse.Namespace(prompts=PROMPTS, tokens=32)
    with tempfile.TemporaryDirectory() as folder:
        jobs = compose_jobs(POINTS, sizes, folder)
        with SweepRunner(make_points(jobs)[0].config, "bench", "bench", Terminal()) as runner:
            runner.run(make_points(compose_jobs(1, sizes, folder, "prompts.limit=1", "sampling.max_tokens=1")))
            for seed in itertools.count(1):  # a new seed, because the runner does not repeat finished points
                points = [replace(p, config=replace(p.config, seed=seed)) for p in make_points(jobs)[1:]]
                began = time.monotonic()
                runner.run(points)
                yield time.monotonic() - began


def main() -> None:
    """Measure all transforms and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", action="store_true", help="compare with the time of a sweep")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    loader.register()
    results: dict[str, Any] = {"threads": torch.get_num_threads()}
    if not arguments.sweep:
        speeds = {width: rows_per_second(width) for width in (2048, 4096)}
        results["rows_per_second"] = speeds
        bandwidth = [2 * 4 * width * by_name["copy"] / 1e9 for width, by_name in speeds.items()]
        print(f"{results['threads']} threads; the copy moves {bandwidth[0]:.1f} and {bandwidth[1]:.1f} GB/s")
        print("| transform | rows/s, d=2048 | / copy | rows/s, d=4096 | / copy |\n|---|---|---|---|---|")
        for name in speeds[2048]:
            cells = [f"{by_name[name]:,.0f} | {by_name['copy'] / by_name[name]:.1f}" for by_name in speeds.values()]
            kind = "" if name == "copy" or not issubclass(TRANSFORMS[name], Rearrangement) else " (rearranges)"
            print(f"| {name}{kind} | {' | '.join(cells)} |")
    else:
        sweeps = sweep_seconds()
        before, spent, after = next(sweeps), request_seconds(), next(sweeps)
        sweeps.close()
        whole = (before + after) / 2
        results |= {"sweep_seconds": [before, after], "request_seconds": spent}
        print(f"{POINTS} points x {PROMPTS} prompts: {before:.1f} s before, {after:.1f} s after")
        print(f"requests of identity {spent['identity']:.2f} s, {spent['identity'] / whole:.1%}; extra time of others:")
        for name, took in sorted(spent.items(), key=lambda item: -item[1]):
            extra = took - spent["identity"]
            print(f"{name:20} {extra:6.2f} s  {extra / whole:6.1%}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
