"""Common parts of `bench_gpu.py`: prompts of exact lengths, a runner with an open engine, and the report."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from bench_gpu_model import write_prompts
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sweep.app import sweep_runner
from sweep.config import loader
from sweep.config.overrides import Override
from sweep.config.schema import SweepConfig
from sweep.console.terminal import Terminal
from sweep.core.timing import SharedCosts
from sweep.engines.base import Engine, Generation, Request, Sampling
from sweep.errors import ConfigError, EngineError
from sweep.execution import group_executor
from sweep.execution.prefetch import AHEAD, AHEAD_ENTRIES, chunks
from sweep.inputs import prompts as prompt_files
from sweep.inputs.checkpoint import find
from sweep.inputs.embedding_loader import open_table
from sweep.inputs.prompt_set import PromptSet
from sweep.inputs.tokenization import encode
from sweep.launch.backend import ShardBackend
from sweep.planning.request_builder import build
from sweep.points.point import make_points
from sweep.util.paths import conf_dir

Values = dict[str, Any]
Answers = dict[Any, tuple[int, ...]]
Jobs = list[tuple[list[Override], SweepConfig]]
RUNNERS = count(1)  # numbers of the sweeps of this process
STEP = 0.004  # difference of factors that makes points distinct, also in bf16


@dataclass
class Report:
    """Results so far, written to a file after each addition, and the deadline (seconds since 1970)."""

    file: Path
    deadline: float
    results: Values = field(default_factory=dict)

    def note(self, key: str, value: Any) -> None:
        """Add a result, write the file, and print the result."""
        self.results[key] = value
        self.file.write_text(json.dumps(self.results, indent=1))
        print(f"## {key}: {json.dumps(value)[:600]}", flush=True)

    def run(self, key: str, measure: Callable[[], Any], share: float = 1.0) -> None:
        """Run a measurement with a share of the remaining time, and add its result or its error."""
        began, end = time.time(), self.deadline
        if began > end:
            return self.note(key, {"skipped": "no time left"})
        self.deadline = began + share * (end - began)
        try:
            value = measure()
        except Exception as error:  # the other measurements still run
            traceback.print_exc()
            value = {"failed": f"{type(error).__name__}: {error}"[:600]}
        self.deadline = end
        self.note(key, value)
        self.note(f"{key} took", round(time.time() - began, 1))

    def interleave(self, kinds: Mapping[str, Callable[[], Values]], repeats: int) -> dict[str, list[Values]]:
        """Measure each kind once per repeat, in alternating order, until the deadline."""
        by_kind: dict[str, list[Values]] = {name: [] for name in kinds}
        longest = 0.0
        for repeat in range(repeats):
            began = time.time()
            if repeat and began + longest > self.deadline:
                break
            for name in list(kinds)[:: -1 if repeat % 2 else 1]:
                by_kind[name].append(kinds[name]())
            longest = max(longest, time.time() - began)
        return by_kind


def spread(values: Sequence[float]) -> list[float]:
    """Return median, least and largest."""
    return [round(f(values), 4) for f in (statistics.median, min, max)]


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return median, least and largest of the ratios of neighbouring measurements."""
    return spread([x / y for x, y in zip(above, below, strict=True)])


def model_folder(options: argparse.Namespace) -> Path:
    """Return the folder of the checkpoint."""
    return Path(options.work) / f"model-{options.shape}"


def plain_config(options: argparse.Namespace, prompts: Path, tokens: int, *extra: str) -> Values:
    """Return a composed configuration of a scaled point, as plain values."""
    overrides = [
        "transform=scale",
        f"model.id={model_folder(options)}",
        "model.dtype=auto",  # the demo model's configuration says float32
        f"prompts.path={prompts}",
        f"sampling.max_tokens={tokens}",
        "sampling.ignore_eos=true",
        f"engine.max_model_len={options.max_model_len}",
        f"engine.max_num_seqs={options.max_num_seqs}",
        f"engine.gpu_memory_utilization={options.gpu_memory_utilization}",
        f"engine.tensor_parallel_size={options.tensor_parallel}",
        f"engine.enforce_eager={'true' if options.eager else 'null'}",
        f"engine.batch_invariant={str(options.batch_invariant).lower()}",
        f"engine.in_process={options.in_process}",
        "scoring.noise_floor=false",  # so that sweeps answer the same requests as the reference
        f"sweep.dir={Path(options.work) / f'sweeps-{options.shape}'}",
        *extra,
    ]
    loader.register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = loader.without_hydra(compose("config", overrides=overrides))
    plain: Any = OmegaConf.to_container(composed, resolve=True)
    return plain


def jobs_of(plain: Values, factors: Sequence[float]) -> Jobs:
    """Return the jobs that a launcher would get for these factors, without Hydra's 0.1 s for each."""
    parser, jobs = loader.Parser(), []
    for factor in factors:
        values = plain | {"transform": plain["transform"] | {"factor": factor}}
        jobs.append(([Override.read(f"transform.factor={factor!r}")], parser.parse(values)))
    return jobs


class Inputs:
    """Prompts of one length, encoded for the model, and their requests."""

    def __init__(self, options: argparse.Namespace, tokens: int, number: int, *extra: str, answer: int = 0) -> None:
        folder = Path(options.work) / "prompts"
        folder.mkdir(parents=True, exist_ok=True)
        self.plain = plain_config(options, write_prompts(folder, tokens, number), answer or options.tokens, *extra)
        [(_, self.config)] = jobs_of(self.plain, [1.0])
        checkpoint = find(self.config.model)
        encoded = encode(prompt_files.load(self.config.prompts), checkpoint)
        lengths = {len(prompt.token_ids) for prompt in encoded}
        assert lengths == {tokens}, f"prompts of {lengths} tokens, not {tokens}"
        self.corpus = PromptSet(encoded, open_table(checkpoint), checkpoint)

    def requests(self, factors: Sequence[float] = (1.0,), tokens: int | None = None) -> Iterator[Request]:
        """Yield the requests of all prompts at the given factors, built on demand in the calling thread."""
        for i, (_, config) in enumerate(jobs_of(self.plain, factors)):
            for j, encoded in enumerate(self.corpus.prompts):
                request = build((i, j), config, encoded, self.corpus).request
                yield request if tokens is None else replace(request, sampling=greedy(tokens))

    def by_ids(self, tokens: int) -> list[Request]:
        """Return the prompts' requests as token ids."""
        prompts = enumerate(self.corpus.prompts)
        return [Request((0, j), encoded.token_ids, None, greedy(tokens)) for j, encoded in prompts]


def greedy(tokens: int) -> Sampling:
    """Return greedy sampling of exactly `tokens` tokens."""
    return Sampling(max_tokens=tokens, ignore_eos=True)


def timed(engine: Engine, requests: Iterator[Request] | Sequence[Request]) -> tuple[float, Answers]:
    """Answer requests, and return the seconds and each answer's tokens by key."""
    answers: Answers = {}
    began = time.perf_counter()
    for answer in engine.generate(requests):
        if not isinstance(answer, Generation):
            raise RuntimeError(f"{answer.key}: {answer.reason}")
        answers[answer.key] = answer.completions[0].token_ids
    return time.perf_counter() - began, answers


def alike(left: Answers, right: Answers) -> Values:
    """Return the number of equal answers and the lengths of common prefixes."""
    prefixes = []
    for key, tokens in left.items():
        pairs = enumerate(zip(tokens, right[key], strict=True))
        prefixes.append(next((i for i, (a, b) in pairs if a != b), len(tokens)))
    equal = sum(tokens == right[key] for key, tokens in left.items())
    return {"equal": f"{equal} of {len(left)}", "common beginning": spread(prefixes)}


class Session:
    """Runner with an open engine, or with a backend of several, on which any number of sweeps are measured."""

    def __init__(self, options: argparse.Namespace, report: Report, backend: ShardBackend | None = None) -> None:
        self.options, self.report, self._backend = options, report, backend
        self._steps = count(1)
        self._planning = 0.0
        self._make_plan = sweep_runner.make_plan
        sweep_runner.make_plan = self._timed_plan
        try:
            self._open()
        except EngineError as error:
            if options.eager:
                raise
            report.note("compilation", f"FAILED, continuing without it: {error}"[:600])
            options.eager = True
            self._open()

    def _open(self) -> None:
        """Run points of a few prompts, which opens engine and store and triggers late compilation."""
        began = time.time()
        warm_up = self.inputs(self.options.prompt_tokens, 8)
        # A numbered id counts as restarted, so that the sweep does not reuse answers of other sweeps.
        name = f"gpu-{os.getpid()}.{next(RUNNERS)}"
        self.runner = sweep_runner.SweepRunner(warm_up.config, name, "bench_gpu", Terminal(), self._backend)
        try:
            self.runner.run(make_points(jobs_of(warm_up.plain, self.factors(2))))
        except ConfigError as error:
            if "identity check" not in str(error):
                raise
            self.report.note("identity check", f"FAILED, and disabled from here on: {error}")
            group_executor.check_identity = lambda *_: None
            self.runner.run(make_points(jobs_of(warm_up.plain, self.factors(2))))
        if self._backend is not None:
            return
        self.report.note("engine", f"{self.engine.version}, {self.llm.model_config.dtype}")
        self.report.note("engine start seconds", round(self.costs.engine_start_seconds, 2))
        self.report.note("to the first points' scores seconds", round(time.time() - began, 2))
        self.report.note("GPU memory GiB", self.engine.memory_gib())

    @property
    def engine(self) -> Any:
        """The runner's supervised engine."""
        return self.runner.engine

    @property
    def llm(self) -> Any:
        """The `vllm.LLM` of the engine."""
        return self.engine._engine.llm

    @property
    def costs(self) -> SharedCosts:
        """Costs that the runner records."""
        return self.runner._costs

    def close(self) -> None:
        """Close the engines, without the report that closing the runner would write."""
        self.runner._executor.close()
        if self._backend is not None:
            self._backend.close()

    def inputs(self, tokens: int, number: int, *extra: str, answer: int = 0) -> Inputs:
        """Return prompts for the open engine."""
        return Inputs(self.options, tokens, number, *extra, answer=answer)

    def factors(self, number: int) -> list[float]:
        """Return factors that no earlier sweep has used."""
        return [round(1 + STEP * next(self._steps), 6) for _ in range(number)]

    def built_ahead(self, inputs: Inputs) -> Iterator[Request]:
        """Yield the requests of all prompts, built ahead by worker processes as in a sweep."""
        [(_, config)] = jobs_of(inputs.plain, self.factors(1))
        corpus, width = inputs.corpus, inputs.corpus.table.hidden_size
        pool, max_model_len = self.runner._pool, self.options.max_model_len
        ahead: deque[Any] = deque()
        length = len(corpus.prompts[0].token_ids)
        for chunk in chunks(range(len(corpus.prompts)), corpus.prompts, width):
            ahead.append(pool.build(corpus, config, chunk, frozenset(), max_model_len))
            if len(ahead) * len(chunk) > min(AHEAD, AHEAD_ENTRIES // (length * width)):
                yield from (built.request for built in ahead.popleft().result())
        for building in ahead:
            yield from (built.request for built in building.result())

    def control(self, inputs: Inputs) -> None:
        """Answer and publish the control, so that later sweeps answer their own requests only."""
        self.runner.run(make_points([([Override.read("transform=identity")], jobs_of(inputs.plain, [1.0])[0][1])]))
        self._publish()

    def sweep(self, inputs: Inputs, points: int) -> Values:
        """Run distinct points; return the seconds until all were scored and published, and the seconds by activity."""
        jobs = jobs_of(inputs.plain, self.factors(points))
        before, self._planning = self._spent_seconds(), 0.0
        began = time.perf_counter()
        self.runner.run(make_points(jobs))
        scored = time.perf_counter() - began
        self._publish()
        published = time.perf_counter() - began
        if failed := [result.error for result in self.runner.results.values() if result.error is not None]:
            raise RuntimeError(f"{len(failed)} points failed: {failed[0]}")
        spent = {name: round(value - before[name], 3) for name, value in self._spent_seconds().items()}
        requests = points * len(inputs.corpus.prompts)
        times = {"scored": scored, "published": published, "requests": requests, "plan": round(self._planning, 3)}
        return times | spent

    def _spent_seconds(self) -> Values:
        costs = self.costs
        return {
            "engine": costs.generate_seconds,
            "score": costs.score_seconds,
            "publish": costs.publish_seconds,
            "build": costs.points.build_seconds,
        }

    def _publish(self) -> None:
        assert self.runner.publisher is not None
        self.runner.publisher.start()._worker.drain()

    def _timed_plan(self, *arguments: Any) -> Any:
        began = time.perf_counter()
        plan = self._make_plan(*arguments)
        self._planning += time.perf_counter() - began
        return plan
