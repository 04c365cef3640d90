"""`model.lora` on the real engine: several adapters in one batch answer as PEFT does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lora_adapters import make_adapter, peft_answer
from shards import generations
from tiny_models import make_model

pytestmark = pytest.mark.slow

SCRIPT = """
import json, sys
from dataclasses import replace
from pathlib import Path
from sweep.engines import VLLMConfig
from sweep.engines.base import Request, Sampling
from sweep.engines.identity_check import IdentityPrompt, check_identity
from sweep.errors import ConfigError
from sweep.inputs.config import ModelConfig
from sweep.inputs.embedding_loader import open_table
from sweep.inputs.input_store import InputStore

folder, cache, adapters, prompts, factors = json.loads(sys.argv[1])
inputs = InputStore()
checkpoint = inputs.checkpoint(ModelConfig(id=folder))
found = {name: inputs.adapter(ModelConfig(id=folder, lora=name)) for name in adapters}
tables = {name: open_table(checkpoint, adapter) for name, adapter in found.items()}
files = replace(checkpoint.files, adapters=tuple(adapter.files for adapter in found.values() if adapter))
engine = VLLMConfig(max_num_seqs=16, window=16, kv_cache_gib=0.1).open(files, 128, Path(cache))
output = {"identity": [], "wrong": []}

def check(name, table):
    adapter = tables[name].adapter_folder
    check_identity(engine, [IdentityPrompt(str(ids), tuple(ids), table.rows(ids), adapter) for ids in prompts], 8)

for name in adapters:
    check(name, tables[name])
try:
    check(adapters[-1], tables[None])  # rows without the adapter's change
except ConfigError as error:
    output["wrong"] = str(error)
sampling = Sampling(8, ignore_eos=True)
requests = [
    Request((a, f, i), tuple(ids), tables[name].rows(ids) * factor, sampling, adapter=tables[name].adapter_folder)
    for i, ids in enumerate(prompts) for f, factor in enumerate(factors) for a, name in enumerate(adapters)
]
output["answers"] = [[*answer.key, list(answer.completions[0].token_ids)] for answer in engine.generate(requests)]
engine.close()
print("OUTPUT " + json.dumps(output), flush=True)
"""
PROMPTS = [list(range(5 + i, 20 + 2 * i)) for i in range(3)]
FACTORS = [1.0, 1.5]


def test_adapters_answer_as_peft_does(vllm_cache: Path, tmp_path: Path) -> None:
    """One adapter of attention, one that also changes embeddings, and none, in one batch."""
    model = make_model(tmp_path / "model", "llama-tied")  # its head is the embedding table, without the change
    attention = make_adapter(model, tmp_path / "attention", ["q_proj", "v_proj"])
    targets = ["q_proj", "down_proj", "embed_tokens"]
    patterns = {"alpha_pattern": {"embed_tokens": 4}, "rank_pattern": {"down_proj": 12}, "use_rslora": True}
    embedding = make_adapter(model, tmp_path / "embedding", targets, 2, **patterns)
    adapters: list[Path | None] = [None, attention, embedding]
    names = [adapter and str(adapter) for adapter in adapters]
    arguments = json.dumps([str(model), str(vllm_cache), names, PROMPTS, FACTORS])
    done = subprocess.run([sys.executable, "-c", SCRIPT, arguments], capture_output=True, text=True, timeout=400)
    lines = [line for line in done.stdout.splitlines() if line.startswith("OUTPUT ")]
    assert lines, done.stderr[-3000:]
    output: dict[str, Any] = json.loads(lines[0].removeprefix("OUTPUT "))
    assert output["wrong"].startswith(f"The model fails the identity check with the adapter {embedding}: the prompt")
    answers = {(a, f, i): tuple(tokens) for a, f, i, tokens in output["answers"]}
    expected = {
        (a, f, i): peft_answer(model, adapter, ids, factor, 8)
        for a, adapter in enumerate(adapters)
        for f, factor in enumerate(FACTORS)
        for i, ids in enumerate(PROMPTS)
    }
    assert answers == expected
    assert len(set(answers.values())) > len(answers) // 2


def test_a_sweep_over_adapters(tiny: Path, vllm_cache: Path, tmp_path: Path) -> None:
    """One engine start; each point's answers are PEFT's, and forced answers are scored with the adapter."""
    attention = make_adapter(tiny, tmp_path / "attention", ["q_proj", "v_proj"])
    embedding = make_adapter(tiny, tmp_path / "embedding", ["down_proj", "embed_tokens"], 2)
    texts = ["Hello there", "Why is the sky blue?"]
    overrides = [f"model.id={tiny}", "model.dtype=auto", f"model.lora=null,{attention},{embedding}", "transform=scale"]
    overrides += ["transform.factor=1.5", f"prompts.items={texts}", "prompts.chat=false", "sampling.max_tokens=6"]
    overrides += [
        "sampling.ignore_eos=true",
        "scoring.teacher_forced=true",
        "engine.max_num_seqs=8",
        f"sweep.dir={tmp_path / 'outputs'}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "sweep", *overrides], cwd=tmp_path, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = generations(tmp_path / "outputs")
    assert len(found) == 6
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    for name, answers in found.items():
        adapter = next((folder for folder in (attention, embedding) if str(folder) in name), None)
        factor = 1.0 if name.startswith("control") else 1.5
        expected = [peft_answer(tiny, adapter, tokenizer(text)["input_ids"], factor, 6) for text in texts]
        assert [tuple(tokens) for _, tokens in answers] == expected, name
