"""What `bench_gpu.py` measures: one function for each stage, each in a process of its own.

Everything goes through this project's own engine, generator and runner.  What is compared alternates within one run, on
one open engine; ratios are of neighbours, and medians and ranges are given.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import os
import platform
import pstats
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import count
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from bench_gpu_model import SHAPES, make_model, write_prompts
from sweep import generator, parsing, runner
from sweep.config import SweepConfig
from sweep.costs import SharedCosts
from sweep.engines.base import Engine, Generation, Request, Sampling
from sweep.errors import ConfigError, EngineError
from sweep.inputs import prompts as prompt_files
from sweep.inputs.checkpoint import find
from sweep.inputs.corpus import Corpus
from sweep.inputs.embedding import open_table
from sweep.inputs.encoding import encode
from sweep.paths import conf_dir
from sweep.point import make_points
from sweep.request import build
from sweep.terminal import Terminal

Values = dict[str, Any]
Jobs = list[tuple[list[str], SweepConfig]]
GREEDY_GAP = 0.0005  # between the factors of points that are to be distinct


@dataclass
class Report:
    """What was found so far, written to a file with each addition, and until when to go on."""

    file: Path
    deadline: float
    found: Values = field(default_factory=dict)

    def note(self, key: str, value: Any) -> None:
        """Add a finding and show it."""
        self.found[key] = value
        self.file.write_text(json.dumps(self.found, indent=1))
        print(f"## {key}: {json.dumps(value)[:400]}", flush=True)

    def run(self, key: str, measure: Callable[[Report], Any]) -> None:
        """Note what a measurement returns, or of what it failed."""
        if time.time() > self.deadline:
            return self.note(key, {"skipped": "no time left"})
        began = time.time()
        try:
            value = measure(self)
        except Exception as error:  # the others are wanted none the less
            import traceback

            traceback.print_exc()
            value = {"failed": f"{type(error).__name__}: {error}"[:600]}
        self.note(key, value)
        self.note(f"{key}_took", round(time.time() - began, 1))

    def repeats(self, most: int) -> Iterator[int]:
        """Yield the numbers of repeats, at least one, as long as another one as long as the longest has time."""
        longest = 0.0
        for number in range(most):
            began = time.time()
            if number and began + longest > self.deadline:
                return
            yield number
            longest = max(longest, time.time() - began)


def spread(values: Sequence[float]) -> list[float]:
    """Return median, least and largest."""
    return [round(f(values), 4) for f in (statistics.median, min, max)] if values else []


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return median, least and largest of neighbours' ratios."""
    return spread([x / y for x, y in zip(above, below, strict=True)])


# ---- models, prompts, configurations


def stage_model(options: argparse.Namespace, report: Report) -> None:
    """Make the checkpoint."""
    began = time.time()
    parameters = make_model(SHAPES[options.shape], model_folder(options))
    report.note("parameters", parameters)
    report.note("seconds", round(time.time() - began, 1))


def model_folder(options: argparse.Namespace) -> Path:
    """Return where the checkpoint lies."""
    return Path(options.work) / f"model-{options.shape}"


def plain_config(options: argparse.Namespace, prompts: Path, tokens: int, *more: str) -> Values:
    """Return a composed configuration of a scaled point, as plain values."""
    overrides = [
        "transform=scale",
        f"model.id={model_folder(options)}",
        f"prompts.path={prompts}",
        f"sampling.max_tokens={tokens}",
        "sampling.ignore_eos=true",
        f"engine.max_model_len={options.max_model_len}",
        f"engine.max_num_seqs={options.max_num_seqs}",
        f"engine.gpu_memory_utilization={options.gpu_memory_utilization}",
        "scoring.noise_floor=false",  # sweeps answer the same requests as what they are compared with
        f"sweep.dir={Path(options.work) / f'sweeps-{options.shape}'}",
        *more,
    ]
    parsing.register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = parsing.without_hydra(compose("config", overrides=overrides))
    plain: Any = OmegaConf.to_container(composed, resolve=True)
    return plain


def jobs_of(plain: Values, factors: Sequence[float]) -> Jobs:
    """Return what a launcher is handed for these factors, without Hydra's 0.1 s for each."""
    parser, jobs = parsing.Parser(), []
    for factor in factors:
        own = plain | {"transform": plain["transform"] | {"factor": factor}}
        jobs.append(([f"transform.factor={factor!r}"], parser.parse(own)))
    return jobs


class Inputs:
    """Prompts of one length, encoded for the model."""

    def __init__(self, options: argparse.Namespace, tokens: int, number: int, *more: str, answer: int = 0) -> None:
        folder = Path(options.work) / "prompts"
        folder.mkdir(parents=True, exist_ok=True)
        file = write_prompts(folder, tokens, number)
        self.plain = plain_config(options, file, answer or options.tokens, *more)
        [(_, self.config)] = jobs_of(self.plain, [1.0])
        checkpoint = find(self.config.model)
        encoded = encode(prompt_files.load(self.config.prompts), checkpoint)
        lengths = {len(each.token_ids) for each in encoded}
        assert lengths == {tokens}, f"prompts of {lengths} tokens, not {tokens}"
        self.corpus = Corpus(encoded, open_table(checkpoint), checkpoint)

    def requests(self, factors: Sequence[float] = (1.0,), tokens: int | None = None) -> Iterator[Request]:
        """Yield the requests of all prompts at some factors, built as they are drawn, as a sweep does."""
        for i, (_, config) in enumerate(jobs_of(self.plain, factors)):
            for j, encoded in enumerate(self.corpus.prompts):
                request = build((i, j), config, encoded, self.corpus).request
                yield request if tokens is None else replace(request, sampling=self._greedy(tokens))

    def by_ids(self, tokens: int) -> list[Request]:
        """Return the prompts' requests as token ids."""
        prompts = enumerate(self.corpus.prompts)
        return [Request((0, j), encoded.token_ids, None, self._greedy(tokens)) for j, encoded in prompts]

    def _greedy(self, tokens: int) -> Sampling:
        return Sampling(max_tokens=tokens, ignore_eos=True)


# ---- an open engine


def timed(engine: Engine, requests: Iterator[Request] | Sequence[Request]) -> tuple[float, dict[Any, tuple[int, ...]]]:
    """Return seconds, and each answer's tokens by key."""
    answers: dict[Any, tuple[int, ...]] = {}
    began = time.perf_counter()
    for answer in engine.generate(requests):
        if not isinstance(answer, Generation):
            raise RuntimeError(f"{answer.key}: {answer.reason}")
        answers[answer.key] = answer.completions[0].token_ids
    return time.perf_counter() - began, answers


def alike(left: dict[Any, tuple[int, ...]], right: dict[Any, tuple[int, ...]]) -> Values:
    """Return how many answers are equal, and how long their common beginnings are."""
    prefixes = []
    for key, tokens in left.items():
        pairs = enumerate(zip(tokens, right[key], strict=True))
        prefixes.append(next((i for i, (a, b) in pairs if a != b), len(tokens)))
    equal = sum(tokens == right[key] for key, tokens in left.items())
    return {"equal": equal, "of": len(left), "tokens": len(next(iter(left.values()))), "prefix": spread(prefixes)}


@dataclass
class Stopwatch:
    """Seconds that a function of the project's took, however often it was called."""

    seconds: float = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, timed."""

        def call(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - began

        return call


class Session:
    """A runner with an open engine, on which any number of sweeps are measured."""

    def __init__(self, options: argparse.Namespace, report: Report) -> None:
        self.options = options
        self._numbers = count(1)
        self._planning = Stopwatch()
        runner.make_plan = self._planning.around(runner.make_plan)  # type: ignore[assignment]
        self.more: tuple[str, ...] = ("engine.enforce_eager=true",) if options.eager else ()
        if options.batch_invariant:
            self.more += ("engine.batch_invariant=true",)
        try:
            self._open(report)
        except EngineError as error:
            if options.eager:
                raise
            report.note("compiled", f"failed, going on without compilation: {error}"[:600])
            self.more += ("engine.enforce_eager=true",)
            self._open(report)

    def _open(self, report: Report) -> None:
        """Run a point of a few prompts, which opens engine and store, and has vLLM compile what it compiles late."""
        began = time.time()
        warm_up = Inputs(self.options, self.options.prompt_tokens, 8, *self.more)
        self.runner = runner.Runner(warm_up.config, f"gpu-{os.getpid()}-{next(self._numbers)}", "bench_gpu", Terminal())
        try:
            self.runner.run(make_points(jobs_of(warm_up.plain, self.factors(2))))
        except ConfigError as error:
            if "identity gate" not in str(error):
                raise
            report.note("identity_gate", f"FAILED, and switched off for the rest: {error}")
            generator.identity_gate = lambda *_: None
            self.runner.run(make_points(jobs_of(warm_up.plain, self.factors(2))))
        report.note("engine", self.engine.version)
        report.note("engine_start_seconds", round(self.costs.engine_start_seconds, 2))
        report.note("to_first_points_seconds", round(time.time() - began, 2))
        report.note("gpu_memory_gib", self.engine.memory_gib())

    @property
    def engine(self) -> Engine:
        """The engine, as the runner has it: supervised."""
        assert self.runner.engine is not None
        return self.runner.engine

    @property
    def costs(self) -> SharedCosts:
        """The runner's own account."""
        return self.runner._costs

    def inputs(self, tokens: int, number: int, *more: str, answer: int = 0) -> Inputs:
        """Return prompts for the open engine."""
        return Inputs(self.options, tokens, number, *self.more, *more, answer=answer)

    def factors(self, number: int) -> list[float]:
        """Return factors that no sweep has had before."""
        return [round(1 + GREEDY_GAP * next(self._numbers), 6) for _ in range(number)]

    def control(self, inputs: Inputs) -> None:
        """Have the control answered and published, so that sweeps after it answer no more than their own requests."""
        self.runner.run(make_points([(["transform.factor=1.0"], jobs_of(inputs.plain, [1.0])[0][1])]))
        self._publish()

    def sweep(self, inputs: Inputs, points: int) -> Values:
        """Run distinct points and return the seconds until their answers, scores and runs were there, and of what."""
        factors = self.factors(points)
        before = {each.name: getattr(self.costs, each.name) for each in fields(SharedCosts)}
        built = self.costs.points.build_seconds
        self._planning.seconds = 0.0
        began = time.perf_counter()
        self.runner.run(make_points(jobs_of(inputs.plain, factors)))
        scored = time.perf_counter() - began
        self._publish()
        published = time.perf_counter() - began
        failed = sum(result.error is not None for result in self.runner.results.values())
        if failed:
            raise RuntimeError(f"{failed} points failed")
        spent = {
            name: round(getattr(self.costs, f"{name}_seconds") - before[f"{name}_seconds"], 3)
            for name in ("generate", "score", "publish")
        }
        return {
            "scored": scored,
            "published": published,
            "engine": spent["generate"],
            "requests": points * len(inputs.corpus.prompts),
            "plan": round(self._planning.seconds, 3),
            "score": spent["score"],
            "publish": spent["publish"],
            "build": round(self.costs.points.build_seconds - built, 3),
        }

    def _publish(self) -> None:
        assert self.runner.publisher is not None
        self.runner.publisher.start().close()


# ---- stages


def stage_about(options: argparse.Namespace, report: Report) -> None:
    """Say what machine this is."""
    import torch
    import transformers
    import vllm

    gpu = torch.cuda.is_available()
    report.note("gpu", torch.cuda.get_device_name(0) if gpu else None)
    if gpu:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.sm", "--format=csv,noheader"]
        report.note("nvidia_smi", subprocess.run(query, capture_output=True, text=True).stdout.strip())
    report.note("cpus", len(os.sched_getaffinity(0)))
    report.note("python", platform.python_version())
    report.note("versions", {module.__name__: module.__version__ for module in (torch, transformers, vllm)})


def stage_start(options: argparse.Namespace, report: Report) -> None:
    """Measure what it takes to open an engine and have a first token, from the process's first line."""
    engine = plain_config(options, write_prompts(Path(options.work), 32, 1), 1, f"engine.in_process={options.in_process}")
    [(_, config)] = jobs_of(engine, [1.0])
    own: Any = replace(config.engine, enforce_eager=bool(options.eager))  # type: ignore[call-arg]
    report.note("own_imports_seconds", round(time.time() - options.began, 2))
    began = time.time()
    import vllm

    report.note("vllm_import_seconds", round(time.time() - began, 2))
    began = time.time()
    opened = own.open(find(config.model).files, options.max_model_len, Path(options.cache))
    report.note("open_seconds", round(time.time() - began, 2))
    timed(opened, [Request("first", (1, 3, 50, 2, 4), None, Sampling(max_tokens=1))])
    report.note("process_to_first_token_seconds", round(time.time() - options.began, 2))
    report.note("gpu_memory_gib", opened.memory_gib())
    report.note("vllm", vllm.__version__)
    began = time.time()
    opened.close()
    report.note("close_seconds", round(time.time() - began, 2))


def stage_figures(options: argparse.Namespace, report: Report) -> None:
    """Open one engine and measure all figures on it."""
    session = Session(options, report)
    measures = {
        "parity": parity,
        "figure1": figure1,
        "figure2": figure2,
        "figure3": figure3,
        "figure5": figure5,
        "floor_of_a_sweep": floor_of_a_sweep,
        "profile": profile,
    }
    names = ("parity",) if options.batch_invariant else options.only or tuple(measures)
    for name in names:
        report.run(name, lambda report, name=name: measures[name](session, report))  # type: ignore[misc]
    report.note("gpu_memory_gib_at_end", session.engine.memory_gib())
    session.runner._generator.close()  # the reports of all these sweeps at once are not what is measured


def parity(session: Session, report: Report) -> Values:
    """Compare greedy answers to token ids, to their embeddings, and to both again in other company."""
    options = session.options
    inputs = session.inputs(options.prompt_tokens, options.prompts)
    tokens, engine = options.parity_tokens, session.engine
    ids, rows = inputs.by_ids(tokens), list(inputs.requests(tokens=tokens))
    few = range(min(options.singles, len(ids)))
    one_ids = {ids[i].key: timed(engine, [ids[i]])[1][ids[i].key] for i in few}
    one_rows = {rows[i].key: timed(engine, [rows[i]])[1][rows[i].key] for i in few}
    _, by_ids = timed(engine, ids)
    seconds, by_rows = timed(engine, rows)
    _, again = timed(engine, rows)
    _, shuffled = timed(engine, rows[::-1])
    others = inputs.requests([1.5], tokens)
    company = [request for pair in zip(rows, (replace(o, key=(1, o.key)) for o in others), strict=True) for request in pair]
    _, mixed = timed(engine, company)
    other = {row.key: mixed[row.key] for row in rows}
    return {
        "one_by_one: ids, embeddings": alike(one_ids, one_rows),
        "one_by_one and in the batch: embeddings": alike(one_rows, {key: by_rows[key] for key in one_rows}),
        "batch: ids, embeddings": alike(by_ids, by_rows),
        "batch: embeddings, again": alike(by_rows, again),
        "batch: embeddings, in reverse": alike(by_rows, shuffled),
        "noise floor: control alone, among another point": alike(by_rows, other),
        "distinct answers": len(set(by_rows.values())),
        "tokens_per_second": round(len(rows) * tokens / seconds),
    }


def floor_of_a_sweep(session: Session, report: Report) -> Values:
    """Return what the project itself says of its control's second run."""
    options = session.options
    inputs = session.inputs(options.prompt_tokens, options.prompts, "scoring.noise_floor=true", "sampling.seed=1")
    session.runner.run(make_points(jobs_of(inputs.plain, session.factors(3))))
    [control] = [r for r in session.runner.results.values() if r.point.is_control and r.point.config == replace(
        r.point.config, sampling=inputs.config.sampling)][-1:]
    return {name: round(own.mean, 4) for name, own in control.summaries.items() if name.startswith("divergence/")}


def figure1(session: Session, report: Report) -> Values:
    """Compare sweeps with a bare `LLM.generate` of as many requests with the same prompts, their embeddings ready."""
    from vllm import SamplingParams

    options = session.options
    engine: Any = session.engine
    every = session.inputs(options.prompt_tokens, options.prompts)
    lean = session.inputs(options.prompt_tokens, options.prompts, "scoring.nearest_rows=0")
    session.control(every)
    session.control(lean)
    ready = [
        {
            "prompt_embeds": request.embeds,
            "prompt_token_ids": list(request.token_ids),
            "prompt_is_token_ids": [False] * len(request.token_ids),
        }
        for request in every.requests(session.factors(options.points))
    ]
    sampling = SamplingParams(temperature=0, max_tokens=options.tokens, ignore_eos=True)

    def bare() -> Values:
        began = time.perf_counter()
        engine._engine.llm.generate(list(ready), sampling, use_tqdm=False)
        return {"published": time.perf_counter() - began}

    kinds: dict[str, Callable[[], Values]] = {
        "bare": bare,
        "sweep": lambda: session.sweep(every, options.points),
        "sweep_without_nearest_tokens": lambda: session.sweep(lean, options.points),
    }
    bare()
    found = interleave(report, kinds, options.repeats)
    against = [each["published"] for each in found["bare"]]
    result: Values = {"requests": len(ready), "seconds_bare": spread(against)}
    for name in list(kinds)[1:]:
        runs = found[name]
        result[name] = {
            **{f"{key}/bare": ratios([run[key] for run in runs], against) for key in ("engine", "scored", "published")},
            "runs": runs,
        }
    return result


def interleave(report: Report, kinds: dict[str, Callable[[], Values]], repeats: int) -> dict[str, list[Values]]:
    """Measure each kind once in every repeat, in an order that turns round."""
    found: dict[str, list[Values]] = {name: [] for name in kinds}
    for repeat in report.repeats(repeats):
        for name in list(kinds)[:: -1 if repeat % 2 else 1]:
            found[name].append(kinds[name]())
    return found


def figure2(session: Session, report: Report) -> Values:
    """Compare K distinct points with one, at the same number of requests."""
    options = session.options
    kinds: dict[str, Callable[[], Values]] = {}
    for k in options.distinct:
        inputs = session.inputs(
            options.prompt_tokens, max(1, options.requests // k), "scoring.nearest_rows=0"
        )
        session.control(inputs)
        kinds[str(k)] = lambda inputs=inputs, k=k: session.sweep(inputs, k)  # type: ignore[misc]
    found = interleave(report, kinds, options.repeats)
    first = found[str(options.distinct[0])]
    result: Values = {"requests": options.requests}
    for name, runs in found.items():
        speeds = {key: [run["requests"] / run[key] for run in runs] for key in ("engine", "scored", "published")}
        base = {key: [run["requests"] / run[key] for run in first] for key in speeds}
        result[f"K={name}"] = {
            **{f"throughput_{key}": ratios(speeds[key], base[key]) for key in speeds},
            "tokens_per_second": round(statistics.median(speeds["engine"]) * options.tokens),
            "runs": runs,
        }
    return result


def figure3(session: Session, report: Report) -> Values:
    """Compare embeddings with token ids as prompts: built as they are drawn, and built before."""
    options, engine = session.options, session.engine
    result: Values = {}
    for length, number in zip(options.lengths, options.counts, strict=True):
        inputs = session.inputs(length, number)
        ids, ready = inputs.by_ids(options.tokens), list(inputs.requests(tokens=options.tokens))
        kinds: dict[str, Callable[[], Values]] = {
            "ids": lambda ids=ids: {"s": timed(engine, ids)[0]},  # type: ignore[misc]
            "ready": lambda ready=ready: {"s": timed(engine, ready)[0]},  # type: ignore[misc]
            "built": lambda inputs=inputs: {"s": timed(engine, inputs.requests(tokens=options.tokens))[0]},  # type: ignore[misc]
        }
        timed(engine, ready)
        found = {name: [run["s"] for run in runs] for name, runs in interleave(report, kinds, options.repeats).items()}
        result[str(length)] = {
            "requests": number,
            "throughput_engine_alone": ratios(found["ids"], found["ready"]),
            "throughput_with_building": ratios(found["ids"], found["built"]),
            "seconds_ids": spread(found["ids"]),
        }
        report.note("figure3_so_far", result)
    return result


def figure5(session: Session, report: Report) -> Values:
    """Run a sweep of LatentWire's shape, and a sample of its requests one at a time."""
    options = session.options
    points, prompts, tokens = options.latent
    every = session.inputs(options.latent_tokens, prompts, answer=tokens)
    lean = session.inputs(options.latent_tokens, prompts, "scoring.nearest_rows=0", answer=tokens)
    session.control(every)
    sample = list(every.requests(session.factors(1)))[: options.singles]

    def singly() -> Values:
        seconds = sum(timed(session.engine, [request])[0] for request in sample)
        return {"published": seconds / len(sample) * points * prompts}

    kinds: dict[str, Callable[[], Values]] = {
        "sweep": lambda: session.sweep(every, points - 1),  # the control is the 35th
        "sweep_without_nearest_tokens": lambda: session.sweep(lean, points - 1),
        "one_at_a_time_scaled": singly,
    }
    found = interleave(report, kinds, options.repeats)
    result: Values = {"prompt_tokens": options.latent_tokens, "points": points - 1}
    for name, runs in found.items():
        result[name] = {"seconds": spread([run["published"] for run in runs]), "runs": runs}
    result["times_faster"] = ratios(
        [run["published"] for run in found["one_at_a_time_scaled"]], [run["published"] for run in found["sweep"]]
    )
    return result


def profile(session: Session, report: Report) -> list[str]:
    """Return where the main thread of a sweep spends its time."""
    options = session.options
    inputs = session.inputs(options.prompt_tokens, options.prompts)
    session.control(inputs)
    profiler = cProfile.Profile()
    points = make_points(jobs_of(inputs.plain, session.factors(options.points)))
    profiler.enable()
    session.runner.run(points)
    profiler.disable()
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(28)
    return [line.strip() for line in text.getvalue().splitlines() if line.strip()][1:]


STAGES: dict[str, Callable[[argparse.Namespace, Report], None]] = {
    "about": stage_about,
    "model": stage_model,
    "start": stage_start,
    "figures": stage_figures,
}
