"""What scoring a sweep costs: 1,000 points x 256 prompts x about 64 tokens, in one process.

    .venv/bin/python scripts/bench_scoring.py                      # the measures of conf/scoring/default.yaml
    .venv/bin/python scripts/bench_scoring.py --quality all        # all measures of quality, chrF and BLEU among them
    .venv/bin/python scripts/bench_scoring.py --equal 0            # no answer is the control's, no result is shared

Each point goes through `conclusion.conclude`, as in a sweep, and all together through `comparison.compare`;
only the making of the answers is not timed, nor the writing to disk and MLflow.  Answers are sentences of the demo
prompts' references: a share is the control's, the rest leaves it at some token and goes on with other sentences, or in
a loop, or is empty.  Every other prompt's reference is as long as an answer.  The clocks themselves take about a
second of the whole.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hydra import compose, initialize_config_dir

from sweep import conclusion, parsing
from sweep.building import build_pipeline
from sweep.config import SweepConfig
from sweep.costs import Costs
from sweep.engines.base import Completion
from sweep.identity import Identity
from sweep.inputs import prompts
from sweep.inputs.checkpoint import find
from sweep.inputs.corpus import Corpus
from sweep.inputs.embedding import open_table
from sweep.inputs.encoding import encode
from sweep.outcome import Against, Answers, Finished, PointResult
from sweep.paths import conf_dir
from sweep.point import UNTRANSFORMED, Point
from sweep.report import comparison
from sweep.request import Measured, build
from sweep.scoring import divergence, measures
from sweep.scoring.scorers import QUALITY, select

LOOPS, EMPTY = 0.1, 0.01  # of the answers that are not the control's
PARTS = {
    "health": [(measures, "_health")],
    "divergence": [(divergence, "compare")],
    "intervals": [(conclusion, "summarise_scores")],
    "nearest tokens": [(conclusion, "nearest_token_flips")],
    "rows and YAML": [(conclusion, "_rows"), (conclusion, "as_yaml")],
    "comparison: differences": [(comparison, "paired_difference"), (comparison, "p_values")],
    "comparison: responses": [(comparison, "dose_response")],
}


class Clocks:
    """Seconds by part; what is wrapped is counted under its part while it is used."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.processor = 0.0  # seconds of the processor, all parts together

    def whole(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same and is timed, whose seconds of the processor are counted too."""
        timed = self.wrap(part, function)

        def timed_twice(*given: Any) -> Any:
            began = time.process_time()
            found = timed(*given)
            self.processor += time.process_time() - began
            return found

        return timed_twice

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same and is timed."""

        def timed(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                self.seconds[part] += time.perf_counter() - began

        return timed

    def select(self, names: Sequence[str]) -> dict[str, Any]:
        """Do what `scorers.select` does, each scorer being timed."""
        return {name: replace(own, function=self.wrap(name, own.function)) for name, own in select(names).items()}


def make_corpus(base: SweepConfig, count: int, tokens: int) -> Corpus:
    """Return the demo's prompts, in turn with their own references and with references of as many tokens as answers."""
    checkpoint = find(base.model)
    own = prompts.load(base.prompts)
    sentences = [sentence for prompt in own for sentence in prompt.references]
    draw = random.Random(1)
    chosen = []
    for i in range(count):
        prompt = own[i % len(own)]
        long = " ".join(draw.choices(sentences, k=max(tokens // 10, 1)))
        chosen.append(replace(prompt, id=f"p{i}", references=(long,) if i % 2 else prompt.references))
    return Corpus(encode(chosen, checkpoint), open_table(checkpoint), checkpoint)


class Writer:
    """Makes answers of about so many tokens; no two that are not meant to be are equal, but by chance."""

    def __init__(self, corpus: Corpus, tokens: int) -> None:
        self._draw, self._tokens = random.Random(2), tokens
        references = [encoded.prompt.references[0] for encoded in corpus.prompts]
        self._numbers: dict[str, int] = {}
        self._begun = [self._read(reference) for reference in references]
        self._stream = self._read(" ".join(self._draw.sample(references, len(references))))
        self._pieces = list(self._numbers)

    def control(self) -> Answers:
        """Return the control's answers, every other one of which begins with the reference."""
        written = []
        for i, reference in enumerate(self._begun):
            start = reference[: self._tokens // 2] if i % 4 < 2 else ()
            written.append((self._answer(start + self._sentences(self._length() - len(start))),))
        return written

    def point(self, control: Answers, equal: float) -> Answers:
        """Return a point's answers, a share of them the control's."""
        return [own if self._draw.random() < equal else (self._other(own[0]),) for own in control]

    def _other(self, control: Completion) -> Completion:
        if self._draw.random() < EMPTY:
            return self._answer(())
        kept = control.token_ids[: self._draw.randrange(len(control.token_ids))]
        rest = self._length() - len(kept)
        if self._draw.random() < LOOPS:
            unit = self._sentences(self._draw.randrange(1, 9))
            return self._answer(kept + (unit * self._tokens * 2)[: max(rest, self._tokens // 2)])
        return self._answer(kept + self._sentences(rest))

    def _read(self, text: str) -> tuple[int, ...]:
        """Return a text's words and marks by number: some four characters each, like a large vocabulary's tokens."""
        return tuple(self._numbers.setdefault(piece, len(self._numbers)) for piece in re.findall(r"\s?\w+|\W", text))

    def _length(self) -> int:
        return self._draw.randrange(self._tokens * 3 // 4, self._tokens * 5 // 4 + 1)

    def _sentences(self, length: int) -> tuple[int, ...]:
        start = self._draw.randrange(len(self._stream))
        return (self._stream[start:] + self._stream)[: max(length, 1)]

    def _answer(self, token_ids: tuple[int, ...]) -> Completion:
        text = "".join([self._pieces[i] for i in token_ids]).strip()
        return Completion(text, token_ids, "length" if len(token_ids) > self._tokens else "stop")


def finished(index: int, point: Point, measured: list[Measured], answers: Answers, against: Against) -> Finished:
    """Return a point whose last answer has just come."""
    return Finished(
        index=index,
        point=point,
        identity=Identity((), f"{index:064x}", f"{index:064x}"),
        against=against,
        answers=answers,
        measured=measured,
        forced={},
        costs=Costs(),
        shared={},
        tags={},
        started=time.time(),
        ended=time.time(),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--equal", type=float, default=0.35, help="share of answers that are the control's")
    parser.add_argument("--quality", nargs="*", help="measures of quality, or all; left out: the default ones")
    arguments = parser.parse_args()
    parsing.register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        base = parsing.parse(compose("config", overrides=["prompts=demo_heldout"]))
    quality = list(QUALITY) if arguments.quality == ["all"] else arguments.quality or base.scoring.quality
    base = replace(base, scoring=replace(base.scoring, quality=quality))

    corpus = make_corpus(base, arguments.prompts, arguments.tokens)
    points = [Point(replace(base, transform=UNTRANSFORMED), is_control=True)]
    for i in range(1, arguments.points):
        factor = 1 + i / arguments.points
        own = replace(base, transform=build_pipeline({"name": "scale", "factor": factor}))
        points.append(Point(own, (("transform.factor", factor),)))
    measured = [build(None, points[-1].config, encoded, corpus).measure() for encoded in corpus.prompts]
    writer = Writer(corpus, arguments.tokens)
    control = writer.control()
    second_run = writer.point(control, 0.95)

    clocks, seen = Clocks(), set[tuple[str, int]]()
    conclude, compare = clocks.whole("points", conclusion.conclude), clocks.whole("comparison", comparison.compare)
    results: list[PointResult] = []
    tokens = characters = 0
    with ExitStack() as undo:
        undo.enter_context(patch.object(conclusion, "select", clocks.select))
        for part, places in PARTS.items():
            for owner, name in places:
                undo.enter_context(patch.object(owner, name, clocks.wrap(part, getattr(owner, name))))
        for index, point in enumerate(points):
            answers = control if point.is_control else writer.point(control, arguments.equal)
            against = Against(second_run if point.is_control else control)
            outcome = conclude(finished(index, point, measured, answers, against), corpus)
            results.append(PointResult(index, point, outcome.record.summaries, outcome.values))
            seen |= {(own.text, i) for i, [own] in enumerate(answers)}
            tokens += sum(len(own.token_ids) for [own] in answers)
            characters += sum(len(own.text) for [own] in answers)
        compared = compare(results, base.scoring.confidence)
    count = arguments.points * arguments.prompts
    print(f"{machine()}; one process")
    print(f"{arguments.points} points x {arguments.prompts} prompts = {count} answers", end=", ")
    print(f"of {tokens / count:.0f} tokens and {characters / count:.0f} characters;", end=" ")
    print(f"{1 - len(seen) / count:.0%} of them repeat an answer to the same prompt")
    print(f"{len(compared.differences)} points compared, {len(compared.responses)} responses\n")
    report(clocks.seconds, count)
    print(f"\n{clocks.processor:.1f} s of the processor")


def report(seconds: Counter[str], count: int) -> None:
    """Print the seconds by part as a table."""
    total = seconds["points"] + seconds["comparison"]
    of_points = {name: took for name, took in seconds.items() if not name.startswith(("points", "comparison"))}
    of_points["the rest of a point"] = seconds["points"] - sum(of_points.values())
    of_all = {name: took for name, took in seconds.items() if name.startswith("comparison: ")}
    of_all["the rest of the comparison"] = seconds["comparison"] - sum(of_all.values())
    print("| part | seconds | µs per answer |\n|---|---|---|")
    for name, took in {**of_points, **of_all, "**total**": total}.items():
        print(f"| {name} | {took:.1f} | {took / count * 1e6:.1f} |")


def machine() -> str:
    """Return the processor, how many cores may be used, and the versions that matter."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
