"""How long a command takes to answer, and a sweep to its first generated token beside a bare vLLM script.

    .venv/bin/python scripts/bench_startup.py [--repeats 5]

Quick answers (`--help`, a dry run, a mistyped key) are whole processes: seconds, and seconds of processor.  What
Transformers' import takes of them, which a dry run needs for its tokenizer, is measured by itself.

The first token is that of the demo model on this machine, for a command whose store is there already, and for one
whose store is to be made.  The bare script opens the same engine with the same settings, imports nothing else, and
answers one prompt.  A sweep's first token has come when its answer is in the journal.  All ways alternate; medians and
ranges are printed, and of ratios those of neighbours.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

QUICK = {
    "--help": (["--help"], 0),
    "a dry run of 3 points": (["transform=scale", "transform.factor=1.2,1.5", "sweep.dry_run=true"], 0),
    "a mistyped key": (["transform=scale", "transform.factr=1.2"], 2),
}
MAX_MODEL_LEN = 152  # as the sweep finds it
BARE = f"""
import os
os.environ.update(
    VLLM_NO_USAGE_STATS="1", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_HOST_IP="127.0.0.1", TORCH_COMPILE_DISABLE="1",
    VLLM_COMPUTE_NANS_IN_LOGITS="1", VLLM_RAISE_ON_LOGIT_NANS="1", VLLM_LOGGING_STREAM="ext://sys.stderr",
)
import sys, torch
torch.set_num_threads(1)
import vllm
llm = vllm.LLM(
    sys.argv[1], dtype="float32", enable_prompt_embeds=True, max_model_len={MAX_MODEL_LEN}, max_num_seqs=256,
    enable_prefix_caching=False, enforce_eager=True, kv_cache_memory_bytes=2**29, seed=0,
)
[answer] = llm.generate(
    [{{"prompt_embeds": torch.zeros(8, 192)}}], vllm.SamplingParams(max_tokens=1, temperature=0), use_tqdm=False
)
print(len(answer.outputs[0].token_ids), flush=True)
os._exit(0)
"""
FIRST = [
    "transform=scale",
    "sampling.max_tokens=1",
    "scoring.noise_floor=false",
    f"engine.max_model_len={MAX_MODEL_LEN}",
]


def quick(arguments: Sequence[str], code: int, folder: Path) -> tuple[float, float]:
    """Return a command's seconds, and its seconds of processor."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run([sys.executable, "-m", "sweep", *arguments], cwd=folder, capture_output=True, text=True)
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == code, done.stderr
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def transformers_seconds() -> float:
    """Return what Transformers' import takes without PyTorch, in a process that has all that comes before it."""
    code = (
        "import time, sweep.preview as p; b = time.monotonic(); p._import_transformers_alone(); "
        "print(time.monotonic() - b)"
    )
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def bare(folder: Path) -> float:
    """Return the seconds from the bare script's start to its first token."""
    from sweep.paths import DEMO_MODEL

    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-c", BARE, str(DEMO_MODEL)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=folder,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "1"
        return time.monotonic() - began


def swept(folder: Path, factor: float) -> float:
    """Return the seconds from a sweep's command to its first answer in the journal; it is then stopped."""
    journal = folder / "outputs" / "journal"
    before = _answers(journal)
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "sweep", *FIRST, f"transform.factor={factor}", f"seed={int(factor * 1e6)}"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while _answers(journal) == before and process.poll() is None:
        time.sleep(0.01)
    seconds = time.monotonic() - began
    code = process.wait(timeout=120)  # the next one finds a store at rest
    assert code == 0, code
    return seconds


def _answers(journal: Path) -> int:
    return sum(file.read_bytes().count(b'"kind"') for file in journal.glob("*/*/*.jsonl"))


def spread(values: Sequence[float], unit: str = " s") -> str:
    """Return median and range."""
    return f"{statistics.median(values):.2f}{unit} [{min(values):.2f}, {max(values):.2f}]"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for what, (arguments, code) in QUICK.items():
            quick(arguments, code, folder)
            found = [quick(arguments, code, folder) for _ in range(repeats)]
            print(f"{what}: {spread([s for s, _ in found])}, of processor {spread([p for _, p in found])}", flush=True)
        print(
            f"Transformers' import in a dry run: {spread([transformers_seconds() for _ in range(repeats)])}", flush=True
        )
        swept(folder, 0.5)  # caches, and a store
        ways: dict[str, Callable[[int], float]] = {
            "bare script": lambda i: bare(folder),
            "sweep": lambda i: swept(folder, 1 + i / 1000),
            "sweep, store to be made": lambda i: swept(_fresh(folder, i), 1.0),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for i in range(1, repeats + 1):
            for way in list(ways)[:: 1 if i % 2 else -1]:
                times[way].append(ways[way](i))
        for way, seconds in times.items():
            against = [a / b for a, b in zip(seconds, times["bare script"], strict=True)]
            print(f"first token, {way}: {spread(seconds)}, {spread(against, ' times')}")


def _fresh(folder: Path, number: int) -> Path:
    fresh = folder / f"fresh-{number}"
    fresh.mkdir()
    return fresh


if __name__ == "__main__":
    main()
