"""Cost of a sweep beyond vLLM itself, as ratios within one run on one machine.

    .venv/bin/python scripts/bench/bench_overhead.py                # P=32 points, N=64 prompts, 32 tokens each

(a) a bare `LLM.generate` of all P·N requests with their embeddings ready;
(b) this project's loop, from composed configurations to the last point published in MLflow;
(c) a loop over a script: a fresh process and engine for each point, one point at a time.

Engine start and the report at the end of a sweep are not part of (a) and (b). (a) and (b) alternate; medians and ranges
are printed. (c) is measured on a few points and multiplied. Finally, the peak memory of processes that sweep increasing
numbers of points is measured.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from sweep.app.sweep_runner import SweepRunner
from sweep.config import loader
from sweep.config.overrides import Override
from sweep.config.schema import SweepConfig
from sweep.console.terminal import Terminal
from sweep.inputs import prompts
from sweep.inputs.checkpoint import find
from sweep.inputs.embedding_loader import open_table
from sweep.inputs.prompt_set import PromptSet
from sweep.inputs.tokenization import encode
from sweep.planning.request_builder import build
from sweep.points.point import make_points
from sweep.util.paths import conf_dir

MAX_MODEL_LEN = 128
Jobs = list[tuple[list[Override], SweepConfig]]


def compose_jobs(points: int, arguments: argparse.Namespace, folder: str, *extra: str) -> Jobs:
    """Return the jobs that Hydra would pass to the launcher: the control, and one for each further factor."""
    shared = [
        "prompts=demo_heldout",
        f"prompts.limit={arguments.prompts}",
        f"sampling.max_tokens={arguments.tokens}",
        "sampling.ignore_eos=true",
        f"engine.max_model_len={MAX_MODEL_LEN}",
        "scoring.noise_floor=false",  # (a) and (b) answer the same requests
        f"sweep.dir={folder}",
        *extra,
    ]
    factors = [f"transform.factor={1 + 0.01 * i:.2f}" for i in range(1, points)]
    overrides = [["transform=identity"], *(["transform=scale", factor] for factor in factors)]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        configs = [loader.parse(compose("config", overrides=[*shared, *job])) for job in overrides]
    return [(list(map(Override.read, job)), config) for job, config in zip(overrides, configs, strict=True)]


def bare(llm: Any, requests: Sequence[dict[str, Any]], arguments: argparse.Namespace) -> float:
    """Return the seconds of one `LLM.generate` call over all requests."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=arguments.tokens, ignore_eos=True)
    started = time.monotonic()
    llm.generate(list(requests), sampling, use_tqdm=False)
    return time.monotonic() - started


def ready_requests(jobs: Jobs) -> list[dict[str, Any]]:
    """Return vLLM prompts of all jobs, with their embeddings built."""
    ready = []
    for point in make_points(jobs):
        checkpoint = find(point.config.model)
        encoded_prompts = encode(prompts.load(point.config.prompts), checkpoint)
        corpus = PromptSet(encoded_prompts, open_table(checkpoint), checkpoint)
        for encoded in encoded_prompts:
            request = build(None, point.config, encoded, corpus).request
            mask = [False] * len(request.token_ids)
            ready.append(
                {
                    "prompt_embeds": request.embeds,
                    "prompt_token_ids": list(request.token_ids),
                    "prompt_is_token_ids": mask,
                }
            )
    return ready


def one_point(arguments: argparse.Namespace) -> None:
    """Run the script of (c): open an engine and generate one point's answers."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = compose_jobs(1, arguments, folder)
        [point] = make_points(jobs)
        engine: Any = point.config.engine.open(find(point.config.model).files, MAX_MODEL_LEN, Path(folder))
        bare(engine.llm, ready_requests(jobs), arguments)


def memory(points: int, arguments: argparse.Namespace) -> None:
    """Sweep a number of points and print the peak memory of this process in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = compose_jobs(points, arguments, folder)
        with SweepRunner(make_points(jobs)[0].config, "memory", "bench", Terminal()) as runner:
            runner.run(make_points(jobs))
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def main() -> None:
    """Measure (a), (b), (c) and memory, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scripts", type=int, default=2, help="points of (c) to measure")
    parser.add_argument("--memory-points", type=int, nargs="*", default=[8, 32, 128])
    parser.add_argument("--be", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    loader.register()
    if arguments.be == "one-point":
        return one_point(arguments)
    if arguments.be:
        return memory(int(arguments.be), arguments)

    times: dict[str, list[float]] = {"a": [], "b": []}
    for repeat in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as folder:
            warm_up = compose_jobs(1, arguments, folder, "prompts.limit=1", "sampling.max_tokens=1")
            jobs = compose_jobs(arguments.points, arguments, folder)
            requests = ready_requests(jobs)
            with SweepRunner(make_points(jobs)[0].config, f"bench-{repeat}", "bench", Terminal()) as runner:
                runner.run(make_points(warm_up))  # opens engine and store
                engine: Any = runner.engine._engine  # the engine inside the supervisor

                def sweep(runner: SweepRunner = runner, jobs: Jobs = jobs) -> float:
                    started = time.monotonic()
                    runner.run(make_points(jobs))
                    runner.publisher.start().close()
                    return time.monotonic() - started

                if repeat % 2:  # alternate, because the second one has warmer caches
                    times["b"].append(sweep())
                times["a"].append(bare(engine.llm, requests, arguments))
                if not repeat % 2:
                    times["b"].append(sweep())
    scripts = [timed_process("--be=one-point", arguments)[0] for _ in range(arguments.scripts)]
    peaks = {points: timed_process(f"--be={points}", arguments)[1] for points in arguments.memory_points}
    report(times, scripts, peaks, arguments)


def timed_process(role: str, arguments: argparse.Namespace) -> tuple[float, str]:
    """Run this script in another role and return its seconds and the last line that it printed."""
    sizes = [f"--prompts={arguments.prompts}", f"--tokens={arguments.tokens}"]
    started = time.monotonic()
    done = subprocess.run([sys.executable, __file__, role, *sizes], stdout=subprocess.PIPE, text=True, check=True)
    return time.monotonic() - started, (done.stdout.strip().splitlines() or [""])[-1]


def report(
    times: dict[str, list[float]], scripts: list[float], peaks: dict[int, str], arguments: argparse.Namespace
) -> None:
    """Print the figures and their ratios."""

    def line(name: str, seconds: list[float], label: str) -> float:
        median = statistics.median(seconds)
        print(f"({name}) {median:7.1f} s  [{min(seconds):.1f}, {max(seconds):.1f}]  {label}")
        return median

    count = arguments.points * arguments.prompts
    print(f"{arguments.points} points x {arguments.prompts} prompts x {arguments.tokens} tokens = {count} requests")
    a = line("a", times["a"], "one bare LLM.generate, embeddings ready")
    b = line("b", times["b"], "the sweep, from configurations to the last published point")
    c = line("c", [arguments.points * s for s in scripts], "one process and engine for each point")
    pairs = [y / x for x, y in zip(times["a"], times["b"], strict=True)]
    print(
        f"b/a {statistics.median(pairs):.3f} [{min(pairs):.3f}, {max(pairs):.3f}]   c/b {c / b:.1f}   c/a {c / a:.1f}"
    )
    for points, peak in peaks.items():
        print(f"peak memory with {points:4d} points: {float(peak):.0f} MiB")


if __name__ == "__main__":
    main()
