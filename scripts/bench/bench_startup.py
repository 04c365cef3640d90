"""Response time of quick commands, and time to the first generated token of a sweep and of a bare vLLM script.

    .venv/bin/python scripts/bench/bench_startup.py [--repeats 5] [--model FOLDER] [--only-first]

Quick commands (`--help`, a dry run, a mistyped key) are measured as whole processes, in seconds and in seconds of CPU
time. The import of Transformers, which a dry run needs for its tokenizer, is also measured separately.

The first token is one of the demo model on this machine, with an existing MLflow store and with a new one. The bare
script opens the same engine with the same settings, imports nothing else, and answers one prompt. A sweep's first token
counts when its answer is in the journal. The methods alternate. Medians and ranges are printed, and ratios of
neighbouring measurements.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

QUICK = {
    "--help": (["--help"], 0),
    "a dry run of 3 points": (["transform=scale", "transform.factor=1.2,1.5", "sweep.dry_run=true"], 0),
    "a mistyped key": (["transform=scale", "transform.factr=1.2"], 2),
}
MAX_MODEL_LEN = 152  # what the sweep would choose
BARE = f"""
import os, sys
model, width, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
on_gpu = bool(folder)
os.environ.update(
    VLLM_NO_USAGE_STATS="1", VLLM_COMPUTE_NANS_IN_LOGITS="1", VLLM_RAISE_ON_LOGIT_NANS="1",
    VLLM_LOGGING_STREAM="ext://sys.stderr", VLLM_ENABLE_V1_MULTIPROCESSING=str(int(on_gpu)),
    VLLM_WORKER_MULTIPROC_METHOD="spawn",
)
if on_gpu:
    os.environ.update(
        VLLM_CACHE_ROOT=folder + "/vllm", TORCHINDUCTOR_CACHE_DIR=folder + "/torchinductor",
        TRITON_CACHE_DIR=folder + "/triton",
    )
    arguments = dict(dtype="auto", gpu_memory_utilization=0.9)
else:
    os.environ.update(VLLM_HOST_IP="127.0.0.1", TORCH_COMPILE_DISABLE="1")
    arguments = dict(dtype="float32", enforce_eager=True, kv_cache_memory_bytes=2**29)
import torch
torch.set_num_threads(1)
import vllm
if __name__ == "__main__":
    llm = vllm.LLM(
        model, enable_prompt_embeds=True, max_model_len={MAX_MODEL_LEN}, max_num_seqs=256,
        enable_prefix_caching=False, seed=0, **arguments,
    )
    rows = torch.zeros(8, width, dtype=llm.llm_engine.model_config.dtype)
    sampling = vllm.SamplingParams(max_tokens=1, temperature=0)
    [answer] = llm.generate([{{"prompt_embeds": rows}}], sampling, use_tqdm=False)
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
    """Return the seconds and the seconds of CPU time of a command."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run([sys.executable, "-m", "sweep", *arguments], cwd=folder, capture_output=True, text=True)
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == code, done.stderr
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def transformers_seconds() -> float:
    """Return the seconds of importing Transformers without PyTorch, after everything that a dry run imports before."""
    code = (
        "import time, sweep.app.dry_run as d; b = time.monotonic(); d._import_transformers_without_torch(); "
        "print(time.monotonic() - b)"
    )
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def bare(folder: Path, model: Path, on_gpu: bool) -> float:
    """Return the seconds from the bare script's start to its first token."""
    script = folder / "bare.py"  # a file, because a core in another process imports it again
    script.write_text(BARE)
    width = json.loads((model / "config.json").read_text())["hidden_size"]
    caches = str(folder / "bare-caches") if on_gpu else ""
    began = time.monotonic()
    with (folder / "bare.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(script), str(model), str(width), caches],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=folder,
            start_new_session=True,
        )
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    seconds = time.monotonic() - began
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert line == "1", (folder / "bare.log").read_text()[-3000:]
    return seconds


def wait_for_memory() -> None:
    """Wait until the GPU's memory is free again: a process that has ended may still hold some."""
    import torch

    deadline = time.monotonic() + 60
    while torch.cuda.device_memory_used() > 2**30 and time.monotonic() < deadline:
        time.sleep(0.2)


def swept(folder: Path, factor: float, more: Sequence[str] = ()) -> float:
    """Return the seconds from a sweep's command to its first answer in the journal."""
    journal = folder / "outputs" / "journal"
    before = _answers(journal)
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "sweep", *FIRST, *more, f"transform.factor={factor}", f"seed={int(factor * 1e6)}"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while _answers(journal) == before and process.poll() is None:
        time.sleep(0.01)
    seconds = time.monotonic() - began
    code = process.wait(timeout=300)  # so that the next sweep does not share the store
    assert code == 0, code
    return seconds


def _answers(journal: Path) -> int:
    return sum(file.read_bytes().count(b'"kind"') for file in journal.glob("*/*/*.jsonl"))


def spread(values: Sequence[float], unit: str = " s") -> str:
    """Return median and range."""
    return f"{statistics.median(values):.2f}{unit} [{min(values):.2f}, {max(values):.2f}]"


def main() -> None:
    """Measure all commands and print medians, ranges and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", type=Path, help="folder of another model than the demo model")
    parser.add_argument("--only-first", action="store_true", help="measure the first token only")
    options = parser.parse_args()
    repeats, more = options.repeats, [f"model.id={options.model.resolve()}"] if options.model else []
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for label, (arguments, code) in {} if options.only_first else QUICK.items():
            quick(arguments, code, folder)
            times_of_runs = [quick(arguments, code, folder) for _ in range(repeats)]
            wall, cpu = zip(*times_of_runs, strict=True)
            print(f"{label}: {spread(wall)}, CPU time {spread(cpu)}", flush=True)
        if not options.only_first:
            seconds = [transformers_seconds() for _ in range(repeats)]
            print(f"import of Transformers in a dry run: {spread(seconds)}", flush=True)
        from sweep.engines.vllm.config import VLLMConfig
        from sweep.engines.vllm.startup import placement
        from sweep.util.paths import DEMO_MODEL

        on_gpu, model = placement(VLLMConfig())[0], options.model or DEMO_MODEL
        print(f"first sweep: {swept(folder, 0.5, more):.1f} s", flush=True)  # creates a store, too
        if on_gpu:  # the same compiled code for both
            shutil.copytree(folder / "outputs" / ".cache", folder / "bare-caches")
            wait_for_memory()
        print(f"first bare script: {bare(folder, model, on_gpu):.1f} s", flush=True)
        methods: dict[str, Callable[[int], float]] = {
            "bare script": lambda i: bare(folder, model, on_gpu),
            "sweep": lambda i: swept(folder, 1 + i / 1000, more),
        }
        if not on_gpu:  # where it would compile anew
            methods["sweep, new store"] = lambda i: swept(_fresh(folder, i), 1.0, more)
        times: dict[str, list[float]] = {method: [] for method in methods}
        for i in range(1, repeats + 1):
            for method in list(methods)[:: 1 if i % 2 else -1]:
                if on_gpu:
                    wait_for_memory()
                times[method].append(methods[method](i))
        for method, seconds in times.items():
            against = [a / b for a, b in zip(seconds, times["bare script"], strict=True)]
            print(f"first token, {method}: {spread(seconds)}, {spread(against, ' times')}")


def _fresh(folder: Path, number: int) -> Path:
    fresh = folder / f"fresh-{number}"
    fresh.mkdir()
    return fresh


if __name__ == "__main__":
    main()
