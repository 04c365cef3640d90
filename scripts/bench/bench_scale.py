"""Cost per point in sweeps of increasing size: wall time, memory, and time by activity.

    .venv/bin/python scripts/bench/bench_scale.py [--points 100 1000 10000] [--prompts 4] [--tokens 16]

Each size is one command, `python -m sweep transform=scale …`, on the demo model with a new MLflow store. The time
includes engine start, scoring, publishing and the report. The script prints wall seconds, the costs that the sweep
publishes, and the peak memory of its processes, with the publishing process listed separately.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

ACCOUNT = [f"{name}_seconds" for name in ("engine_start", "generate", "build", "score", "publish", "report")]


class Memory:
    """Peak memory of a process and of its children, by role; sampled by a background thread."""

    def __init__(self, process: psutil.Process) -> None:
        self.main = self.publisher = self.helpers = 0.0
        self._process = process
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while self._process.is_running():
            try:
                self.main = max(self.main, self._process.memory_info().rss / 2**20)
                helpers = 0.0
                for child in self._process.children():
                    kind, size = " ".join(child.cmdline()[-1:]), child.memory_info().rss / 2**20
                    if kind.startswith("sweep.tracking"):
                        self.publisher = max(self.publisher, size)
                    elif kind.startswith("sweep.workers"):
                        helpers += size
                self.helpers = max(self.helpers, helpers)
            except psutil.Error:
                continue
            time.sleep(0.2)


def sweep(points: int, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Run a sweep of a number of points and return its times and memory."""
    arguments = [
        "transform=scale",
        f"transform.factor=range(1,{2 - 0.5 / points},{1 / points})",  # factor=1 is not the control
        f"prompts.limit={options.prompts}",
        f"sampling.max_tokens={options.tokens}",
        "scoring.noise_floor=false",
    ]
    began = time.monotonic()
    command = [sys.executable, "-m", "sweep", *arguments]
    process = psutil.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    memory = Memory(process)
    _, stderr = process.communicate()
    seconds = time.monotonic() - began
    assert process.returncode == 0, stderr[-2000:]
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'outputs' / 'mlflow.db'}")
    [parent] = client.search_runs(["1"], "tags.`sweep.role` = 'sweep'")
    finished = parent.data.metrics["sweep/points"]
    assert finished == points + 1 and parent.data.metrics["sweep/failed"] == 0, finished
    account = {name: parent.data.metrics[f"cost/{name}"] for name in ACCOUNT}
    return {
        "seconds": seconds,
        "MiB": memory.main,
        "publisher MiB": memory.publisher,
        "helpers MiB": memory.helpers,
        **account,
    }


def main() -> None:
    """Measure sweeps of all sizes and print their costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="*", default=[100, 1000, 10000])
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=16)
    options = parser.parse_args()
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for points in options.points:
        with tempfile.TemporaryDirectory() as folder:
            costs = sweep(points, options, Path(folder))
        per_point = 1000 * costs["seconds"] / points
        summary = ", ".join(f"{name.removesuffix('_seconds')} {value:.1f}" for name, value in costs.items())
        print(f"{points} points x {options.prompts} prompts: {per_point:.1f} ms per point; {summary}", flush=True)


if __name__ == "__main__":
    main()
