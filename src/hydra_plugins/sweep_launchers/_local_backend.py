"""Local backend: worker processes on this machine with an engine each run one shard after the other."""

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

from sweep.console import signals
from sweep.launch.backend import ATTEMPTS, ShardBackend, unfinished_shards
from sweep.launch.manifest import Manifest
from sweep.launch.shard_state import read_state
from sweep.processes import parent_death
from sweep.processes.cpu import core_share
from sweep.util.validators import require

log = logging.getLogger(__name__)

SHARDS_PER_WORKER = 4  # balances the load
AHEAD = 1  # shards that wait at a worker whose engine is open, so that the next one starts without delay
PERIOD = 0.5  # seconds
PATIENCE = 3.0  # seconds for a worker to end

SERVE = "import sys, os; from sweep.shard import serve; serve(sys.stdin, os.fdopen({fd}, 'w'), {log!r})"


class LocalBackend(ShardBackend):
    """Runs shards in worker processes, which keep their engines from plan to plan.

    Owned by the coordinator's main thread.

    Args:
        workers: number of processes, each with its own devices.
        shards: number of shards per plan. None: `SHARDS_PER_WORKER` per worker.
        gpus: GPUs per worker. None: all GPUs are divided among the workers.
    """

    def __init__(self, workers: int, shards: int | None = None, gpus: int | None = None) -> None:
        super().__init__(shards)
        self._workers: list[_Process | None] = [None] * workers
        self._devices = _devices(workers, gpus)

    def suggest_shards(self, tokens: int) -> int:
        """Return several shards per worker, to balance the load."""
        return SHARDS_PER_WORKER * len(self._workers)

    def work(self, manifest: Manifest, watch: Callable[[], None]) -> Mapping[int, str]:
        """See `ShardBackend`. A shard whose worker dies is run again by a new one, at most `ATTEMPTS` times in all."""
        waiting = list(range(manifest.shards))
        deaths = dict.fromkeys(waiting, 0)
        assigned: dict[int, list[int]] = {number: [] for number in range(len(self._workers))}
        reasons: dict[int, str] = {}
        answers: queue.Queue[Answer] = queue.Queue()
        while waiting or any(assigned.values()):
            for depth in range(1 + AHEAD):
                for number, shards in assigned.items():
                    if waiting and len(shards) == depth and (not depth or self._is_started(number)):
                        # A worker with a shard is not replaced before the message that it has died is read.
                        process = self._workers[number] if depth else self._worker(number, manifest, answers)
                        assert process is not None
                        shards.append(waiting.pop(0))
                        process.send(manifest, shards[-1])
            try:
                process, answer = answers.get(timeout=PERIOD)
            except queue.Empty:
                signals.check()
                watch()
                continue
            if process not in self._workers:  # a repeated message, or one from a replaced worker
                continue
            number = self._workers.index(process)
            if answer is None:  # the worker has died
                self._workers[number] = None
                code = process.end(time.monotonic() + PATIENCE)
                lost, assigned[number] = assigned[number], []
                begun = [shard for shard in lost if read_state(manifest.state(shard)) is not None]
                for shard in begun or lost[:1]:
                    deaths[shard] += 1
                    reasons[shard] = f"its worker process exited with code {code}; see worker-{number}.log"
                    log.warning("Shard %d: %s.", shard, reasons[shard])
                waiting[:0] = [shard for shard in lost if deaths[shard] < ATTEMPTS]
            else:
                shard, _, reason = answer
                assigned[number].remove(shard)
                if reason:
                    reasons[shard] = reason
            watch()
        return unfinished_shards(manifest, reasons)

    def close(self) -> None:
        """End the workers."""
        processes = [process for process in self._workers if process is not None]
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + PATIENCE
        for process in processes:
            process.end(deadline)
        self._workers = [None] * len(self._workers)

    def _is_started(self, number: int) -> bool:
        process = self._workers[number]
        return process is not None and process.has_answered and not process.ended.is_set()

    def _worker(self, number: int, manifest: Manifest, answers: queue.Queue[Answer]) -> _Process:
        process = self._workers[number]
        if process is None or process.ended.is_set():
            process = self._workers[number] = _Process(manifest.folder / f"worker-{number}", self._devices[number])
        process.answer_to(answers)
        return process


class _Process:
    """A worker process, which the kernel kills when this process dies. A daemon thread reads its answers.

    Owned by the coordinator's main thread, which must outlive the process.

    Attributes:
        ended: set when the process has died.
        has_answered: whether it has run a shard, so that its engine is open.
    """

    def __init__(self, base_path: Path, devices: Mapping[str, str]) -> None:
        read, write = os.pipe()
        command = parent_death.tied_command(
            SERVE.format(fd=write, log=str(base_path.with_suffix(".log"))), base_path.with_suffix(".died")
        )
        cores = devices.get("cores")
        if cores:
            command[-1] = f"import os; os.sched_setaffinity(0, {{{cores}}}); " + command[-1]
        environment = os.environ | {key: value for key, value in devices.items() if key != "cores"}
        with base_path.with_suffix(".log").open("ab") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=file, stderr=file, pass_fds=[write], env=environment, text=True
            )
        os.close(write)
        self._pipe = os.fdopen(read)
        self._answers: queue.Queue[Answer] = queue.Queue()
        self.ended = threading.Event()
        self.has_answered = False
        threading.Thread(target=self._read, daemon=True).start()

    def answer_to(self, answers: queue.Queue[Answer]) -> None:
        """Put answers into this queue from now on. An answer of None means that the process has died."""
        self._answers = answers
        if self.ended.is_set():  # the previous queue got the message
            answers.put((self, None))

    def send(self, manifest: Manifest, index: int) -> None:
        """Assign a shard to the process."""
        assert self._process.stdin is not None
        with suppress(OSError):  # the process has died, which `_read` reports
            self._process.stdin.write(json.dumps([str(manifest.path), index]) + "\n")
            self._process.stdin.flush()

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def end(self, deadline: float) -> int:
        """Wait for the process until a `time.monotonic` deadline, then kill it. Return its exit code."""
        try:
            return self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _read(self) -> None:
        with suppress(ValueError):  # a dying process may leave an incomplete line
            for line in self._pipe:
                index, code, reason = json.loads(line)
                self.has_answered = True
                self._answers.put((self, (index, code, reason)))
        self.ended.set()
        self._answers.put((self, None))


Answer = tuple[_Process, tuple[int, int, str] | None]  # index of the shard, exit code, reason


def _devices(workers: int, gpus: int | None) -> list[dict[str, str]]:
    """Return each worker's GPUs as environment variables, and its CPU cores under `cores`."""
    shares = [core_share(i, workers) for i in range(workers)]
    cores = [{"cores": ",".join(map(str, share))} if share else {} for share in shares]
    visible = _visible_gpus()
    if not visible:
        return cores
    per_worker = gpus or max(1, len(visible) // workers)
    enough = workers * per_worker <= len(visible)
    rule = f"and gpus need {workers * per_worker} GPUs, but only {len(visible)} are visible. Lower one of the two"
    require(enough, "hydra.launcher.workers", rule, None)
    names = [visible[i * per_worker : (i + 1) * per_worker] for i in range(workers)]
    return [own | {"CUDA_VISIBLE_DEVICES": ",".join(its)} for own, its in zip(cores, names, strict=True)]


def _visible_gpus() -> list[str]:
    """Return the names of the visible GPUs without initialising CUDA in this process."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(i) for i, line in enumerate(listing.stdout.splitlines()) if line.startswith("GPU ")]
