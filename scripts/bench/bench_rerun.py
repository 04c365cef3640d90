"""Measures what the command of a finished sweep costs when it is given again: no engine, nothing published.

.venv/bin/python scripts/bench_rerun.py                   # 1,000 points × 4 prompts on the demo model
.venv/bin/python scripts/bench_rerun.py --points 100 --repeats 5
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
    """Run the sweep once, then its command again, and print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rerun-") as folder:
        first = _run(options, Path(folder))
        again = [_run(options, Path(folder)) for _ in range(options.repeats)]
    print(f"{options.points} points × {options.prompts} prompts: first {first:.1f} s")
    print(f"again: median {statistics.median(again):.1f} s [{min(again):.1f}, {max(again):.1f}]")


def _run(options: argparse.Namespace, folder: Path) -> float:
    factors = f"range(1,2,{1 / options.points!r})"
    command = [sys.executable, "-m", "sweep", "transform=scale", f"transform.factor={factors}", f"sweep.dir={folder}"]
    command += [f"prompts.limit={options.prompts}", "sampling.max_tokens=8"]
    began = time.monotonic()
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True
    )
    if "Engine (" in done.stderr and began_before(folder):
        raise AssertionError("an engine was started again")
    (folder / "done").touch()
    return time.monotonic() - began


def began_before(folder: Path) -> bool:
    """Whether the sweep had been finished."""
    return (folder / "done").exists()


if __name__ == "__main__":
    main()
