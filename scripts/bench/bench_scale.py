"""What a point costs in sweeps of more and more points: wall time, memory, and where the time goes.

    .venv/bin/python scripts/bench_scale.py [--points 100 1000 10000] [--prompts 4] [--tokens 16]

Each size is one command, `python -m sweep transform=scale …`, on the demo model and a store of its own, from the
command line to its end: engine start, scores, publication in MLflow and the report are all in it.  Printed are wall
seconds, the sweep's own account (published with it), and the peak memory of its processes, the one that publishes by
itself.
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
    """The peak memory of a process and of its children, by what they are."""

    def __init__(self, process: psutil.Process) -> None:
        self.own = self.publisher = self.helpers = 0.0
        self._process = process
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while self._process.is_running():
            try:
                self.own = max(self.own, self._process.memory_info().rss / 2**20)
                helpers = 0.0
                for child in self._process.children():
                    kind, size = " ".join(child.cmdline()[-1:]), child.memory_info().rss / 2**20
                    if kind.startswith("sweep.tracking"):
                        self.publisher = max(self.publisher, size)
                    elif kind.startswith("sweep.helpers"):
                        helpers += size
                self.helpers = max(self.helpers, helpers)
            except psutil.Error:
                continue
            time.sleep(0.2)


def sweep(points: int, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Run a sweep of so many points and return what it took."""
    arguments = [
        "transform=scale",
        f"transform.factor=range(1,{2 - 0.5 / points},{1 / points})",  # 1 is not the control: only identity is
        f"prompts.limit={options.prompts}",
        f"sampling.max_tokens={options.tokens}",
        "scoring.noise_floor=false",
    ]
    began = time.monotonic()
    command = [sys.executable, "-m", "sweep", *arguments]
    process = psutil.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    memory = Memory(process)
    _, said = process.communicate()
    seconds = time.monotonic() - began
    assert process.returncode == 0, said[-2000:]
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'outputs' / 'mlflow.db'}")
    [parent] = client.search_runs(["1"], "tags.`sweep.role` = 'sweep'")
    finished = parent.data.metrics["sweep/points"]
    assert finished == points + 1 and parent.data.metrics["sweep/failed"] == 0, finished
    account = {name: parent.data.metrics[f"cost/{name}"] for name in ACCOUNT}
    return {
        "seconds": seconds,
        "MiB": memory.own,
        "publisher MiB": memory.publisher,
        "helpers MiB": memory.helpers,
        **account,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="*", default=[100, 1000, 10000])
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=16)
    options = parser.parse_args()
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for points in options.points:
        with tempfile.TemporaryDirectory() as folder:
            found = sweep(points, options, Path(folder))
        each = 1000 * found["seconds"] / points
        told = ", ".join(f"{name.removesuffix('_seconds')} {value:.1f}" for name, value in found.items())
        print(f"{points} points x {options.prompts} prompts: {each:.1f} ms a point; {told}", flush=True)


if __name__ == "__main__":
    main()
