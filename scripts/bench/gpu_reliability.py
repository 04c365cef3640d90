"""Disturb sweeps on an NVIDIA GPU, run their commands again, and check results, processes and GPU memory.

    .venv/bin/python scripts/bench/gpu_reliability.py [--folder FOLDER]

- memory taken before the start: another process holds almost all GPU memory. The sweep must end with a short error.
- memory taken during a sweep: another process takes all free memory. The sweep must finish.
- core killed while memory is taken: the engine cannot start again. The sweep must end with a short error.
- interrupt: SIGINT during generation. The sweep must end with 130.
- rank killed: with `engine.tensor_parallel_size=2`, one of the model's two processes is killed, three times. Prints the
  seconds until the sweep notices it and until the next answer. The sweep must finish. Needs two GPUs; not by default.

After each disturbance, no process of the sweep may be left on the GPU, and the same command must complete: every point
is exactly one FINISHED run, and no answer in the journal was generated twice. One line is printed per command, with its
exit code, its seconds, the last lines of its output and the used GPU memory before and after. Exits with 1 if a check
fails.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
from chaos import journal_size, records, runs_of

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 240.0  # seconds that any step may take
SLACK = 600  # MiB by which the used memory may differ after a sweep; drivers keep some
SPARE = 300  # MiB that the other process leaves free
POINTS = 40
ERROR_LINES = 3
RANK_KILLS = 3
HOLDER = """
import sys, time, torch
free, _ = torch.cuda.mem_get_info()
held = torch.empty(max(free - int(sys.argv[1]) * 2**20, 0), dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""


class Checks:
    """Sweeps in one folder each, and the failed checks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.problems: list[str] = []

    def taken_before_start(self) -> None:
        """Start a sweep while another process holds the memory, then run it again without that process."""
        root = self._folder / "before"
        with memory_held(SPARE):
            self._run(root, "memory taken before the start", fails=True)
        self._run(root, "the same command with free memory")
        self._check(root)

    def taken_during(self) -> None:
        """Take the free memory once the sweep has answers."""
        root = self._folder / "during"

        with ExitStack() as stack:
            self._run(root, "memory taken during the sweep", lambda _: stack.enter_context(memory_held(SPARE)))
        self._check(root)

    def core_killed_while_taken(self) -> None:
        """Kill the engine's core, and take its memory before the engine starts again."""
        root = self._folder / "core"
        stack = ExitStack()

        def disturb(process: subprocess.Popen[bytes]) -> None:
            for child in psutil.Process(process.pid).children(recursive=True):
                if "EngineCore" in child.name() or "EngineCore" in " ".join(child.cmdline()):
                    child.kill()
            while used_memory() > 3000:  # until the driver has taken the core's memory back
                time.sleep(0.01)
            stack.enter_context(memory_held(SPARE))

        with stack:
            self._run(root, "core killed, and its memory taken", disturb, fails=True)
        self._run(root, "the same command with free memory")
        self._check(root)

    def interrupted(self) -> None:
        """Interrupt a sweep once it has answers."""
        root = self._folder / "interrupted"
        self._run(root, "SIGINT", lambda process: process.send_signal(signal.SIGINT), fails=True)
        self._run(root, "the same command again")
        self._check(root)

    def rank_killed(self) -> None:
        """Kill one of the two processes that share the model, repeatedly."""
        root = self._folder / "rank"

        def disturb(process: subprocess.Popen[bytes]) -> None:
            for number in range(1, RANK_KILLS + 1):
                if process.poll() is not None:
                    return
                sweep = psutil.Process(process.pid)
                size, began = journal_size(root), time.monotonic()
                _kill_rank(sweep, number % 2)
                noticed = _wait(process, lambda number=number: _crashes(root) >= number)
                answered = _wait(process, lambda size=size: journal_size(root) > size)
                print(
                    f"     kill {number}: noticed after {noticed - began:.2f} s, answers after {answered - began:.1f} s"
                )

        self._run(root, "rank killed", disturb, extra=["engine.tensor_parallel_size=2"])
        self._check(root)

    def _run(
        self,
        root: Path,
        label: str,
        disturb: Callable[[subprocess.Popen[bytes]], None] | None = None,
        fails: bool = False,
        extra: Sequence[str] = (),
    ) -> None:
        before, began = used_memory(), time.monotonic()
        root.mkdir(parents=True, exist_ok=True)
        output = root / f"output-{time.time_ns()}.txt"
        factors = ",".join(f"{1 + i / 100:g}" for i in range(1, POINTS + 1))
        command = [sys.executable, "-m", "sweep", "transform=scale", f"transform.factor={factors}", f"sweep.dir={root}"]
        command += ["prompts=demo_heldout", "prompts.limit=16", "sampling.max_tokens=64", "sampling.ignore_eos=true"]
        command += ["engine.in_process=false", "engine.enforce_eager=true", "engine.max_num_seqs=16", *extra]
        with output.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, cwd=ROOT, start_new_session=True)
        if disturb is not None:
            while not journal_size(root) and process.poll() is None:
                time.sleep(0.02)
            disturb(process)
        try:
            code: int | None = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            code = None
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        seconds = time.monotonic() - began
        time.sleep(1.0)
        left = [
            f"{other.pid} {other.name()}"
            for other in psutil.process_iter(["status"])
            if group_of(other.pid) == process.pid and other.info["status"] != psutil.STATUS_ZOMBIE
        ]
        after = used_memory()
        lines = [line for line in output.read_text(errors="replace").splitlines() if line.strip()]
        print(f"## {label}: exit {code}, {seconds:.1f} s, {before} -> {after} MiB, processes left: {left}", flush=True)
        print("\n".join(f"     {line[:300]}" for line in lines[-ERROR_LINES - 1 :]), flush=True)
        if (code == 0) == fails or code is None:
            self.problems.append(f"{label}: exit code {code}")
        if left:
            self.problems.append(f"{label}: processes left: {left}")
        if disturb is None and after > before + SLACK:
            self.problems.append(f"{label}: {after - before} MiB more memory used after the sweep")

    def _check(self, root: Path) -> None:
        by_status = Counter(run.info.status for run in runs_of(root))
        if by_status != {"FINISHED": POINTS + 2}:  # with the control and the parent run
            self.problems.append(f"{root.name}: runs by status: {dict(by_status)}")
        repeated = sum(times > 1 for answers in records(root).values() for times in answers.values())
        if repeated:
            self.problems.append(f"{root.name}: {repeated} answers were generated again")


def _kill_rank(sweep: psutil.Process, rank: int) -> None:
    """Kill a process that runs a part of the model, by the name that vLLM gives it."""
    for child in sweep.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if f"Worker_TP{rank}" in " ".join([child.name(), *child.cmdline()]):
                child.kill()


def _crashes(root: Path) -> int:
    """Return how many crashes of the engine the sweep's log reports."""
    logs = root.glob("sweeps/*/sweep.log")
    return sum(file.read_text(errors="replace").count("Restarting the engine") for file in logs)


def _wait(process: subprocess.Popen[bytes], happened: Callable[[], bool]) -> float:
    """Wait until something has happened or the process has ended; return the time."""
    deadline = time.monotonic() + PATIENCE
    while not happened() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return time.monotonic()


@contextmanager
def memory_held(spare: int) -> Iterator[None]:
    """Hold all free memory of the GPU but `spare` MiB, in another process."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(spare)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        assert holder.stdout.readline().strip() == b"held"
        try:
            yield
        finally:
            holder.stdin.close()
            holder.wait(PATIENCE)


def used_memory() -> int:
    """Return the used memory in MiB of the GPUs that `CUDA_VISIBLE_DEVICES` names, or of all."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        query.append(f"--id={visible}")
    return sum(map(int, subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()))


def group_of(pid: int) -> int | None:
    """Return a process's group; None if it has ended."""
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def main() -> int:
    """Run all disturbances, print each command's result, and return 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="working folder; default: a temporary folder")
    parser.add_argument("--only", nargs="*", help="names of methods: taken_before_start, taken_during, …")
    options = parser.parse_args()
    names = options.only or ["taken_before_start", "taken_during", "core_killed_while_taken", "interrupted"]
    with tempfile.TemporaryDirectory(prefix="gpu-reliability-") as temporary:
        checks = Checks((options.folder or Path(temporary)).resolve())
        for name in names:
            getattr(checks, name)()
    print(f"{len(names)} disturbances, {len(checks.problems)} problems")
    for problem in checks.problems:
        print(f"  {problem}")
    return bool(checks.problems)


if __name__ == "__main__":
    sys.exit(main())
