"""What is the Transformers engine's own; what it must do as all engines is in `test_engine_conformance`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import MAX_MODEL_LEN
from sweep.config import ModelConfig, SweepConfig
from sweep.disk.journal import Journal
from sweep.disk.records import Entry
from sweep.engines import TransformersConfig
from sweep.engines.base import Engine, Failure, Generation
from sweep.errors import ConfigError, EngineError
from sweep.inputs.checkpoint import find
from sweep.point import Point
from sweep.runner import Runner
from sweep.terminal import Terminal
from sweep.testing import EngineBench, engine_answers
from sweep.testing.bench import RANDOM
from tiny_models import make_model

FAMILIES = ("gemma", "gemma2", "gemma3", "gpt2", "granite", "llama-tied", "mistral", "opt", "qwen2", "qwen3")


def bench_of(folder: Path, family: str, **settings: int) -> EngineBench:
    checkpoint = find(ModelConfig(id=str(make_model(folder / family, family))))
    config = TransformersConfig(**settings)
    return EngineBench(lambda: config.open(checkpoint.files, MAX_MODEL_LEN, folder), checkpoint, MAX_MODEL_LEN, 8)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_padded_placed_and_scaled_rightly(family: str, tmp_path: Path) -> None:
    bench = bench_of(tmp_path, family, max_batch_size=8)
    engine = bench.open()
    engine_answers.the_identity_gate_can_be_passed_and_failed(bench, engine)
    engine_answers.answers_are_those_of_the_model(bench, engine)
    engine_answers.log_probabilities_are_those_of_the_model(bench, engine)


def test_logits_that_are_not_finite_fail_their_request(tmp_path: Path) -> None:
    """GPT-2's layer norm overflows on rows of that size, though every entry is finite."""
    bench = bench_of(tmp_path, "gpt2", max_batch_size=8)
    engine, asked = bench.open(), bench.requests(replace(RANDOM, n=3))
    expected = {answer.key: answer for answer in engine.generate(asked)}
    assert all(isinstance(answer, Generation) for answer in expected.values())
    bad = [bench.request("bad", request.token_ids, request.sampling, 2e38) for request in asked[:1]]
    bad += [bench.request("scored", asked[1].token_ids, asked[1].sampling, 2e38, scored=2)]
    got = {answer.key: answer for answer in engine.generate([*bad, *asked])}
    assert [got.pop(key) for key in ("bad", "scored")] == [
        Failure(key, "the model computed non-finite logits") for key in ("bad", "scored")
    ]
    assert got == expected


def test_a_model_that_cannot_be_loaded_or_a_device_that_is_not_there_is_refused(tmp_path: Path, tiny: Path) -> None:
    files = find(ModelConfig(id=str(tiny))).files
    missing = next(device for device in ("mps", "cuda") if not getattr(torch, device).is_available())
    with pytest.raises(ConfigError, match=f"^engine.device: PyTorch sees no '{missing}' here"):
        TransformersConfig(device=missing).open(files, MAX_MODEL_LEN, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(EngineError, match=r"^Transformers did not start: \w+"):
        TransformersConfig().open(replace(files, folder=tmp_path), MAX_MODEL_LEN, tmp_path)


STARVED = """
import resource, sys, psutil
from pathlib import Path
from sweep.config import ModelConfig
from sweep.engines import TransformersConfig
from sweep.engines.base import Generation, Request, Sampling
from sweep.engines.supervisor import Supervisor
from sweep.inputs.checkpoint import find
from sweep.inputs.embedding import open_table

files, cache = find(ModelConfig(id=sys.argv[1])), Path(sys.argv[2])
table, ids = open_table(files), tuple(range(5, 205)) * 10
rows = table.rows(ids)
engine = Supervisor(TransformersConfig(max_batch_size=32), lambda config: config.open(files.files, 2100, cache))
engine.config.open(files.files, 2100, cache).close()
list(engine.generate([Request(0, ids, rows, Sampling(2))]))
limit = psutil.Process().memory_info().vms + (60 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
answers = list(engine.generate(Request(key, ids, rows, Sampling(2)) for key in range(64)))
print(len(answers), all(isinstance(answer, Generation) for answer in answers), engine.deaths, engine.config.max_batch_size)
"""


def test_out_of_memory_it_works_on_fewer_requests(tiny: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STARVED, tiny, tmp_path], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    count, answered, deaths, size = done.stdout.split()
    assert (count, answered) == ("64", "True")
    assert int(deaths) >= 1 and int(size) <= 16


def test_a_sweep_says_what_it_says_with_vllm(configure: Callable[..., SweepConfig], on_shared_engine: Engine) -> None:
    """Byte for byte, with the noise floor, teacher forcing, log-probabilities, a penalty and stop strings."""
    by_vllm, by_transformers = (answers_of(configure, engine) for engine in ("vllm", "transformers"))
    # Answers and two log-probabilities each, of the control its answers twice and one of the latter.
    assert by_transformers.keys() == by_vllm.keys() and len(by_vllm) == 3 * 5 * 3 + 3 * 3
    endings = set()
    for key, expected in by_vllm.items():
        got = by_transformers[key]
        assert got.scored == pytest.approx(expected.scored, abs=1e-3)
        for ours, theirs in zip(got.completions, expected.completions, strict=True):
            assert (ours.text.encode(), ours.token_ids) == (theirs.text.encode(), theirs.token_ids)
            assert ours.finish_reason == theirs.finish_reason
            assert [step.keys() for step in ours.logprobs] == [step.keys() for step in theirs.logprobs]
            endings.add(ours.finish_reason)
    assert endings == {"length", "stop"}


def answers_of(configure: Callable[..., SweepConfig], engine: str) -> dict[tuple[str, str, str], Entry]:
    """Run a sweep; return what its journal says, by what each point is but for the engine, the kind and the prompt."""
    root = configure().sweep.root / engine
    settings = {
        "engine": {"name": engine},
        "scoring": {"teacher_forced": True, "logprobs": 3},
        "sampling": {"max_tokens": 16, "repetition_penalty": 1.1, "stop": list("aeiou0123456789()")},
        "sweep": {"dir": str(root)},
    }
    scales = [
        configure(transform={"name": "scale", "factor": factor}, **settings) for factor in (0.5, 1.2, 1.5, 3.0, 9.0)
    ]
    with Runner(configure(**settings), engine, "sweep …", Terminal()) as runner:
        runner.run([Point(config, ()) for config in scales])
    assert not [result.error for result in runner.results.values() if result.error] and not runner.problems
    journal, answers = root / "journal", {}
    for folder in journal.glob("*/*"):
        identity = json.loads((folder / "identity.json").read_text())
        assert identity.pop("engine") == engine
        recovered = Journal(journal).read(folder.name)
        assert not recovered.problems
        answers |= {(json.dumps(identity), *key): entry for key, entry in recovered.entries.items()}
    return answers
