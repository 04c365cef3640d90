"""Chaos test: kill sweeps at random, run their commands again, and check the results.

    .venv/bin/python scripts/bench/chaos.py process --kills 50     # the sweep's whole process group, by SIGKILL
    .venv/bin/python scripts/bench/chaos.py core --kills 20        # the engine's core, in a separate process
    .venv/bin/python scripts/bench/chaos.py server --kills 10      # an MLflow server, stopped and restarted
    .venv/bin/python scripts/bench/chaos.py server --kills 10 --store postgresql://…

Arguments after `--` are configuration overrides of all sweeps. On a GPU, where answers depend on the composition of a
batch, answers can be compared only with `-- engine.batch_invariant=true`.

Each sweep has 40 points and a control, with 16 prompts each, on the demo model. After a sweep, every point must be
exactly one FINISHED run, and no run may be RUNNING. Every generation must equal that of an undisturbed sweep, and no
flushed answer may have been generated again. The script prints a summary and exits with 1 if a check fails.
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

from sweep.storage.journal import Journal

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300.0  # seconds that any step may take


@dataclass
class Tally:
    """Counts of kills, runs and results, and the failed checks."""

    kills: int = 0
    runs: int = 0
    sweeps: int = 0
    points: int = 0
    generations: int = 0
    flushed: int = 0
    problems: list[str] = field(default_factory=list)


def main() -> int:
    """Run the test, print a summary, and return 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["process", "core", "server"])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--points", type=int, default=40)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--scripted", action="store_true", help="use the scripted engine instead of vLLM")
    parser.add_argument("--store", help="backend store of the MLflow server; default: an SQLite file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="working folder; default: a temporary folder")
    arguments = sys.argv[1:]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:end])
    options.overrides = arguments[end + 1 :]
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
    """Series of disturbed sweeps, which are compared with an undisturbed one."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options, self._folder = options, folder
        self._random = random.Random(options.seed)
        self.tally = Tally()
        began = time.monotonic()
        self._run_to_the_end(folder / "undisturbed")
        self._seconds = time.monotonic() - began
        self._expected = generations(folder / "undisturbed")

    def kill_processes(self) -> None:
        """Kill the sweep's process group repeatedly, in one sweep after another."""
        while self.tally.kills < self._options.kills:
            root = self._folder / f"sweep-{self.tally.sweeps}"
            while True:
                is_new, began, process = not root.exists(), time.monotonic(), self._start(root)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(self._random.uniform(0.2, 1.1 * self._seconds))
                if process.poll() is not None:
                    self._expect_zero(process, root)
                    if is_new:  # the first run fills caches: most kills would come too late by its time
                        self._seconds = min(self._seconds, time.monotonic() - began)
                    break
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                self.tally.kills += 1
            self._check(root)

    def kill_cores(self) -> None:
        """Kill the engine's core repeatedly during one sweep."""
        root = self._folder / "cores"
        process = self._start(root, "engine.in_process=false")
        sweep, seen = psutil.Process(process.pid), 0
        while self.tally.kills < self._options.kills and process.poll() is None:
            answers = journal_size(root)
            if answers <= seen:  # no answer since the last kill
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
        """Stop and restart the tracking server while the sweep runs."""
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

    def _start(self, root: Path, *extra: str) -> subprocess.Popen[bytes]:
        options = self._options
        factors = ",".join(f"{1 + i / 100:g}" for i in range(1, options.points + 1))
        command = [sys.executable, "-m", "sweep", "transform=scale", f"transform.factor={factors}"]
        command += ["prompts=demo_heldout", f"prompts.limit={options.prompts}"]
        command += [f"sampling.max_tokens={options.tokens}", f"sweep.dir={root}", *options.overrides, *extra]
        if options.scripted:
            command += ["plugins=[sweep.testing.scripted]", "engine=scripted", "engine.step_seconds=0.005"]
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
        report = tally.problems.append
        runs = runs_of(root, uri)
        by_status = Counter(run.info.status for run in runs)
        if by_status != {"FINISHED": options.points + 2}:  # with the control and the parent run
            report(f"{root.name}: runs by status: {dict(by_status)}")
        names = Counter(run.info.run_name for run in runs)
        if max(names.values()) > 1:
            report(f"{root.name}: several runs have the same name: {names.most_common(3)}")
        actual = generations(root, uri)
        tally.points += len(actual)
        tally.generations += sum(map(len, actual.values()))
        if actual != self._expected:
            differing = [name for name in self._expected if actual.get(name) != self._expected[name]]
            report(f"{root.name}: {len(differing)} points differ from the undisturbed sweep's: {differing[:5]}")
        for fingerprint, answers in records(root).items():
            tally.flushed += sum(answers.values())
            repeated = [key for key, times in answers.items() if times > 1]
            if repeated:
                report(f"{root.name}: generated again under {fingerprint[:8]}: {repeated[:3]}")


class Server:
    """MLflow server on the loopback address that can be stopped and restarted."""

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
        """Start the server, and wait until it answers."""
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=os.environ | quiet, start_new_session=True
            )
        _wait_for(self._answers)

    def stop(self, number: signal.Signals) -> None:
        """End the server and its workers by a signal."""
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
    """Return each point's prompts and generations from MLflow, by run name."""
    client = MlflowClient(uri or f"sqlite:///{root / 'mlflow.db'}")
    by_run = {}
    for run in runs_of(root, uri):
        if run.data.tags["sweep.role"] != "sweep":
            with tempfile.TemporaryDirectory() as temporary:
                table = json.loads(
                    Path(client.download_artifacts(run.info.run_id, "generations.json", temporary)).read_text()
                )
            by_run[run.info.run_name] = [(row[0], row[1]) for row in table["data"]]
    return by_run


def runs_of(root: Path, uri: str | None = None) -> list:  # type: ignore[type-arg]
    """Return all runs of the only experiment."""
    client = MlflowClient(uri or f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("sweep")
    return list(client.search_runs([experiment.experiment_id], max_results=5000)) if experiment else []


def records(root: Path) -> dict[str, Counter[tuple[str, str]]]:
    """Return the number of records of each kind of answer to each prompt, by fingerprint."""
    by_fingerprint: dict[str, Counter[tuple[str, str]]] = {}
    for folder in (root / "journal").glob("*/*"):
        counter: Counter[tuple[str, str]] = Counter()
        for file in folder.glob("*.jsonl"):
            for line in file.read_bytes().split(b"\n")[:-1]:
                record = json.loads(line.split(b" ", 1)[1])
                if "kind" in record:
                    counter[record["kind"], record["prompt"]] += 1
        if set(counter) != set(Journal(root / "journal").read(folder.name).entries):
            raise AssertionError(f"{folder}: the journal does not return all records in its files")
        by_fingerprint[folder.name] = counter
    return by_fingerprint


def journal_size(root: Path) -> int:
    """Return the size of the journal in bytes."""
    return sum(file.stat().st_size for file in (root / "journal").glob("*/*/*.jsonl"))


def published(root: Path) -> int:
    """Return the number of points in the publish log."""
    return sum(file.read_bytes().count(b"\n") for file in (root / "sweeps").glob("*/published.jsonl"))


def _wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(int(PATIENCE / 0.2)):
        if condition():
            return
        time.sleep(0.2)
    raise TimeoutError("the server did not answer")


@contextmanager
def _folder(path: Path | None) -> Iterator[Path]:
    if path is not None:
        path.mkdir(parents=True, exist_ok=True)
        yield path.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        yield Path(temporary)


if __name__ == "__main__":
    sys.exit(main())
