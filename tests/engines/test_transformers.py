"""Transformers engine; behaviour that all engines share is tested in `test_engine_conformance`."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from conftest import MAX_MODEL_LEN
from sweep.app.sweep_runner import SweepRunner
from sweep.config.schema import SweepConfig
from sweep.console.terminal import Terminal
from sweep.engines import TransformersConfig
from sweep.engines.base import Engine, Failure, Generation
from sweep.engines.transformers.engine import CACHES
from sweep.errors import ConfigError, EngineError
from sweep.inputs.checkpoint import find
from sweep.inputs.config import ModelConfig
from sweep.points.point import Point
from sweep.storage.journal import Journal
from sweep.storage.journal_format import JournalEntry
from sweep.testing import EngineBench, engine_answers
from sweep.testing.bench import RANDOM
from tiny_models import make_model

FAMILIES = ("gemma", "gemma2", "gemma3", "gpt2", "granite", "llama-tied", "llava", "mistral", "opt", "qwen2", "qwen3")


def bench_of(folder: Path, family: str, **settings: int) -> EngineBench:
    checkpoint = find(ModelConfig(id=str(make_model(folder / family, family))))
    config = TransformersConfig(**settings)
    return EngineBench(lambda: config.open(checkpoint.files, MAX_MODEL_LEN, folder), checkpoint, MAX_MODEL_LEN, 8)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_positions_and_scaling_of_model_families(family: str, tmp_path: Path) -> None:
    bench = bench_of(tmp_path, family, max_batch_size=8)
    engine = bench.open()
    engine_answers.identity_check_accepts_and_rejects(bench, engine)
    engine_answers.greedy_answers_match_the_model(bench, engine)
    engine_answers.log_probabilities_match_the_model(bench, engine)


@pytest.mark.parametrize("name", CACHES)
def test_names_of_the_cache(name: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers 5.24 renamed the cache as argument and in the output; here it is renamed with any version."""
    checkpoint = find(ModelConfig(id=str(tiny)))
    bench = EngineBench(
        lambda: TransformersConfig(max_batch_size=8).open(checkpoint.files, MAX_MODEL_LEN, tmp_path),
        checkpoint, MAX_MODEL_LEN, 8,
    )  # fmt: skip
    requests = bench.requests(replace(RANDOM, n=2))
    expected = {answer.key: answer for answer in bench.open().generate(requests)}
    load = transformers.AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM, "from_pretrained", lambda *a, **k: with_cache_named(name, load(*a, **k))
    )
    assert {answer.key: answer for answer in bench.open().generate(requests)} == expected


def with_cache_named(name: str, model: Any) -> Any:
    """Rename a model's cache in the signature and the output of its forward pass."""
    original, signature = model.forward, inspect.signature(model.forward)
    inner = next(cache for cache in CACHES if cache in signature.parameters)

    def forward(**arguments: Any) -> Any:
        arguments[inner] = arguments.pop(name)
        output = original(**arguments)
        return SimpleNamespace(**{"logits": output.logits, name: getattr(output, inner)})

    renamed = [p.replace(name=name) if p.name == inner else p for p in signature.parameters.values()]
    forward.__signature__ = signature.replace(parameters=renamed)  # type: ignore[attr-defined]
    model.forward = forward
    return model


def test_logits_that_are_not_finite_fail_their_request(tmp_path: Path) -> None:
    """GPT-2's layer norm overflows on rows of this size, although every entry is finite."""
    bench = bench_of(tmp_path, "gpt2", max_batch_size=8)
    engine, requests = bench.open(), bench.requests(replace(RANDOM, n=3))
    expected = {answer.key: answer for answer in engine.generate(requests)}
    assert all(isinstance(answer, Generation) for answer in expected.values())
    bad = [bench.request("bad", request.token_ids, request.sampling, 2e38) for request in requests[:1]]
    bad += [bench.request("scored", requests[1].token_ids, requests[1].sampling, 2e38, scored=2)]
    answers = {answer.key: answer for answer in engine.generate([*bad, *requests])}
    assert [answers.pop(key) for key in ("bad", "scored")] == [
        Failure(key, "the model computed non-finite logits") for key in ("bad", "scored")
    ]
    assert answers == expected


def test_a_model_that_cannot_be_loaded_and_a_missing_device(tmp_path: Path, tiny: Path) -> None:
    files = find(ModelConfig(id=str(tiny))).files
    missing = next(device for device in ("mps", "cuda") if not getattr(torch, device).is_available())
    message = rf"^engine\.device: PyTorch does not find the device '{missing}'\. Available: .*cpu\.$"
    with pytest.raises(ConfigError, match=message):
        TransformersConfig(device=missing).open(files, MAX_MODEL_LEN, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(EngineError, match=r"^Transformers did not start: \w+"):
        TransformersConfig().open(replace(files, folder=tmp_path), MAX_MODEL_LEN, tmp_path)


STARVED = """
import resource, sys, psutil
from pathlib import Path
from sweep.inputs.config import ModelConfig
from sweep.engines import TransformersConfig
from sweep.engines.base import Generation, Request, Sampling
from sweep.engines.supervisor import Supervisor
from sweep.inputs.checkpoint import find
from sweep.inputs.embedding_loader import open_table

files, cache = find(ModelConfig(id=sys.argv[1])), Path(sys.argv[2])
table, ids = open_table(files), tuple(range(5, 205)) * 10
rows = table.rows(ids)
engine = Supervisor(TransformersConfig(max_batch_size=32), lambda config: config.open(files.files, 2100, cache))
engine.config.open(files.files, 2100, cache).close()
list(engine.generate([Request(0, ids, rows, Sampling(2))]))
limit = psutil.Process().memory_info().vms + (60 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
answers = list(engine.generate(Request(key, ids, rows, Sampling(2)) for key in range(64)))
print(len(answers), all(isinstance(answer, Generation) for answer in answers), engine.crashes, engine.config.max_batch_size)
"""


@pytest.mark.slow
def test_out_of_memory_reduces_the_batch_size(tiny: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STARVED, tiny, tmp_path], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    count, answered, deaths, size = done.stdout.split()
    assert (count, answered) == ("64", "True")
    assert int(deaths) >= 1 and int(size) <= 16


def test_a_sweep_has_the_same_answers_as_with_vllm(
    configure: Callable[..., SweepConfig], on_shared_engine: Engine
) -> None:
    """Byte for byte, with the noise floor, teacher forcing, log-probabilities, a penalty and stop strings."""
    by_vllm, by_transformers = (answers_of(configure, engine) for engine in ("vllm", "transformers"))
    # Per point: the answers and two sets of log-probabilities. For the control: its answers twice and one such set.
    assert by_transformers.keys() == by_vllm.keys() and len(by_vllm) == 3 * 5 * 3 + 3 * 3
    endings = set()
    for key, expected in by_vllm.items():
        entry = by_transformers[key]
        assert entry.scored == pytest.approx(expected.scored, abs=1e-3)
        for one, other in zip(entry.completions, expected.completions, strict=True):
            assert (one.text.encode(), one.token_ids) == (other.text.encode(), other.token_ids)
            assert one.finish_reason == other.finish_reason
            assert [step.keys() for step in one.logprobs] == [step.keys() for step in other.logprobs]
            endings.add(one.finish_reason)
    assert endings == {"length", "stop"}


def answers_of(configure: Callable[..., SweepConfig], engine: str) -> dict[tuple[str, str, str], JournalEntry]:
    """Run a sweep; return its journal entries by the point without its engine, the kind and the prompt."""
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
    with SweepRunner(configure(**settings), engine, "sweep …", Terminal()) as runner:
        runner.run([Point(config, ()) for config in scales])
    assert not [result.error for result in runner.results.values() if result.error] and not runner.problems
    journal, answers = root / "journal", {}
    for folder in journal.glob("*/*"):
        identity = json.loads((folder / "identity.json").read_text())
        assert identity.pop("engine")["name"] == engine
        recovered = Journal(journal).read(folder.name)
        assert not recovered.problems
        answers |= {(json.dumps(identity), *key): entry for key, entry in recovered.entries.items()}
    return answers
