"""A sweep compared with other methods of running it, each as a whole command on the same machine, in turn.

    .venv/bin/python scripts/bench/bench_peers.py [--points 16] [--prompts 16] [--tokens 32] [--repeats 2]

- sweep: this project's command, with its default measures, tracking and report.
- loop: a process and an engine for each point, which only generates. One point per repeat is measured and multiplied.
- basic: Hydra's basic launcher and a task function that keeps one `vllm.LLM` at module level, generates a point's
  answers in one call and logs them to MLflow with their exact match.
- server: one `vllm` server with `--enable-prompt-embeds`. Points are sent one at a time, each with all its prompts at
  once, like `vllm bench sweep` does. Nothing is scored or tracked.
- one by one: an engine in this process that answers one prompt after the other, like a loop over `generate`. One point
  is measured, without the engine's start, and multiplied.

All methods answer the same prompts with the same number of tokens. Seconds are those of the whole command, for all
points and the control.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from bench_overhead import MAX_MODEL_LEN, bare, compose_jobs, one_point, ready_requests

from sweep.config import loader
from sweep.inputs.checkpoint import find
from sweep.points.point import make_points
from sweep.util.paths import DEMO_MODEL, conf_dir

START_SECONDS = 120.0
_llm: Any = None  # the basic launcher's engine


def overrides(options: argparse.Namespace) -> list[str]:
    """Return the overrides that all points share."""
    return [
        "prompts=demo_heldout",
        f"prompts.limit={options.prompts}",
        f"sampling.max_tokens={options.tokens}",
        "sampling.ignore_eos=true",
        f"engine.max_model_len={MAX_MODEL_LEN}",
        "scoring.noise_floor=false",
    ]


def factors(options: argparse.Namespace) -> list[str]:
    """Return the swept values."""
    return [f"{1 + 0.01 * i:.2f}" for i in range(1, options.points)]


def swept(options: argparse.Namespace, folder: Path) -> float:
    """Return the seconds of this project's command."""
    command = [sys.executable, "-m", "sweep", *overrides(options)]
    return _timed([*command, "transform=scale", f"transform.factor={','.join(factors(options))}"], folder)


def looped(options: argparse.Namespace, folder: Path) -> float:
    """Return the seconds of one process for each point."""
    return options.points * _timed(_own_command("loop", options), folder)


def basic(options: argparse.Namespace, folder: Path) -> float:
    """Return the seconds of Hydra's basic launcher."""
    swept_values = f"transform.factor={','.join(['1.00', *factors(options)])}"
    arguments = [*overrides(options), "transform=scale", swept_values, "hydra/launcher=basic", f"sweep.dir={folder}"]
    arguments += ["hydra/job_logging=disabled", "hydra/hydra_logging=disabled", "hydra.output_subdir=null"]
    arguments += ["hydra.sweep.dir=bench", "hydra.run.dir=bench"]
    return _timed([sys.executable, __file__, "--multirun", *arguments], folder, {"BENCH_PEER": "basic"})


def served(options: argparse.Namespace, folder: Path) -> float:
    """Return the seconds of a server and of a client that sends one point after the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(DEMO_MODEL)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enable-prompt-embeds", "--dtype", "float32"]
    command += ["--enforce-eager", "--max-model-len", str(MAX_MODEL_LEN), "--no-enable-prefix-caching"]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_HOST_IP": "127.0.0.1"}
    began, client = time.monotonic(), httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False)
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        # Prepare the requests while the server starts.
        points = [ready_requests([job]) for job in compose_jobs(options.points, options, folder)]
        while not _is_up(client):
            assert process.poll() is None and time.monotonic() - began < START_SECONDS, "the server did not start"
            time.sleep(0.1)
        with ThreadPoolExecutor(options.prompts) as pool:
            for requests in points:
                counts = list(pool.map(lambda request: _ask(client, request, options.tokens), requests))
                assert counts == [options.tokens] * len(requests), counts
    finally:
        process.terminate()
        process.wait(60)
        client.close()
    return time.monotonic() - began


def one_by_one(options: argparse.Namespace, folder: Path) -> float:
    """Return the seconds of prompts that are answered one after the other by an open engine."""
    done = subprocess.run(
        _own_command("singly", options),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return options.points * float(done.stdout.splitlines()[-1])


def run_singly(options: argparse.Namespace) -> None:
    """Run the process of `one_by_one`: print the seconds of one point."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = compose_jobs(1, options, Path(folder))
        config = make_points(jobs)[0].config
        engine: Any = config.engine.open(find(config.model).files, MAX_MODEL_LEN, Path(folder))
        requests = ready_requests(jobs)
        bare(engine.llm, requests[:1], options)
        print(sum(bare(engine.llm, [request], options) for request in requests))


def run_basic() -> None:
    """Run the command that uses Hydra's basic launcher."""
    import hydra

    loader.register()
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(basic_point)()


def basic_point(composed: Any) -> None:
    """Generate and log one point, on the engine of the first point."""
    global _llm
    import mlflow

    config = loader.parse(composed)
    if _llm is None:
        engine: Any = config.engine.open(find(config.model).files, MAX_MODEL_LEN, config.sweep.root / "cache")
        _llm = engine.llm
        mlflow.set_tracking_uri(f"sqlite:///{config.sweep.root / 'mlflow.db'}")
        mlflow.set_experiment("basic")
    [point] = make_points([([], config)])
    from sweep.inputs import prompts as prompt_files

    loaded = prompt_files.load(config.prompts)
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=config.sampling.max_tokens, ignore_eos=True)
    answers = [
        output.outputs[0].text for output in _llm.generate(ready_requests([([], config)]), sampling, use_tqdm=False)
    ]
    correct = [answer.strip() in prompt.references for answer, prompt in zip(answers, loaded, strict=True)]
    with mlflow.start_run(run_name=point.name):
        mlflow.log_params({key: str(value) for key, value in point.parameters().items()})
        mlflow.log_metric("exact_match", sum(correct) / len(correct))
        mlflow.log_table({"prompt": [prompt.text for prompt in loaded], "generation": answers}, "generations.json")


def _own_command(role: str, options: argparse.Namespace) -> list[str]:
    sizes = [f"--prompts={options.prompts}", f"--tokens={options.tokens}"]
    return [sys.executable, __file__, f"--be={role}", *sizes]


def _timed(command: Sequence[str], folder: Path, variables: dict[str, str] | None = None) -> float:
    began = time.monotonic()
    done = subprocess.run(command, cwd=folder, env=os.environ | (variables or {}), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return time.monotonic() - began


def _is_up(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def _ask(client: httpx.Client, request: dict[str, Any], tokens: int) -> int:
    import torch

    buffer = io.BytesIO()
    torch.save(request["prompt_embeds"], buffer)
    body = {
        "model": str(DEMO_MODEL),
        "prompt_embeds": base64.b64encode(buffer.getvalue()).decode(),
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
    answer = client.post("/v1/completions", json=body)
    answer.raise_for_status()
    return int(answer.json()["usage"]["completion_tokens"])


METHODS: dict[str, Callable[[argparse.Namespace, Path], float]] = {
    "sweep": swept,
    "basic": basic,
    "server": served,
    "loop": looped,
    "one by one": one_by_one,
}


def main() -> None:
    """Measure all methods and print their times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--be", help=argparse.SUPPRESS)
    options = parser.parse_args()
    loader.register()
    if options.be:
        return {"loop": one_point, "singly": run_singly}[options.be](options)
    times: dict[str, list[float]] = {method: [] for method in options.methods}
    for repeat in range(options.repeats):
        for method in options.methods[:: -1 if repeat % 2 else 1]:
            with tempfile.TemporaryDirectory() as folder:
                times[method].append(METHODS[method](options, Path(folder)))
                print(f"  {method}: {times[method][-1]:.1f} s", flush=True)
    print(f"{options.points} points x {options.prompts} prompts x {options.tokens} tokens")
    for method, seconds in times.items():
        against = [a / b for a, b in zip(seconds, times.get("sweep", seconds), strict=True)]
        print(
            f"{method}: {statistics.median(seconds):.1f} s [{min(seconds):.1f}, {max(seconds):.1f}], "
            f"{statistics.median(against):.1f} times [{min(against):.1f}, {max(against):.1f}]"
        )


if __name__ == "__main__":
    run_basic() if os.environ.get("BENCH_PEER") == "basic" else main()
