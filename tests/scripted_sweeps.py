"""Sweeps in processes of their own, whose scripted engine can be made to wait at a known answer."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from mlflow import MlflowClient

SCRIPTED = ("plugins=[sweep.testing.scripted]", "engine=scripted")
SECONDS = 120.0  # until something that does not happen fails a test


@dataclass(frozen=True)
class Sweeps:
    """Processes that run one command, one after the other: two prompts, `scale` by 1.1, 1.2, …

    The control, the first point, the control's second run and the other points have two answers each, in this order.

    Args:
        model: folder of the model.
        folder: working directory, with `sweep.dir`; what the processes print is in `output`.
        hold_at: number of answers after which an engine waits, without those of the identity check; an engine that is
            asked for less does not. None: no engine waits.
        points: number of points besides the control.
    """

    model: Path
    folder: Path
    hold_at: int | None = None
    points: int = 4

    CHECK: ClassVar[int] = 4  # answers of the identity check, which sends each prompt twice

    @property
    def root(self) -> Path:
        """The folder `sweep.dir`."""
        return self.folder / "outputs"

    @property
    def output(self) -> str:
        """All that the processes have printed."""
        return (self.folder / "output.txt").read_text()

    @property
    def pause(self) -> Path:
        """A file that exists while the engine waits; without it, the engine goes on."""
        return self.folder / "pause"

    def arguments(self, engine: Sequence[str] = SCRIPTED) -> list[str]:
        """Return the command's arguments."""
        factors = ",".join(f"{1 + i / 10:g}" for i in range(1, self.points + 1))
        arguments = [*engine, "transform=scale", f"transform.factor={factors}", f"model.id={self.model}"]
        arguments += [f"sweep.dir={self.root}", "prompts.items=[Hi,Ho]", "sampling.max_tokens=4"]
        arguments += ["sampling.ignore_eos=true"]
        if self.hold_at is not None:
            arguments += [f"engine.pause_at={self.CHECK + self.hold_at}", f"engine.pause_file={self.pause}"]
        return arguments

    def start(self, *more: str, engine: Sequence[str] = SCRIPTED) -> subprocess.Popen[bytes]:
        """Start the command with two pool processes and the tracker's, and arguments that make no other sweep of it."""
        with (self.folder / "output.txt").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "sweep", *self.arguments(engine), "sweep.helpers=2", *more],
                stdout=output,
                stderr=output,
                cwd=self.folder,
                start_new_session=True,
                preexec_fn=heed_signals,
            )

    def start_held(self, *more: str) -> subprocess.Popen[bytes]:
        """Start the command, and wait until its engine waits."""
        self.pause.unlink(missing_ok=True)
        process = self.start(*more)
        self.wait_for(self.pause.exists, process)
        return process

    def wait_for(self, happened: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
        """Wait for something that a running sweep does."""
        until = time.monotonic() + SECONDS
        while process.poll() is None and time.monotonic() < until:
            if happened():
                return
            time.sleep(0.05)
        pytest.fail(self.output)

    def wait_for_published(self, count: int, process: subprocess.Popen[bytes]) -> None:
        """Wait until a number of points, controls among them, is published and noted down."""
        self.wait_for(lambda: self.published() == count, process)

    def published(self) -> int:
        """Return how many points have been noted down as published."""
        return sum(file.read_bytes().count(b"\n") for file in self.root.glob("sweeps/*/published.jsonl"))

    def journaled(self) -> Counter[tuple[str, str, str]]:
        """Count what the journal has of each request: fingerprint, kind and prompt; a torn last line does not count."""
        found: Counter[tuple[str, str, str]] = Counter()
        for file in (self.root / "journal").glob("*/*/*.jsonl"):
            for line in file.read_bytes().split(b"\n")[:-1]:
                record = json.loads(line.partition(b" ")[2])
                if "kind" in record:
                    found[file.parent.name, record["kind"], record["prompt"]] += 1
        return found

    def statuses(self) -> Counter[tuple[str, str]]:
        """Count MLflow's runs by role and status."""
        runs = MlflowClient(f"sqlite:///{self.root / 'mlflow.db'}").search_runs(["1"], max_results=1000)
        return Counter((run.data.tags["sweep.role"], run.info.status) for run in runs)


def finished(points: int, sweep: str = "FINISHED") -> Counter[tuple[str, str]]:
    """Return the statuses of a sweep that has published its control and a number of points.

    Args:
        sweep: the status of the sweep's own run.
    """
    return Counter({("sweep", sweep): 1, ("control", "FINISHED"): 1, ("point", "FINISHED"): points})


def heed_signals() -> None:
    """Undo what a shell and `nohup` do to background processes, such as these tests."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
