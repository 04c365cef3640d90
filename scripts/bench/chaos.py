"""Kills sweeps at random, runs their commands again, and looks at what is left.

    .venv/bin/python scripts/chaos.py process --kills 50     # the sweep's whole process group, by SIGKILL
    .venv/bin/python scripts/chaos.py core --kills 20        # the engine's core, which runs in a process of its own
    .venv/bin/python scripts/chaos.py server --kills 10      # an MLflow server, stopped and started again
    .venv/bin/python scripts/chaos.py server --kills 10 --store postgresql://…

Sweeps are of 40 points (and a control) with 16 prompts each on the demo model.  After each, every point must be exactly
one FINISHED run, every generation equal to that of an undisturbed sweep, no run RUNNING, and no answer that had been
flushed generated again.  Prints what it did and saw, and ends with 1 if something of that does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"

import psutil
from mlflow import MlflowClient

from sweep.disk.journal import Journal

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 300.0  # seconds that anything may take


@dataclass
class Tally:
    """What was done and seen."""

    kills: int = 0
    runs: int = 0
    sweeps: int = 0
    points: int = 0
    generations: int = 0
    flushed: int = 0
    problems: list[str] = field(default_factory=list)


def main() -> int:
    """Run, print, and return 1 if something does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["process", "core", "server"])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--points", type=int, default=40)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--store", help="what the MLflow server keeps its runs in; default: an SQLite file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder, removed afterwards")
    options = parser.parse_args()
    began = time.monotonic()
    with _folder(options.folder) as folder:
        chaos = Chaos(options, folder)
        {"process": chaos.kill_processes, "core": chaos.kill_cores, "server": chaos.stop_servers}[options.kind]()
    tally = chaos.tally
    print(
        f"{options.kind}: {tally.kills} kills, {tally.sweeps} sweeps in {tally.runs} runs, {tally.points} points, "
        f"{tally.generations} generations compared, {tally.flushed} answers in the journal, "
        f"{len(tally.problems)} problems, {time.monotonic() - began:.0f} s"
    )
    for problem in tally.problems:
        print(f"  {problem}")
    return bool(tally.problems)


class Chaos:
    """One series of disturbed sweeps, beside an undisturbed one."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options, self._folder = options, folder
        self._random = random.Random(options.seed)
        self.tally = Tally()
        began = time.monotonic()
        self._run_to_the_end(folder / "undisturbed")
        self._seconds = time.monotonic() - began
        self._expected = generations(folder / "undisturbed")

    def kill_processes(self) -> None:
        """Kill the sweep's process group again and again, in sweep after sweep."""
        while self.tally.kills < self._options.kills:
            root = self._folder / f"sweep-{self.tally.sweeps}"
            while True:
                process = self._start(root)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(self._random.uniform(0.2, 1.1 * self._seconds))
                if process.poll() is not None:
                    self._expect_zero(process, root)
                    break
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                self.tally.kills += 1
            self._check(root)

    def kill_cores(self) -> None:
        """Kill the engine's core in the middle of one sweep."""
        root = self._folder / "cores"
        process = self._start(root, "engine.in_process=false")
        sweep, seen = psutil.Process(process.pid), 0
        while self.tally.kills < self._options.kills and process.poll() is None:
            answers = journal_size(root)
            if answers <= seen:  # nothing since the last kill
                time.sleep(0.05)
                continue
            time.sleep(self._random.uniform(0.0, 0.3))
            seen = journal_size(root)
            for child in sweep.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if "EngineCore" in child.name() or "EngineCore" in " ".join(child.cmdline()):
                        child.kill()
                        self.tally.kills += 1
        self._expect_zero(process, root)
        self._check(root)

    def stop_servers(self) -> None:
        """Stop and start the tracker while the sweep goes on."""
        root = self._folder / "served"
        server = Server(self._folder, self._options.store)
        server.start()
        try:
            process = self._start(root, f"tracking.uri={server.url}", f"tracking.patience={PATIENCE}")
            seen = 0
            while self.tally.kills < self._options.kills and process.poll() is None:
                if published(root) <= seen:
                    time.sleep(0.05)
                    continue
                server.stop(self._random.choice([signal.SIGTERM, signal.SIGKILL]))
                self.tally.kills += 1
                seen = published(root)
                time.sleep(self._random.uniform(0.5, 3.0))
                server.start()
            self._expect_zero(process, root)
            self._check(root, server.url)
        finally:
            server.stop(signal.SIGTERM)

    def _start(self, root: Path, *more: str) -> subprocess.Popen[bytes]:
        options = self._options
        factors = ",".join(f"{1 + i / 100:g}" for i in range(1, options.points + 1))
        command = [sys.executable, "-m", "sweep", "transform=scale", f"transform.factor={factors}"]
        command += ["prompts=demo_heldout", f"prompts.limit={options.prompts}"]
        command += [f"sampling.max_tokens={options.tokens}", f"sweep.dir={root}", *more]
        root.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.tally.runs += 1
        with (root / "output.txt").open("ab") as output:
            return subprocess.Popen(
                command, stdout=output, stderr=output, cwd=ROOT, env=environment, start_new_session=True
            )

    def _run_to_the_end(self, root: Path) -> None:
        self._expect_zero(self._start(root), root)

    def _expect_zero(self, process: subprocess.Popen[bytes], root: Path) -> None:
        if (code := process.wait(PATIENCE)) != 0:
            self.tally.problems.append(f"exit code {code}; {(root / 'output.txt').read_text()[-500:]}")

    def _check(self, root: Path, uri: str | None = None) -> None:
        tally, options = self.tally, self._options
        tally.sweeps += 1
        say = tally.problems.append
        runs = runs_of(root, uri)
        by_status = Counter(run.info.status for run in runs)
        if by_status != {"FINISHED": options.points + 2}:  # the control, and the sweep's own
            say(f"{root.name}: runs are {dict(by_status)}")
        names = Counter(run.info.run_name for run in runs)
        if max(names.values()) > 1:
            say(f"{root.name}: several runs are called the same: {names.most_common(3)}")
        found = generations(root, uri)
        tally.points += len(found)
        tally.generations += sum(map(len, found.values()))
        if found != self._expected:
            differing = [name for name in self._expected if found.get(name) != self._expected[name]]
            say(f"{root.name}: {len(differing)} points differ from the undisturbed sweep's: {differing[:5]}")
        for fingerprint, answers in records(root).items():
            tally.flushed += sum(answers.values())
            again = [key for key, times in answers.items() if times > 1]
            if again:
                say(f"{root.name}: generated again under {fingerprint[:8]}: {again[:3]}")


class Server:
    """MLflow's server on loopback, which can be stopped and started."""

    def __init__(self, folder: Path, store: str | None) -> None:
        import socket

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        uri = store or f"sqlite:///{folder / 'server.db'}"
        self._command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
        self._command += [f"--backend-store-uri={uri}", f"--artifacts-destination={folder / 'artifacts'}"]
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=os.environ | quiet, start_new_session=True
            )
        _wait_for(self._answers)

    def stop(self, number: signal.Signals) -> None:
        """End it and its workers by a signal."""
        if self._process is not None:
            process, self._process = self._process, None
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            process.wait(PATIENCE)

    def _answers(self) -> bool:
        try:
            with urlopen(f"{self.url}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def generations(root: Path, uri: str | None = None) -> dict[str, list[tuple[str, str]]]:
    """Return each point's prompts and generations, as MLflow has them."""
    client = MlflowClient(uri or f"sqlite:///{root / 'mlflow.db'}")
    found = {}
    for run in runs_of(root, uri):
        if run.data.tags["sweep.role"] != "sweep":
            with tempfile.TemporaryDirectory() as temporary:
                table = json.loads(
                    Path(client.download_artifacts(run.info.run_id, "generations.json", temporary)).read_text()
                )
            found[run.info.run_name] = [(row[0], row[1]) for row in table["data"]]
    return found


def runs_of(root: Path, uri: str | None = None) -> list:  # type: ignore[type-arg]
    """Return all runs of the only experiment."""
    client = MlflowClient(uri or f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("sweep")
    return list(client.search_runs([experiment.experiment_id], max_results=5000)) if experiment else []


def records(root: Path) -> dict[str, Counter[tuple[str, str]]]:
    """Return how often each kind of answer to each prompt was recorded, by fingerprint."""
    found: dict[str, Counter[tuple[str, str]]] = {}
    for folder in (root / "journal").glob("*/*"):
        counter: Counter[tuple[str, str]] = Counter()
        for file in folder.glob("*.jsonl"):
            for line in file.read_bytes().split(b"\n")[:-1]:
                record = json.loads(line.split(b" ", 1)[1])
                if "kind" in record:
                    counter[record["kind"], record["prompt"]] += 1
        if set(counter) != set(Journal(root / "journal").read(folder.name).entries):
            raise AssertionError(f"{folder}: what was recorded cannot be read back")
        found[folder.name] = counter
    return found


def journal_size(root: Path) -> int:
    """Return how many bytes of answers were flushed."""
    return sum(file.stat().st_size for file in (root / "journal").glob("*/*/*.jsonl"))


def published(root: Path) -> int:
    """Return how many points the ledger has."""
    return sum(file.read_bytes().count(b"\n") for file in (root / "sweeps").glob("*/published.jsonl"))


def _wait_for(holds: Callable[[], bool]) -> None:
    for _ in range(int(PATIENCE / 0.2)):
        if holds():
            return
        time.sleep(0.2)
    raise TimeoutError("the server did not answer")


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="chaos-") as made:
        yield Path(made)


if __name__ == "__main__":
    sys.exit(main())
