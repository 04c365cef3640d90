"""Cost of planning a sweep: `sweep.dry_run=true`, from the command line to the last printed line.

.venv/bin/python scripts/bench/bench_plan.py  # 1,000, 10,000 and 100,000 points × 100 prompts, demo model
.venv/bin/python scripts/bench/bench_plan.py --points 10000 --repeats 3
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path


def main() -> None:
    """Plan sweeps of one and of two keys, each in a fresh process, and print times and peak memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    for points in options.points:
        for swept, arguments in (("factor", _one_key(points)), ("sigma × seed", _two_keys(points))):
            runs = [_plan(arguments, points, options.prompts) for _ in range(options.repeats)]
            wall, cpu, peaks = zip(*runs, strict=True)
            print(f"{points} points ({swept}) × {options.prompts} prompts: {_range(wall, 1)} s, ", end="")
            print(f"{_range(cpu, 1)} s of CPU time, peak {_range(peaks)} MiB", flush=True)


def _one_key(points: int) -> list[str]:
    return ["transform=scale", f"transform.factor=range(1,2,{1 / points!r})"]


def _two_keys(points: int) -> list[str]:
    seeds = 10
    return ["transform=noise", f"transform.sigma=range(1,2,{seeds / points!r})", f"seed=range(0,{seeds})"]


def _plan(arguments: Sequence[str], points: int, prompts: int) -> tuple[float, float, float]:
    """Return seconds, seconds of CPU time, and peak memory in MiB of a dry run."""
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        file, printed = Path(folder) / "prompts.jsonl", Path(folder) / "printed"
        records = [{"prompt": f"What is {i} plus {i + 1}?", "reference": str(2 * i + 1)} for i in range(prompts)]
        file.write_text("".join(json.dumps(prompt) + "\n" for prompt in records))
        command = [sys.executable, "-m", "sweep", "sweep.dry_run=true", f"sweep.dir={folder}", f"prompts.path={file}"]
        began = time.monotonic()
        with printed.open("w") as out:
            process = subprocess.Popen([*command, *arguments], stdout=out, env=os.environ | {"OMP_NUM_THREADS": "1"})
            _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        # Rounding decides whether a range has one more value, and controls are added.
        planned = int(printed.read_text().splitlines()[-1].split()[0]) if status == 0 else 0
        if not points <= planned <= 1.02 * points + 11:
            raise AssertionError(f"{planned} points were planned, expected about {points}")
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return seconds, usage.ru_utime + usage.ru_stime, peak


def _range(values: Sequence[float], digits: int = 0) -> str:
    least, most = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return least if len(values) == 1 else f"{least}–{most}"


if __name__ == "__main__":
    main()
