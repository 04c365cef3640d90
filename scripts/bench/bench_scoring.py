"""Cost of scoring a sweep: 1,000 points x 256 prompts x about 64 tokens, in one process.

    .venv/bin/python scripts/bench/bench_scoring.py                # the measures of conf/scoring/default.yaml
    .venv/bin/python scripts/bench/bench_scoring.py --quality all  # all quality measures, including chrF and BLEU
    .venv/bin/python scripts/bench/bench_scoring.py --equal 0      # no answer equals the control's, no result is shared

Each point is scored by `score_point.score_point`, as in a sweep, and all points are compared by `comparison.compare`.
The making of the answers is not timed, nor is writing to disk and MLflow.

Answers are made of sentences of the demo prompts' references. A share of them equal the control's. The others diverge
from it at some token and continue with other sentences or a loop, or they are empty. Every other prompt has a reference
as long as an answer. The timers take about one second of the total.
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

from sweep.config import loader
from sweep.config.dataclass_reader import build_pipeline
from sweep.config.schema import SweepConfig
from sweep.core.timing import Costs
from sweep.engines.base import Completion
from sweep.inputs import prompts
from sweep.inputs.checkpoint import find
from sweep.inputs.embedding_loader import open_table
from sweep.inputs.prompt_set import PromptSet
from sweep.inputs.tokenization import encode
from sweep.planning.request_builder import Measured, build
from sweep.planning.results import Answers, ControlAnswers, Finished, PointResult
from sweep.points.fingerprint import PointFingerprint
from sweep.points.point import UNTRANSFORMED, Point
from sweep.report import comparison, paired_differences
from sweep.scoring import divergence, health
from sweep.scoring.scorers import registered_scorers, select
from sweep.util.paths import conf_dir
from sweep.workers import score_point

LOOPS, EMPTY = 0.1, 0.01  # shares of the answers that differ from the control's
PARTS = {
    "health": [(health, "_cached")],
    "divergence": [(divergence, "compare")],
    "intervals": [(score_point, "summarise_scores")],
    "nearest tokens": [(score_point, "nearest_token_flips")],
    "rows and YAML": [(score_point, "_rows"), (score_point, "as_yaml")],
    "comparison: differences": [(paired_differences, name) for name in ("paired_difference", "p_values")],
    "comparison: detectable effects": [(paired_differences, "detectable_effects")],
    "comparison: responses": [(comparison, "dose_response")],
    "comparison: turning responses": [(comparison, "find_turnings"), (comparison, "find_front")],
}


class Clocks:
    """Timers of parts of the scoring: wrapped functions add their seconds to their part."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.cpu = 0.0  # seconds of CPU time of all parts

    def whole(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function wrapped in a timer that also counts CPU time."""
        timed = self.wrap(part, function)

        def timed_twice(*arguments: Any) -> Any:
            began = time.process_time()
            result = timed(*arguments)
            self.cpu += time.process_time() - began
            return result

        return timed_twice

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function wrapped in a timer."""

        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds[part] += time.perf_counter() - began

        return timed

    def select(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the scorers of `scorers.select`, each wrapped in a timer."""
        scorers = select(names)
        return {name: replace(scorer, function=self.wrap(name, scorer.function)) for name, scorer in scorers.items()}


def make_corpus(base: SweepConfig, count: int, tokens: int) -> PromptSet:
    """Return the demo's prompts, alternately with their own references and with references as long as answers."""
    checkpoint = find(base.model)
    demo_prompts = prompts.load(base.prompts)
    sentences = [sentence for prompt in demo_prompts for sentence in prompt.references]
    draw = random.Random(1)
    chosen = []
    for i in range(count):
        prompt = demo_prompts[i % len(demo_prompts)]
        long = " ".join(draw.choices(sentences, k=max(tokens // 10, 1)))
        chosen.append(replace(prompt, id=f"p{i}", references=(long,) if i % 2 else prompt.references))
    return PromptSet(encode(chosen, checkpoint), open_table(checkpoint), checkpoint)


class Writer:
    """Writer of random answers of about `tokens` tokens; answers are equal only on purpose or by chance."""

    def __init__(self, corpus: PromptSet, tokens: int) -> None:
        self._draw, self._tokens = random.Random(2), tokens
        references = [encoded.prompt.references[0] for encoded in corpus.prompts]
        self._numbers: dict[str, int] = {}
        self._references = [self._read(reference) for reference in references]
        self._stream = self._read(" ".join(self._draw.sample(references, len(references))))
        self._pieces = list(self._numbers)

    def control(self) -> Answers:
        """Return the control's answers; every other one begins with the reference."""
        written = []
        for i, reference in enumerate(self._references):
            start = reference[: self._tokens // 2] if i % 4 < 2 else ()
            written.append((self._answer(start + self._sentences(self._length() - len(start))),))
        return written

    def point(self, control: Answers, equal: float) -> Answers:
        """Return a point's answers; a share `equal` of them equals the control's."""
        return [same if self._draw.random() < equal else (self._other(same[0]),) for same in control]

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
        """Return a text's words and marks as token ids: about four characters each, as in a large vocabulary."""
        return tuple(self._numbers.setdefault(piece, len(self._numbers)) for piece in re.findall(r"\s?\w+|\W", text))

    def _length(self) -> int:
        return self._draw.randrange(self._tokens * 3 // 4, self._tokens * 5 // 4 + 1)

    def _sentences(self, length: int) -> tuple[int, ...]:
        start = self._draw.randrange(len(self._stream))
        return (self._stream[start:] + self._stream)[: max(length, 1)]

    def _answer(self, token_ids: tuple[int, ...]) -> Completion:
        text = "".join([self._pieces[i] for i in token_ids]).strip()
        return Completion(text, token_ids, "length" if len(token_ids) > self._tokens else "stop")


def finished(index: int, point: Point, measured: list[Measured], answers: Answers, control: ControlAnswers) -> Finished:
    """Return a point with all answers."""
    return Finished(
        index=index,
        point=point,
        point_fingerprint=PointFingerprint((), f"{index:064x}", f"{index:064x}"),
        control=control,
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
    """Measure and print the seconds by part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--equal", type=float, default=0.35, help="share of answers that equal the control's")
    parser.add_argument(
        "--quality", nargs="*", help="quality measures, or all; default: those of conf/scoring/default.yaml"
    )
    arguments = parser.parse_args()
    loader.register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        base = loader.parse(compose("config", overrides=["prompts=demo_heldout"]))
    quality = list(registered_scorers()) if arguments.quality == ["all"] else arguments.quality or base.scoring.quality
    base = replace(base, scoring=replace(base.scoring, quality=quality))

    corpus = make_corpus(base, arguments.prompts, arguments.tokens)
    points = [Point(replace(base, transform=UNTRANSFORMED), is_control=True)]
    for i in range(1, arguments.points):
        factor = 1 + i / arguments.points
        config = replace(base, transform=build_pipeline({"name": "scale", "factor": factor}))
        points.append(Point(config, (("transform.factor", factor),)))
    measured = [build(None, points[-1].config, encoded, corpus).measure() for encoded in corpus.prompts]
    writer = Writer(corpus, arguments.tokens)
    control = writer.control()
    second_run = writer.point(control, 0.95)

    clocks, seen = Clocks(), set[tuple[str, int]]()
    score, compare = (
        clocks.whole("points", score_point.score_point),
        clocks.whole("comparison", comparison.compare),
    )
    results: list[PointResult] = []
    tokens = characters = 0
    with ExitStack() as undo:
        undo.enter_context(patch.object(score_point, "select", clocks.select))
        for part, places in PARTS.items():
            for owner, name in places:
                undo.enter_context(patch.object(owner, name, clocks.wrap(part, getattr(owner, name))))
        for index, point in enumerate(points):
            answers = control if point.is_control else writer.point(control, arguments.equal)
            control_answers = ControlAnswers(second_run if point.is_control else control)
            outcome = score(finished(index, point, measured, answers, control_answers), corpus)
            results.append(PointResult(index, point, outcome.record.summaries, outcome.values))
            seen |= {(answer.text, i) for i, [answer] in enumerate(answers)}
            tokens += sum(len(answer.token_ids) for [answer] in answers)
            characters += sum(len(answer.text) for [answer] in answers)
        compared = compare(results, base.scoring.confidence)
    count = arguments.points * arguments.prompts
    print(f"{machine()}; one process")
    print(f"{arguments.points} points x {arguments.prompts} prompts = {count} answers", end=", ")
    print(f"of {tokens / count:.0f} tokens and {characters / count:.0f} characters;", end=" ")
    print(f"{1 - len(seen) / count:.0%} of them repeat an answer to the same prompt")
    responses = sum(len(series.responses) for series in compared.series)
    print(f"{len(compared.differences)} points compared, {responses} responses\n")
    report(clocks.seconds, count)
    print(f"\n{clocks.cpu:.1f} s of CPU time")


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
    """Return the processor, the number of usable cores, and the Python version."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
