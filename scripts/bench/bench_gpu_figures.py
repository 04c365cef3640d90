"""Figures of `bench_gpu.py`, measured on an open engine.

All measurements use this project's engine, group executor and runner. Compared variants alternate within one run, on
one open engine. Ratios are those of neighbouring measurements.
"""

from __future__ import annotations

import cProfile
import io
import pstats
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from bench_gpu_nan import nan_check
from bench_gpu_session import (
    Session,
    Values,
    alike,
    jobs_of,
    ratios,
    spread,
    timed,
)

from sweep.points.point import make_points

LEAN = "scoring.nearest_rows=0"  # without the nearest tokens of changed rows, which need the whole table
SPENT = ("engine", "plan", "build", "score", "publish")


def parity(session: Session) -> Values:
    """Compare greedy answers to token ids and to their embeddings, repeated and in differently composed batches."""
    options, engine, tokens = session.options, session.engine, session.options.parity_tokens
    inputs = session.inputs(options.prompt_tokens, options.prompts)
    ids, rows = inputs.by_ids(tokens), list(inputs.requests(tokens=tokens))
    one_ids, one_rows = ({r.key: timed(engine, [r])[1][r.key] for r in kind[: options.singles]} for kind in (ids, rows))
    by_ids, repeated_ids = (timed(engine, ids)[1] for _ in range(2))
    by_rows, repeated_rows, reverse = (timed(engine, requests)[1] for requests in (rows, rows, rows[::-1]))
    others = [replace(other, key=("other", other.key)) for other in inputs.requests([1.5], tokens)]
    mixed = timed(engine, [request for pair in zip(rows, others, strict=True) for request in pair])[1]
    seconds = [timed(engine, rows)[0] for _ in range(3)]
    return {
        "one by one: ids, embeddings": alike(one_ids, one_rows),
        "embeddings: one by one, in the batch": alike(one_rows, by_rows),
        "batch: ids, embeddings": alike(by_ids, by_rows),
        "batch: ids, ids again": alike(by_ids, repeated_ids),
        "batch: embeddings, embeddings again": alike(by_rows, repeated_rows),
        "batch: embeddings, in reverse": alike(by_rows, reverse),
        "noise floor: control alone, among another point": alike(by_rows, {row.key: mixed[row.key] for row in rows}),
        "distinct answers": f"{len(set(by_rows.values()))} of {len(rows)}, {tokens} tokens each",
        "tokens per second": spread([len(rows) * tokens / s for s in seconds]),
    }


def floor_of_a_sweep(session: Session) -> Values:
    """Return the noise floor that a sweep reports for its control."""
    options = session.options
    inputs = session.inputs(options.prompt_tokens, options.prompts, "scoring.noise_floor=true", "sampling.seed=1")
    points = make_points(jobs_of(inputs.plain, session.factors(3)))
    session.runner.run(points)
    results = session.runner.results.values()
    [control] = [r for r in results if r.point.is_control and r.point.control_key == points[0].control_key]
    return {
        name: round(summary.mean, 4) for name, summary in control.summaries.items() if name.startswith("divergence/")
    }


def figure1(session: Session) -> Values:
    """Compare sweeps with a bare `LLM.generate` of as many requests to the same prompts, with embeddings ready."""
    from vllm import SamplingParams

    options, report = session.options, session.report
    every = session.inputs(options.prompt_tokens, options.prompts)
    lean = session.inputs(options.prompt_tokens, options.prompts, LEAN)
    for inputs in (every, lean):
        session.control(inputs)
    ready = [
        {
            "prompt_embeds": request.embeds,
            "prompt_token_ids": list(request.token_ids),
            "prompt_is_token_ids": [False] * len(request.token_ids),
        }
        for request in every.requests(session.factors(max(options.points)))
    ]
    sampling = SamplingParams(temperature=0, max_tokens=options.tokens, ignore_eos=True)

    def bare(requests: int) -> Values:
        began = time.perf_counter()
        session.llm.generate(ready[:requests], sampling, use_tqdm=False)
        return {"seconds": time.perf_counter() - began}

    bare(len(ready[: options.max_num_seqs]))
    result: Values = {}
    end, left = report.deadline, sum(options.points)
    for points in options.points:
        report.deadline = time.time() + (end - time.time()) * points / left
        left -= points
        kinds: dict[str, Callable[[], Values]] = {
            "bare": partial(bare, points * options.prompts),
            "sweep": partial(session.sweep, every, points),
        }
        if options.lean:
            kinds["sweep without nearest tokens"] = partial(session.sweep, lean, points)
        by_kind = report.interleave(kinds, options.repeats)
        against = [run["seconds"] for run in by_kind.pop("bare")]
        values: Values = {"requests": points * options.prompts, "bare seconds": spread(against)}
        for name, runs in by_kind.items():
            parts = {f"{key} / bare": ratios(_column(runs, key), against) for key in ("engine", "scored", "published")}
            values[name] = parts | _spent(runs)
        result[f"{points} points"] = values
        report.note("figure 1", result)
    report.deadline = end
    return result


def figure2(session: Session) -> Values:
    """Compare K distinct points with one point, for the same number of requests."""
    options = session.options
    kinds: dict[str, Callable[[], Values]] = {}
    for k in options.distinct:
        inputs = session.inputs(options.prompt_tokens, max(1, options.requests // k), LEAN)
        session.control(inputs)
        kinds[f"K={k}"] = partial(session.sweep, inputs, k)
    by_kind = session.report.interleave(kinds, options.repeats)
    first = next(iter(by_kind.values()))
    result: Values = {"requests": options.requests}
    for name, runs in by_kind.items():
        parts = {
            f"throughput, {key}": ratios(_speeds(runs, key), _speeds(first, key))
            for key in ("engine", "scored", "published")
        }
        tokens = round(statistics.median(_speeds(runs, "engine")) * options.tokens)
        result[name] = parts | {"tokens per second": tokens} | _spent(runs)
    return result


def figure3(session: Session) -> Values:
    """Compare prompt embeddings with token ids: embeddings built beforehand, and built on the fly."""
    options, engine, report = session.options, session.engine, session.report
    result: Values = {}
    for index, (length, number) in enumerate(zip(options.lengths, options.counts, strict=True)):
        end = report.deadline
        report.deadline = time.time() + (end - time.time()) / (len(options.lengths) - index)
        inputs = session.inputs(length, number)
        ids, began = inputs.by_ids(options.tokens), time.perf_counter()
        ready = list(inputs.requests(tokens=options.tokens))
        build = time.perf_counter() - began

        def seconds(requests: Callable[[], Any]) -> Values:
            return {"seconds": timed(engine, requests())[0]}

        kinds = {
            "ids": partial(seconds, partial(list, ids)),
            "ready": partial(seconds, partial(list, ready)),
            "helpers": partial(seconds, partial(session.built_ahead, inputs)),
        }
        kinds["ready"]()
        kinds["helpers"]()  # the first call sends the prompts to the workers
        seconds_of = {n: _column(runs, "seconds") for n, runs in report.interleave(kinds, options.repeats).items()}
        report.deadline = end
        result[f"{length} tokens"] = {
            "requests": number,
            "throughput, engine alone": ratios(seconds_of["ids"], seconds_of["ready"]),
            "throughput, with building": ratios(seconds_of["ids"], seconds_of["helpers"]),
            "ids seconds": spread(seconds_of["ids"]),
            "building alone seconds": round(build, 3),
        }
        report.note("figure 3", result)
    return result


def figure5(session: Session) -> Values:
    """Compare a sweep of LatentWire's shape with a sample of its requests, run one at a time."""
    options = session.options
    points, prompts, tokens = options.latent
    every = session.inputs(options.latent_tokens, prompts, answer=tokens)
    lean = session.inputs(options.latent_tokens, prompts, LEAN, answer=tokens)
    session.control(every)
    session.control(lean)
    sample = list(every.requests(session.factors(1)))[: options.singles]

    def one_by_one() -> Values:
        seconds = sum(timed(session.engine, [request])[0] for request in sample)
        return {"published": seconds / len(sample) * points * prompts}

    kinds = {
        "sweep": partial(session.sweep, every, points),
        "sweep without nearest tokens": partial(session.sweep, lean, points),
        "one by one, scaled up": one_by_one,
    }
    by_kind = session.report.interleave(kinds, options.repeats)
    result: Values = {"prompt tokens": options.latent_tokens, "points beside the control": points}
    for name, runs in by_kind.items():
        result[name] = {"seconds": spread(_column(runs, "published"))} | _spent(runs)
    singly = _column(by_kind["one by one, scaled up"], "published")
    for name in list(kinds)[:2]:
        result[f"one by one / {name}"] = ratios(singly, _column(by_kind[name], "published"))
    return result


def profile(session: Session) -> list[str]:
    """Return a profile of the main thread of a sweep."""
    options = session.options
    inputs = session.inputs(options.prompt_tokens, options.prompts)
    session.control(inputs)
    points = make_points(jobs_of(inputs.plain, session.factors(max(options.points))))
    profiler = cProfile.Profile()
    profiler.enable()
    session.runner.run(points)
    profiler.disable()
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(28)
    return [line.strip() for line in text.getvalue().splitlines() if line.strip()][1:]


def _column(runs: Sequence[Values], key: str) -> list[float]:
    return [run[key] for run in runs]


def _speeds(runs: Sequence[Values], key: str) -> list[float]:
    return [run["requests"] / run[key] for run in runs]


def _spent(runs: Sequence[Values]) -> Values:
    """Return the seconds of sweeps by activity; scoring and publishing run in parallel with the engine."""
    return {f"{key} seconds": spread(_column(runs, key)) for key in SPENT if key in runs[0]}


MEASURES: dict[str, tuple[Callable[[Session], Any], float]] = {  # with weights for sharing the time
    "parity": (parity, 1.0),
    "figure 1": (figure1, 3.0),
    "figure 2": (figure2, 3.0),
    "figure 3": (figure3, 2.0),
    "figure 5": (figure5, 3.0),
    "noise floor as a sweep reports it": (floor_of_a_sweep, 0.5),
    "NaN check": (nan_check, 1.0),
    "profile": (profile, 0.7),
}
