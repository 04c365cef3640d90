"""vLLM is killed in all the ways that can be arranged; what is asked of it is answered none the less, and nothing stays.

Each scenario runs in a process of its own, and those that share one share its engines, whose starts take most of the time.
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

Start = Callable[[Path], subprocess.Popen[str]]

COMMON = """
import json, logging, os, signal, sys, threading, time
from pathlib import Path
import psutil
from sweep.inputs.checkpoint import find
from sweep.config import ModelConfig
from sweep.inputs.embedding import open_table
from sweep.engines import VLLMConfig
from sweep.engines.base import Failure, Generation, Request, Sampling
from sweep.engines.supervisor import Supervisor

model, cache = sys.argv[1:]

def cores():
    return [c for c in psutil.Process().children() if "EngineCore" in c.name() + " ".join(c.cmdline())]

def say(**what):
    print("SAID " + json.dumps(what), flush=True)
"""

# GPT-2's layer norm overflows on rows of that size, though every entry is finite: its logits are NaN.
SUPERVISED = (
    COMMON
    + """
def request(key, factor=1.0):
    ids, length = tuple(range(5 + key, 15 + 3 * key)), 40 + 25 * key
    greedy, sampled = Sampling(length, ignore_eos=True), Sampling(length, temperature=1.0, seed=key, n=2)
    return Request(key, ids, table.rows(ids) * factor, sampled if key % 3 else greedy)

def answers(stream, kill_after=()):
    got = {}
    for answer in stream:
        failed = isinstance(answer, Failure)
        got[answer.key] = answer.reason if failed else [[c.text, c.token_ids] for c in answer.completions]
        if len(got) in kill_after:
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
    say(undisturbed=undisturbed, poisoned=poisoned, deaths=[text for _, text in deaths], starts=engine.starts)

    deaths.clear()
    killed = answers(engine.generate(request(key) for key in range(12)), kill_after=(2, 7))
    delays = [death - kill for kill, (death, _) in zip(kills, deaths)]
    say(killed=killed, delays=delays, deaths=[text for _, text in deaths])

    # What the core does with requests that fail within it can be asked for: it sends them back as finished.
    vllm, answered = engine._engine, []
    for answer in vllm.generate(request(key) for key in (0, 3, 6, 9)):
        answered.append([answer.key, isinstance(answer, Failure)])
        if len(answered) == 1:
            vllm.llm.llm_engine.engine_core.call_utility("pause_scheduler", "abort", True)
    say(answered=answered)

    engine.close()
    say(left=[p.name() for p in psutil.Process().children(recursive=True) if p.name().startswith("VLLM")])
    say(files=[file.name for file in cache.iterdir() if file.name.startswith("last-words")])
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
        say(answered=answer.key)
"""
)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "gpt2", "gpt2")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def said(gpt2: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the supervised engine's scenario says."""
    script = tmp_path_factory.mktemp("scripts") / "supervised.py"
    script.write_text(SUPERVISED)
    done = subprocess.run(
        [sys.executable, script, gpt2, cache], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.removeprefix("SAID ") for line in done.stdout.splitlines() if line.startswith("SAID ")]
    return {f"{i} {name}": value for i, line in enumerate(lines) for name, value in json.loads(line).items()}


def test_requests_that_kill_an_engine_fail_and_no_others(said: dict[str, Any]) -> None:
    """In this process first, then in one of its own, while what is left of the first is still in memory."""
    undisturbed, poisoned = said["0 undisturbed"], said["0 poisoned"]
    assert len(undisturbed) == 12 and len({str(answer) for answer in undisturbed.values()}) == 12
    reason = "the engine died of it twice: The model computed non-finite logits (vLLM: NaNs detected in logits)"
    assert {poisoned.pop("3"), poisoned.pop("6")} == {reason}
    assert poisoned == {key: answer for key, answer in undisturbed.items() if key not in ("3", "6")}
    # Three, when the core has begun with the first of the two before it has heard of the second.
    assert len(said["0 deaths"]) in (2, 3) and said["0 starts"] == len(said["0 deaths"]) + 1


def test_a_killed_core_is_noticed_and_only_what_is_unfinished_is_repeated(said: dict[str, Any]) -> None:
    assert said["1 killed"] == said["0 undisturbed"]
    assert len(said["1 delays"]) == 2 and max(said["1 delays"]) < 2
    assert all(text.startswith("vLLM's core process died: killed by SIGKILL") for text in said["1 deaths"])
    repeated = [int(text.rstrip(".").split(": ")[-1]) for text in said["1 deaths"]]
    assert all(0 < count <= 8 for count in repeated)


def test_a_request_that_fails_within_the_core_is_no_answer(said: dict[str, Any]) -> None:
    assert said["2 answered"][0] == [0, False]
    assert sorted(said["2 answered"][1:]) == [[3, True], [6, True], [9, True]]


def test_nothing_is_left_of_a_closed_engine(said: dict[str, Any]) -> None:
    assert said["3 left"] == [] and said["4 files"] == []


@pytest.fixture
def start(gpt2: Path, tmp_path: Path) -> Iterator[Start]:
    """Start a process that opens an engine and goes on generating."""
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    with ExitStack() as undo:

        def start(cache: Path) -> subprocess.Popen[str]:
            process = subprocess.Popen([sys.executable, script, gpt2, cache], stdout=subprocess.PIPE, text=True)
            undo.enter_context(process)
            undo.callback(process.kill)
            return process

        yield start


def test_no_process_survives_a_parent_killed_while_vllm_inspects_the_model(start: Start, tmp_path: Path) -> None:
    """Which it does in a process of its own when its cache knows nothing of the model."""
    assert_none_survives(start(tmp_path / "cache"), "registry")


def test_no_process_survives_a_parent_killed_while_the_core_starts(start: Start, cache: Path) -> None:
    assert_none_survives(start(cache), "spawn_main")


def test_no_process_survives_a_parent_killed_in_mid_generation(start: Start, cache: Path) -> None:
    parent = start(cache)
    hear(parent, "answered")
    assert_none_survives(parent, "EngineCore")


def hear(process: subprocess.Popen[str], what: str) -> None:
    assert process.stdout is not None
    assert any(what in line for line in process.stdout if line.startswith("SAID")), "it ended before"


def assert_none_survives(parent: subprocess.Popen[str], child: str) -> None:
    """Kill the parent as soon as it has a child whose command line says so."""
    family: list[psutil.Process] = []
    while not any(child in says(process) for process in family):
        assert parent.poll() is None
        family = psutil.Process(parent.pid).children(recursive=True)
    os.kill(parent.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=5)
    for process in alive:
        process.kill()
    assert not alive


def says(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""
