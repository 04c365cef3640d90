"""Sweeps in shards for tests: on an engine that waits at a known answer, and what they have left on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from mlflow import MlflowClient
from mlflow.entities import Run

SweepHere = Callable[..., str]

POINTS = 24
PROMPTS = 3
FACTORS = ",".join(f"{1 + i / 10:.1f}" for i in range(1, POINTS + 1))
SMOKE = ("engine=vllm", "transform.factor=1.5,2")  # each launcher is tried with the real engine once
SCRIPTED = ("plugins=[sweep.testing.scripted]", "engine=scripted")
DEFAULT_PROCESSES = ("sweep.helpers=2", "tracking.in_process=false")
GATE_ANSWERS = 2 * PROMPTS  # of the identity check, which every engine begins with
SECONDS = 120.0  # for whatever may take long on a busy machine


def arguments(tiny: Path, outputs: Path, *more: str) -> list[str]:
    """Return the overrides of a sweep of 24 points by the scripted engine, with whatever is given instead."""
    keys = {argument.partition("=")[0] for argument in more}
    given = ["transform=scale", f"transform.factor={FACTORS}", "prompts.items=[Hi,Ho,He]", "sampling.max_tokens=8"]
    given += [*SCRIPTED, f"model.id={tiny}", f"sweep.dir={outputs}"]
    return [*(argument for argument in given if argument.partition("=")[0] not in keys), *more]


class Gate:
    """A place where scripted engines wait: each when it has given so many answers to the sweep's requests.

    Attributes:
        overrides: of the sweep whose engines are to wait.
    """

    def __init__(self, folder: Path, after: int) -> None:
        self._folder = folder / "gate"
        self._folder.mkdir()
        self._file = self._folder / "waiting"
        answers = f"engine.pause_at={GATE_ANSWERS + after}"
        self.overrides = (f"engine.pause_file={self._file}", answers, "engine.window=1")

    def waiting(self) -> list[int]:
        """Return the processes that wait."""
        with suppress(FileNotFoundError):
            return [int(line) for line in self._file.read_text().splitlines()]
        return []

    def wait_for(self, count: int, process: subprocess.Popen[bytes] | None = None) -> list[int]:
        """Return the processes that wait, once there are so many; `process` is to live as long."""
        until(lambda: len(self.waiting()) == count, process)
        return self.waiting()

    def open(self) -> None:
        """Let all engines pass, those that come later too."""
        with suppress(FileNotFoundError):  # it is open
            self._folder.rename(self._folder.with_name("open gate"))


@contextmanager
def meanwhile(disturb: Callable[[], object], gate: Gate) -> Iterator[None]:
    """Disturb, on a thread, a sweep that this process runs in the block; the gate is open afterwards in any case."""

    def disturb_and_open() -> None:
        try:
            disturb()
        finally:
            gate.open()

    with ThreadPoolExecutor(1) as pool:
        disturbing = pool.submit(disturb_and_open)
        yield
        disturbing.result()


def start(folder: Path, *overrides: str, environment: Mapping[str, str] = os.environ) -> subprocess.Popen[bytes]:
    """Start a sweep in a process of its own, which logs to `head.log`."""
    with (folder / "head.log").open("ab") as log:
        command = [sys.executable, "-m", "sweep", *overrides]
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


def until(holds: Callable[[], bool], process: subprocess.Popen[bytes] | None = None, seconds: float = SECONDS) -> None:
    """Wait until something holds; a process is to live as long."""
    end = time.monotonic() + seconds
    while True:
        with suppress(FileNotFoundError):
            if holds():
                return
        assert process is None or process.poll() is None, "it ended too soon"
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def generations(outputs: Path) -> dict[str, list[tuple[str, list[int]]]]:
    """Return each point's answers by prompt, by the point's name."""
    found: dict[str, list[tuple[str, list[int]]]] = {}
    for path in (outputs / "sweeps").glob("*/points/*.parquet"):
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        assert rows, path
        found[rows[0]["name"]] = sorted((row["prompt_id"], row["token_ids"]) for row in rows)
    return found


def runs_of(uri: str) -> list[Run]:
    """Return all runs of a tracker."""
    client = MlflowClient(uri)
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=1000))


def own_runs(outputs: Path) -> tuple[Run, list[Run]]:
    """Return the sweep's own run and those of its points, the control among them, of a sweep on its own store."""
    runs = runs_of(f"sqlite:///{outputs / 'mlflow.db'}")
    [parent] = [run for run in runs if run.data.tags["sweep.role"] == "sweep"]
    return parent, [run for run in runs if run is not parent]


def statuses_of(outputs: Path) -> Counter[str]:
    """Return how many points have ended how, the control among them, of a sweep on its own store."""
    return Counter(run.info.status for run in own_runs(outputs)[1])


def expect_complete(outputs: Path, uri: str | None = None) -> None:
    """All 24 points and the control are there once, finished, as children of one finished run, no answer twice."""
    runs = runs_of(uri or f"sqlite:///{outputs / 'mlflow.db'}")
    assert Counter(run.data.tags["sweep.role"] for run in runs) == {"point": POINTS, "control": 1, "sweep": 1}
    assert {run.info.status for run in runs} == {"FINISHED"}
    [parent] = [run.info.run_id for run in runs if run.data.tags["sweep.role"] == "sweep"]
    assert {run.data.tags.get("mlflow.parentRunId", parent) for run in runs} == {parent}
    assert len({run.data.tags["sweep.result"] for run in runs if "sweep.result" in run.data.tags}) == POINTS + 1
    expect_nothing_twice(outputs)


def expect_nothing_twice(outputs: Path) -> None:
    """No answer was generated more than once."""
    assert set(journaled(outputs).values()) == {1}


def journaled(outputs: Path) -> Counter[tuple[str, str, str]]:
    """Return how often each answer was generated, by fingerprint, kind and prompt."""
    found: Counter[tuple[str, str, str]] = Counter()
    for path in (outputs / "journal").glob("*/*/*.jsonl"):
        for line in path.read_bytes().split(b"\n")[1:]:
            with suppress(ValueError):  # a line that is not finished was never flushed
                entry = json.loads(line[line.index(b"{") :])
                found[path.parent.name, entry["kind"], entry["prompt"]] += 1
    return found


def begin_shard(plan: Path, index: int, folder: Path) -> subprocess.Popen[bytes]:
    """Start `python -m sweep.shard`."""
    command = [sys.executable, "-m", "sweep.shard", str(plan), str(index)]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)


def planning(plan: Path, shards: int) -> tuple[str, ...]:
    """Return the overrides that only write a plan."""
    return "hydra/launcher=plan", f"hydra.launcher.folder={plan}", f"hydra.launcher.shards={shards}"
