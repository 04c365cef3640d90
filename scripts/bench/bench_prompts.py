"""Time to read 100,000 prompts from a JSON Lines file, next to the package `datasets`.

    .venv/bin/python scripts/bench/bench_prompts.py [--rows 100000] [--repeats 5] [--chats]

Both readers end with all rows as Python values: `datasets` with an empty cache, then `to_list`; `sweep` with checked
prompts. They take turns in one process. Prints the median of each, and the median of the ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets

from sweep.inputs import prompts
from sweep.inputs.config import PromptsConfig

LIMIT = 1.5  # of the time that `datasets` takes


def write(path: Path, rows: int, chats: bool = False) -> None:
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            question = f"What is {i} plus {i + 1}? Think step by step, then answer with the number alone."
            row: dict[str, Any] = {"id": f"q{i}", "source": "sums", "split": "test"}
            if chats:
                turns = (("system", "Be brief."), ("user", question), ("assistant", str(2 * i + 1)))
                row["messages"] = [{"role": role, "content": content} for role, content in turns]
            else:
                row |= {"prompt": question, "reference": [str(2 * i + 1)]}
            file.write(json.dumps(row) + "\n")


def seconds_of_sweep(path: Path, rows: int) -> float:
    started = time.perf_counter()
    assert len(prompts.load(PromptsConfig(path=str(path)))) == rows
    return time.perf_counter() - started


def seconds_of_datasets(path: Path, rows: int, cache: Path) -> float:
    started = time.perf_counter()
    loaded = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(cache))
    assert len(loaded.to_list()) == rows
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--chats", action="store_true", help="rows of three messages instead of prompt and reference")
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.jsonl"
        write(path, arguments.rows, arguments.chats)
        seconds_of_sweep(path, arguments.rows)  # imports
        seconds_of_datasets(path, arguments.rows, Path(folder) / "first")
        ours, theirs = [], []
        for i in range(arguments.repeats):
            ours.append(seconds_of_sweep(path, arguments.rows))
            theirs.append(seconds_of_datasets(path, arguments.rows, Path(folder) / str(i)))
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    print(f"{arguments.rows:,} rows, median of {arguments.repeats} turns")
    print(f"sweep     {statistics.median(ours):6.2f} s")
    print(f"datasets  {statistics.median(theirs):6.2f} s ({datasets.__version__})")
    print(f"ratio     {ratio:6.2f}   limit {LIMIT}")
    raise SystemExit(ratio > LIMIT)


if __name__ == "__main__":
    main()
