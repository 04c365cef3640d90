"""Shards on this machine: several processes, an engine each, which take one shard after the other."""

from __future__ import annotations

import json
import logging
import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from sweep import signals
from sweep.checks import require
from sweep.engines import lifeline
from sweep.shards.crew import ATTEMPTS, Crew, left_undone
from sweep.shards.manifest import Manifest

log = logging.getLogger(__name__)

SHARDS_PER_WORKER = 4  # so that the slowest does not decide
PERIOD = 0.5  # seconds
PATIENCE = 3.0  # seconds that workers have to end in

SERVE = "import sys, os; from sweep.shard import serve; serve(sys.stdin, os.fdopen({fd}, 'w'), {log!r})"


class LocalCrew(Crew):
    """Worker processes, each with its own devices.  They, and their engines, stay from plan to plan.

    Args:
        workers: how many.
        shards: how many shards a plan is cut into; None: some for each worker.
        gpus: for each worker; None: all GPUs are divided among them, if there are any.
    """

    def __init__(self, workers: int, shards: int | None = None, gpus: int | None = None) -> None:
        super().__init__(shards)
        self._workers: list[_Process | None] = [None] * workers
        self._devices = _devices(workers, gpus)

    def suggest(self, tokens: int) -> int:
        """Return some for each worker: what one does not get to, another one takes."""
        return SHARDS_PER_WORKER * len(self._workers)

    def work(self, manifest: Manifest, watch: Callable[[], None]) -> Mapping[int, str]:
        """As of `Crew`.  A shard whose worker dies is given to a new one, some times."""
        waiting = list(range(manifest.shards))
        attempts = dict.fromkeys(waiting, 0)
        busy: dict[int, int] = {}
        reasons: dict[int, str] = {}
        answers: queue.Queue[Answer] = queue.Queue()
        while waiting or busy:
            for number in range(len(self._workers)):
                if waiting and number not in busy:
                    index = waiting.pop(0)
                    busy[number] = index
                    attempts[index] += 1
                    self._worker(number, manifest, answers).ask(manifest, index)
            try:
                process, answer = answers.get(timeout=PERIOD)
            except queue.Empty:
                signals.check()
                watch()
                continue
            if process not in self._workers:  # told twice, or of one that was replaced
                continue
            number = self._workers.index(process)
            shard = busy.pop(number, None)
            if answer is None:  # it has died
                self._workers[number] = None
                code = process.end(time.monotonic() + PATIENCE)
                if shard is not None:
                    reasons[shard] = f"the process that worked on it ended with {code}"
                    log.warning("Shard %d: %s.", shard, reasons[shard])
                    if attempts[shard] < ATTEMPTS:
                        waiting.insert(0, shard)
            elif shard is not None and answer[1]:
                reasons[shard] = str(answer[2])
            watch()
        return left_undone(manifest, reasons)

    def close(self) -> None:
        """End the workers."""
        living = [process for process in self._workers if process is not None]
        for process in living:
            process.ask_to_end()
        until = time.monotonic() + PATIENCE
        for process in living:
            process.end(until)
        self._workers = [None] * len(self._workers)

    def _worker(self, number: int, manifest: Manifest, answers: queue.Queue[Answer]) -> _Process:
        process = self._workers[number]
        if process is None or process.ended.is_set():
            process = self._workers[number] = _Process(manifest.folder / f"worker-{number}", self._devices[number])
        process.listen(answers)
        return process


class _Process:
    """A worker process, which the kernel ends when this one does."""

    def __init__(self, named: Path, devices: Mapping[str, str]) -> None:
        read, write = os.pipe()
        command = lifeline.command(
            SERVE.format(fd=write, log=str(named.with_suffix(".log"))), named.with_suffix(".died")
        )
        cores = devices.get("cores")
        if cores:
            command[-1] = f"import os; os.sched_setaffinity(0, {{{cores}}}); " + command[-1]
        environment = os.environ | {key: value for key, value in devices.items() if key != "cores"}
        with named.with_suffix(".log").open("ab") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=file, stderr=file, pass_fds=[write], env=environment, text=True
            )
        os.close(write)
        self._answers = os.fdopen(read)
        self._told: queue.Queue[Answer] = queue.Queue()
        self.ended = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def listen(self, told: queue.Queue[Answer]) -> None:
        """Have answers put into a queue from now on; None: there will be no more."""
        self._told = told
        if self.ended.is_set():  # it has died in between, and said so to an earlier one
            told.put((self, None))

    def ask(self, manifest: Manifest, index: int) -> None:
        """Give it a shard."""
        assert self._process.stdin is not None
        with suppress(OSError):  # it is dead, as its end of the answers says
            self._process.stdin.write(json.dumps([str(manifest.path), index]) + "\n")
            self._process.stdin.flush()

    def ask_to_end(self) -> None:
        """Interrupt it."""
        self._process.terminate()

    def end(self, until: float) -> int:
        """Wait for its end up to a moment of `time.monotonic`, then end it; return its exit code."""
        try:
            return self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _read(self) -> None:
        with suppress(ValueError):  # the half of an answer that a process which dies has written
            for line in self._answers:
                self._told.put((self, json.loads(line)))
        self.ended.set()
        self._told.put((self, None))


Answer = tuple[_Process, list[object] | None]


def _devices(workers: int, gpus: int | None) -> list[dict[str, str]]:
    """Return what each worker's environment has of GPUs, and its share of the cores."""
    cores = _core_shares(workers)
    visible = _gpus()
    if not visible:
        return cores
    each = gpus or max(1, len(visible) // workers)
    enough = workers * each <= len(visible)
    rule = f"and gpus ask for {workers * each} GPUs, and there are {len(visible)}"
    require(enough, "hydra.launcher.workers", rule, None)
    shares = [visible[i * each : (i + 1) * each] for i in range(workers)]
    return [own | {"CUDA_VISIBLE_DEVICES": ",".join(share)} for own, share in zip(cores, shares, strict=True)]


def _core_shares(workers: int) -> list[dict[str, str]]:
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if workers == 1 or len(cores) < workers:
        return [{} for _ in range(workers)]
    each = len(cores) // workers
    return [{"cores": ",".join(map(str, cores[i * each : (i + 1) * each]))} for i in range(workers)]


def _gpus() -> list[str]:
    """Return the names of the GPUs that may be used, without starting CUDA in this process."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name.strip()]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(i) for i, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]
