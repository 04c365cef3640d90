"""Cost of repeating the command of a finished sweep: no engine is started and nothing is published.

.venv/bin/python scripts/bench/bench_rerun.py                   # 1,000 points × 4 prompts on the demo model
.venv/bin/python scripts/bench/bench_rerun.py --points 100 --repeats 5
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    """Run the sweep once, repeat its command, and print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rerun-") as folder:
        first = _run(options, Path(folder))
        repeats = [_run(options, Path(folder)) for _ in range(options.repeats)]
    print(f"{options.points} points × {options.prompts} prompts: first {first:.1f} s")
    print(f"again: median {statistics.median(repeats):.1f} s [{min(repeats):.1f}, {max(repeats):.1f}]")


def _run(options: argparse.Namespace, folder: Path) -> float:
    factors = f"range(1,2,{1 / options.points!r})"
    command = [sys.executable, "-m", "sweep", "transform=scale", f"transform.factor={factors}", f"sweep.dir={folder}"]
    command += [f"prompts.limit={options.prompts}", "sampling.max_tokens=8"]
    began = time.monotonic()
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True
    )
    if "Engine (" in done.stderr and was_finished(folder):
        raise AssertionError("the repeated command started an engine")
    (folder / "done").touch()
    return time.monotonic() - began


def was_finished(folder: Path) -> bool:
    """Return whether the sweep was finished by an earlier run."""
    return (folder / "done").exists()


if __name__ == "__main__":
    main()
