"""vLLM crashes of all kinds: all other requests are answered, and no processes or files are left.

Each scenario runs in a separate process. Tests share scenarios, because starting engines takes most of the time.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from tiny_models import make_model

pytestmark = pytest.mark.slow

Start = Callable[[Path], subprocess.Popen[str]]

COMMON = """
import json, logging, os, signal, sys, threading, time
from pathlib import Path
import psutil
from sweep.inputs.checkpoint import find
from sweep.inputs.config import ModelConfig
from sweep.inputs.embedding_loader import open_table
from sweep.engines import VLLMConfig
from sweep.engines.base import Failure, Generation, Request, Sampling
from sweep.engines.supervisor import Supervisor

model, cache = sys.argv[1:]

def cores():
    return [c for c in psutil.Process().children() if "EngineCore" in c.name() + " ".join(c.cmdline())]

def report(**values):
    print("OUTPUT " + json.dumps(values), flush=True)
"""

# GPT-2's layer norm overflows on rows of this size, although every entry is finite: its logits are NaN.
SUPERVISED = (
    COMMON
    + """
def request(key, factor=1.0):
    ids, length = tuple(range(5 + key, 15 + 3 * key)), 40 + 25 * key
    greedy, sampled = Sampling(length, ignore_eos=True), Sampling(length, temperature=1.0, seed=key, n=2)
    return Request(key, ids, table.rows(ids) * factor, sampled if key % 3 else greedy)

def answers(stream, kill_after=None):
    got = {}
    for answer in stream:
        failed = isinstance(answer, Failure)
        got[answer.key] = answer.reason if failed else [[c.text, c.token_ids] for c in answer.completions]
        if len(got) == kill_after:
            threading.Thread(target=kill).start()
    return got

def kill():
    [core] = cores()
    time.sleep(0.02)
    core.kill()
    kills.append(time.monotonic())

class Deaths(logging.Handler):
    def emit(self, record):
        deaths.append((time.monotonic(), record.getMessage()))

if __name__ == "__main__":
    deaths, kills = [], []
    logging.getLogger("sweep").addHandler(Deaths())
    checkpoint = find(ModelConfig(id=model))
    table, cache = open_table(checkpoint), Path(cache)
    config = VLLMConfig(max_num_seqs=16, window=8, kv_cache_gib=0.1, in_process=True)
    engine = Supervisor(config, lambda config: config.open(checkpoint.files, 400, cache))

    undisturbed = answers(engine.generate(request(key) for key in range(12)))
    poisoned = answers(engine.generate(request(key, 2e38 if key in (3, 6) else 1.0) for key in range(12)))
    report(undisturbed=undisturbed, poisoned=poisoned, deaths=[text for _, text in deaths], starts=engine.starts)

    deaths.clear()
    killed = answers(engine.generate(request(key) for key in range(12)), kill_after=2)
    report(killed=killed, delays=[death - kills[0] for death, _ in deaths], deaths=[text for _, text in deaths])

    # Abort requests within the core, which returns them as finished.
    vllm, answered = engine._engine, []
    for answer in vllm.generate(request(key) for key in (0, 3, 6, 9)):
        answered.append([answer.key, isinstance(answer, Failure)])
        if len(answered) == 1:
            vllm.llm.llm_engine.engine_core.call_utility("pause_scheduler", "abort", True)
    report(answered=answered)

    engine.close()
    engine.close()
    report(left=[p.name() for p in psutil.Process().children(recursive=True) if p.name().startswith("VLLM")])
    report(files=[file.name for file in cache.iterdir() if file.name.startswith("fatal-error")])
"""
)

ORPHANS = (
    COMMON
    + """
if __name__ == "__main__":
    checkpoint = find(ModelConfig(id=model))
    table, ids = open_table(checkpoint), tuple(range(5, 25))
    config = VLLMConfig(max_num_seqs=4, kv_cache_gib=0.1, in_process=False)
    engine = config.open(checkpoint.files, 500, Path(cache))
    sampling = Sampling(max_tokens=400, ignore_eos=True)
    for answer in engine.generate(Request(i, ids, table.rows(ids), sampling) for i in range(10_000)):
        report(answered=answer.key)
"""
)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "gpt2", "gpt2")


@pytest.fixture(scope="module")
def output(gpt2: Path, vllm_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The output of the scenario with a supervised engine."""
    folder = tmp_path_factory.mktemp("supervised")
    script = folder / "supervised.py"
    script.write_text(SUPERVISED)
    done = subprocess.run(
        [sys.executable, script, gpt2, folder],
        env=os.environ | {"VLLM_CACHE_ROOT": str(vllm_cache)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.removeprefix("OUTPUT ") for line in done.stdout.splitlines() if line.startswith("OUTPUT ")]
    return {f"{i} {name}": value for i, line in enumerate(lines) for name, value in json.loads(line).items()}


def test_only_requests_that_crash_the_engine_fail(output: dict[str, Any]) -> None:
    """First with the engine in this process, then in a separate one while memory of the first is still in use."""
    undisturbed, poisoned = output["0 undisturbed"], output["0 poisoned"]
    assert len(undisturbed) == 12 and len({str(answer) for answer in undisturbed.values()}) == 12
    reason = "it crashed the engine twice: The model computed non-finite logits (vLLM: NaNs detected in logits)"
    assert {poisoned.pop("3"), poisoned.pop("6")} == {reason}
    assert poisoned == {key: answer for key, answer in undisturbed.items() if key not in ("3", "6")}
    # Three crashes if the core started the first of the two requests before it received the second.
    assert len(output["0 deaths"]) in (2, 3) and output["0 starts"] == len(output["0 deaths"]) + 1


def test_a_killed_core_is_detected_and_only_unfinished_requests_are_repeated(output: dict[str, Any]) -> None:
    assert output["1 killed"] == output["0 undisturbed"]
    [delay], [text] = output["1 delays"], output["1 deaths"]
    assert delay < 2 and text.startswith("vLLM's core process died: killed by SIGKILL")
    assert 0 < int(text.rstrip(".").split(": ")[-1]) <= 8


def test_a_request_that_fails_within_the_core_is_a_failure(output: dict[str, Any]) -> None:
    assert output["2 answered"][0] == [0, False]
    assert sorted(output["2 answered"][1:]) == [[3, True], [6, True], [9, True]]


def test_a_closed_engine_leaves_no_processes_and_files(output: dict[str, Any]) -> None:
    assert output["3 left"] == [] and output["4 files"] == []


@pytest.fixture
def start(gpt2: Path, tmp_path: Path) -> Iterator[Start]:
    """Start a process that opens an engine and generates, with vLLM's cache in a folder."""
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    with ExitStack() as undo:

        def start(vllm_cache: Path) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, script, gpt2, tmp_path],
                env=os.environ | {"VLLM_CACHE_ROOT": str(vllm_cache)},
                stdout=subprocess.PIPE,
                text=True,
            )
            undo.enter_context(process)
            undo.callback(process.kill)
            return process

        yield start


def test_no_process_survives_a_parent_killed_while_vllm_inspects_the_model(start: Start, tmp_path: Path) -> None:
    """vLLM inspects a model in a separate process if the model is not in its cache."""
    assert_none_survives(start(tmp_path / "empty"), "registry")


def test_no_process_survives_a_parent_killed_while_the_core_starts(start: Start, vllm_cache: Path) -> None:
    assert_none_survives(start(vllm_cache), "spawn_main")


def test_no_process_survives_a_parent_killed_in_mid_generation(start: Start, vllm_cache: Path) -> None:
    parent = start(vllm_cache)
    wait_for_output(parent, "answered")
    assert_none_survives(parent, "EngineCore")


def wait_for_output(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    assert any(text in line for line in process.stdout if line.startswith("OUTPUT")), "the process ended before"


def assert_none_survives(parent: subprocess.Popen[str], child: str) -> None:
    """Kill the parent as soon as it has a child with that text in its command line."""
    family: list[psutil.Process] = []
    while not any(child in command_line(process) for process in family):
        assert parent.poll() is None
        family = psutil.Process(parent.pid).children(recursive=True)
    os.kill(parent.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=30)
    for process in alive:
        process.kill()
    assert not alive


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # the process has just ended
        return ""
