"""Time that publishing takes per point: an SQLite file, another database, or an MLflow server in front of it.

    .venv/bin/python scripts/bench/bench_publish.py
    .venv/bin/python scripts/bench/bench_publish.py --store postgresql+psycopg://me@host/empty
    .venv/bin/python scripts/bench/bench_publish.py --store postgresql+psycopg://me@host/empty --server

Points have 30 parameters, 44 metrics and a table of 16 generations. They are published in batches, as a sweep does when
points wait. The script prints milliseconds per point for each repeat: elapsed, and CPU time of the client.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import time
from pathlib import Path

os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"

from chaos import Server

from sweep.config.schema import TrackingConfig
from sweep.core.records import PointRecord, Publication, Table
from sweep.core.values import Summary
from sweep.publishing.queue import TOGETHER
from sweep.tracking import Tracker

TABLE = Table(["prompt", "generation"], [[f"question {i}", "an answer of some words " * 4] for i in range(16)])


def record(number: int) -> PointRecord:
    """Return a point with as many values as a typical one."""
    summary = Summary(mean=0.5, ci_low=0.25, ci_high=0.75, n=16)
    return PointRecord(
        index=number,
        name=f"factor={number}",
        role="point",
        fingerprint=f"fingerprint {number}",
        started=1.0,
        ended=2.0,
        parameters={f"transform.parameter_{i}": 1.0 for i in range(30)},
        axes=(),
        summaries={f"quality/measure_{i}": summary for i in range(12)},
        metrics={f"cost/number_{i}": 1.0 for i in range(7)},
        tags={"sweep.result": f"result {number}"},
        config="seed: 0\n" * 60,
    )


def measure(tracker: Tracker, numbers: range) -> tuple[float, float]:
    """Publish points, and return milliseconds per point: elapsed, and of CPU time."""
    waiting = [Publication(record(number), TABLE) for number in numbers]
    began, cpu = time.perf_counter(), time.process_time()
    while waiting:
        done = tracker.publish_all(waiting[:TOGETHER], retry=False)
        if None in done:
            raise RuntimeError("a point could not be published")
        waiting = waiting[len(done) :]
    scale = 1000 / len(numbers)
    return scale * (time.perf_counter() - began), scale * (time.process_time() - cpu)


def main() -> None:
    """Publish points repeatedly, and print each repeat's times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--store", help="address of an empty database; default: an SQLite file")
    parser.add_argument("--server", action="store_true", help="publish to an MLflow server in front of the store")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        server = Server(Path(temporary), options.store) if options.server else None
        if server is not None:
            server.start()
        try:
            uri = server.url if server is not None else options.store
            tracker = Tracker(TrackingConfig(uri=uri) if uri else TrackingConfig(), Path(temporary), "bench")
            tracker.connect()
            tracker.start("bench", "bench_publish", "seed: 0\n")
            measure(tracker, range(TOGETHER))  # the first points load modules
            for repeat in range(1, options.repeats + 1):
                first = TOGETHER + repeat * options.points
                elapsed, cpu = measure(tracker, range(first, first + options.points))
                print(f"{elapsed:.1f} ms per point, {cpu:.1f} ms of the client's CPU time", flush=True)
            tracker.finish("FINISHED", {})
        finally:
            if server is not None:
                server.stop(signal.SIGTERM)


if __name__ == "__main__":
    main()
