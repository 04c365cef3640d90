"""One sweep on several engines of one machine, against one engine: throughput, coordinator, equality, a killed worker.

    .venv/bin/python scripts/bench/bench_workers.py --shape 8b --workers 2 --ray 2 --out results
    .venv/bin/python scripts/bench/bench_workers.py --small --workers 2 --out results      # on a CPU

The script makes a model with random weights and its own prompts, and needs no network. Output:
`results/workers-SHAPE-STAGE.json`, written as results come, and the printed lines.

- throughput: one process with one engine, `hydra.launcher.workers=N` for each N of `--workers`, and `--ray` Ray actors.
  All engines are open at the same time and share the GPUs' memory, and sweeps on them alternate. Ratios are those of
  neighbouring sweeps. Also the CPU seconds and the memory of the process that coordinates.
- equality: the commands with one worker and with the most, one of which is killed by SIGKILL in the middle, give the
  same bytes. On a GPU with `engine.batch_invariant=true`; without it, answers depend on the composition of a batch.
"""

# Only standard-library imports here, because vLLM's processes import this file again.
from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WORKER = "from sweep.shard import serve"  # in the command lines of the local launcher's workers
SMALL: dict[str, Any] = {"shape": "tiny", "workloads": ["3x4x6", "6x4x8"], "prompt_tokens": 32, "equal": "6x8x8"}


def arguments() -> argparse.Namespace:
    """Parse the command line; `--small` changes defaults only."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="8b", choices=["3m", "tiny", "1b", "8b"])
    parser.add_argument("--out", type=Path, default=Path("bench-workers"), help="folder for the results")
    parser.add_argument("--work", type=Path, help="folder for model and sweeps; default: a temporary folder")
    parser.add_argument("--workers", type=int, nargs="*", default=[2], help="numbers of workers of the local launcher")
    parser.add_argument("--ray", type=int, default=0, help="number of Ray actors; 0: none")
    parser.add_argument("--without-one", action="store_true", help="leave out one engine; the first kind is the base")
    parser.add_argument(
        "--workloads", nargs="*", default=["35x100x12", "256x64x32"], help="points × prompts × tokens of an answer"
    )
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--equal", default="35x100x12", help="workload of the comparison of answers")
    parser.add_argument("--stages", nargs="*", default=["throughput", "equality"])
    parser.add_argument("--budget", type=float, default=540.0, help="seconds for the stage throughput")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--share", type=float, help="each engine's share of its GPU's memory; default: 0.84 in all")
    parser.add_argument("--max-model-len", type=int, default=256)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--eager", action="store_true", help="disable compilation")
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    if "--small" in sys.argv:
        parser.set_defaults(**SMALL)
    options = parser.parse_args()
    kinds = (not options.without_one) + len(options.workers) + bool(options.ray)
    options.gpu_memory_utilization = options.share or round(0.84 / kinds, 3)
    options.batch_invariant, options.in_process, options.tensor_parallel = False, "false", 1
    options.tokens = 8  # of the first sweep, which opens the engines
    return options


def throughput(options: argparse.Namespace, report: Any) -> None:
    """Alternate sweeps on one engine and on several, all of them open."""
    from bench_gpu_session import Session

    from hydra_plugins.sweep_launchers._local_backend import LocalBackend
    from hydra_plugins.sweep_launchers._ray_backend import RayBackend

    sessions: dict[str, Session] = {}
    backends: dict[str, Any] = {} if options.without_one else {"one engine": None}
    backends |= {f"{number} workers": LocalBackend(number) for number in options.workers}
    if options.ray:  # before any library imports Ray
        ray = RayBackend(actors=options.ray, address=None, gpus=None, cpus=None, shards=None, say=print)
        backends[f"{options.ray} Ray actors"] = ray
    try:
        for name, backend in backends.items():
            began = time.time()
            sessions[name] = Session(options, report, backend)
            report.note(f"{name}: seconds to the first points' scores", round(time.time() - began, 1))
        for number, workload in enumerate(options.workloads):
            share = 1 / (len(options.workloads) - number)
            report.run(workload, partial(_measure, options, report, sessions, workload), share)
    finally:
        for session in sessions.values():
            session.close()


def _measure(options: argparse.Namespace, report: Any, sessions: dict[str, Any], workload: str) -> dict[str, Any]:
    from bench_gpu_session import ratios, spread

    points, prompts, tokens = map(int, workload.split("x"))
    kinds: dict[str, Callable[[], dict[str, float]]] = {}
    for name, session in sessions.items():
        inputs = session.inputs(options.prompt_tokens, prompts, answer=tokens)
        session.control(inputs)
        kinds[name] = partial(_timed, session, inputs, points)
    by_kind = report.interleave(kinds, options.repeats)
    first = next(iter(by_kind.values()))
    results: dict[str, Any] = {"repeats": len(first)}
    for name, runs in by_kind.items():
        values: dict[str, Any] = {}
        for until in ("scored", "published"):
            seconds = [run[until] for run in runs]
            values[f"seconds until {until}"] = spread(seconds)
            values[f"throughput until {until}"] = ratios([run[until] for run in first], seconds)
        values["answers per second"] = spread([points * prompts / run["scored"] for run in runs])
        values["coordinator's CPU seconds"] = spread([run["cpu"] for run in runs])
        values["coordinator's MiB"] = spread([run["MiB"] for run in runs])
        results[name] = values
    return results


def _timed(session: Any, inputs: Any, points: int) -> dict[str, float]:
    import psutil

    process = psutil.Process()
    before = sum(process.cpu_times()[:2])
    times: dict[str, float] = session.sweep(inputs, points)
    cpu = sum(process.cpu_times()[:2]) - before
    return times | {"cpu": round(cpu, 2), "MiB": process.memory_info().rss / 2**20}


def equality(options: argparse.Namespace, report: Any) -> None:
    """Compare the answers of one worker with those of several, one of which is killed."""
    import psutil
    from bench_gpu_model import write_prompts
    from bench_gpu_session import model_folder

    import sweep

    points, prompts, tokens = map(int, options.equal.split("x"))
    file = write_prompts(options.work, options.prompt_tokens, prompts)
    factors = ",".join(f"{1 + i / 100:g}" for i in range(1, points + 1))
    on_gpu = bool(subprocess.run("nvidia-smi -L", shell=True, capture_output=True).stdout)
    command = [sys.executable, "-m", "sweep", "transform=scale", f"transform.factor={factors}"]
    command += [f"model.id={model_folder(options)}", "model.dtype=auto", f"prompts.path={file}"]
    command += [f"sampling.max_tokens={tokens}", "sampling.ignore_eos=true", "engine.in_process=false"]
    command += [f"engine.max_model_len={options.max_model_len}", f"engine.max_num_seqs={options.max_num_seqs}"]
    command += ["engine.enforce_eager=true", f"engine.batch_invariant={str(on_gpu).lower()}"]

    def run(workers: int, kill: bool) -> Any:
        root = Path(tempfile.mkdtemp(dir=options.work, prefix=f"equal-{workers}-"))
        extra = [f"sweep.dir={root}", f"hydra.launcher.workers={workers}"]
        began = time.monotonic()
        with (root / "output.txt").open("wb") as output:
            process = psutil.Popen([*command, *extra], stdout=output, stderr=output, cwd=ROOT)
        killed = 0
        while kill and not killed and process.poll() is None:
            if sum(path.stat().st_size for path in (root / "journal").glob("**/*") if path.is_file()) > 0:
                victims = [child for child in process.children() if WORKER in " ".join(child.cmdline())]
                victims[-1].send_signal(signal.SIGKILL)
                killed = 1
            time.sleep(0.02)
        code = process.wait(options.budget)
        label = f"{workers} workers" + (", one killed" if kill else "")
        report.note(label, {"exit code": code, "seconds": round(time.monotonic() - began, 1), "killed": killed})
        if code:
            report.note(f"{label}: output", (root / "output.txt").read_text()[-1500:])
        frame = sweep.load(dir=root)
        keys = ["axis/transform.factor", "prompt_id"]
        return frame.sort_values(keys, ignore_index=True)[[*keys, "generation"]]

    alone, several = run(1, False), run(max(options.workers), True)
    equal = int((alone == several).all(axis=1).sum()) if len(alone) == len(several) else 0
    report.note("equal answers", f"{equal} of {len(alone)}, {len(several)} with several workers")


def main() -> int:
    """Run the stages."""
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="bench-workers-") as temporary:
        options.work = (options.work or Path(temporary)).resolve()
        options.work.mkdir(parents=True, exist_ok=True)
        options.out.mkdir(parents=True, exist_ok=True)
        from bench_gpu import machine
        from bench_gpu_model import SHAPES, make_model
        from bench_gpu_session import Report, model_folder

        if not (model_folder(options) / "model.safetensors.index.json").exists():
            make_model(SHAPES[options.shape], model_folder(options))
        os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
        for stage in options.stages:
            report = Report(options.out / f"workers-{options.shape}-{stage}.json", time.time() + options.budget)
            report.note("machine", machine())
            report.note("options", {key: str(value) for key, value in vars(options).items()})
            {"throughput": throughput, "equality": equality}[stage](options, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
