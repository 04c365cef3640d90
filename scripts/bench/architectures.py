"""Tries the identity gate on tiny random models of many families, in both engines, and writes the README's table of it.

.venv/bin/python scripts/architectures.py                        # all, each in a process of its own: 20 minutes
.venv/bin/python scripts/architectures.py llama gemma3_text      # these only; the other rows stay as they are
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from update_readme import README, with_part

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from transformers import AutoConfig

from sweep.config import ModelConfig
from sweep.engines import TransformersConfig, VLLMConfig
from sweep.engines.base import Engine, Generation, Request, Sampling
from sweep.engines.gate import GatePrompt, identity_gate
from sweep.errors import SweepError
from sweep.inputs.checkpoint import Checkpoint, find
from sweep.inputs.embedding import EmbeddingTable, open_table
from tiny_models import SIZES, write_model

TIMEOUT = 240  # seconds for each model
MAX_MODEL_LEN = 128
PROMPTS = [tuple(range(5, 5 + length)) for length in (3, 17, 40, 8)]
ANSWER = Sampling(max_tokens=12, ignore_eos=True)

MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MAMBA = {"mamba_d_state": 16, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_ssm": 128, "mamba_expand": 2}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "shared_expert_intermediate_size": 32,
}
MAMBA2 = {"num_heads": 8, "head_dim": 16, "state_size": 16, "expand": 2, "n_groups": 1, "intermediate_size": None}
LFM2 = {"layer_types": ["conv", "full_attention"], "block_ff_dim": 96, "conv_dim": 64, "block_dim": 64}
GEMMA3N = {
    "layer_types": ["sliding_attention", "full_attention"],
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 272,
    "num_kv_shared_layers": 0,
    "activation_sparsity_pattern": [0.0, 0.0],
    "laurel_rank": 8,
}
# What is peculiar to a family, and the values with which it gets small; `tests/tiny_models.py` has the common ones.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("dense", {}),
    "llama, tied": ("tied", {"tie_word_embeddings": True}),
    "mistral": ("dense, sliding window", {"sliding_window": 16}),
    "qwen2": ("dense, biases", {}),
    "qwen3": ("dense, norms of queries and keys", {}),
    "phi": ("partial rotary, parallel layers", {"num_key_value_heads": 2}),
    "phi3": ("dense, fused projections", {}),
    "glm4": ("partial rotary", {"partial_rotary_factor": 0.5}),
    "stablelm": ("partial rotary", {}),
    "nemotron": ("partial rotary", {}),
    "gptj": ("partial rotary", {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 512, "rotary_dim": 16}),
    "gpt_neox": ("partial rotary, parallel layers", {"num_key_value_heads": None}),
    "gpt2": ("learned positions", {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 512}),
    "opt": ("learned positions", {"word_embed_proj_dim": 64, "ffn_dim": 96}),
    "bloom": ("ALiBi, norm after the embeddings", {"n_layer": 2, "n_head": 2}),
    "falcon": ("rotary, parallel layers", {"num_kv_heads": 1, "head_dim": None}),
    "cohere": ("tied, scaled logits", {}),
    "cohere2": ("sliding window, scaled logits", {"sliding_window": 16}),
    "olmo2": ("norms after the layers", {}),
    "olmo3": ("sliding window", {"sliding_window": 16}),
    "smollm3": ("layers without positions", {}),
    "starcoder2": ("dense, biases", {}),
    "helium": ("dense", {}),
    "arcee": ("dense, ReLU²", {}),
    "seed_oss": ("dense, biases", {}),
    "ernie4_5": ("dense", {}),
    "exaone4": ("norms after the layers", {"sliding_window": 16}),
    "gemma": ("embeddings scaled as they are looked up", {}),
    "gemma2": ("the same, capped logits", {"sliding_window": 16}),
    "gemma3_text": ("the same, sliding window", {"sliding_window": 16}),
    "vaultgemma": ("the same", {"sliding_window": 16}),
    "granite": ("embeddings scaled afterwards", {"embedding_multiplier": 12.0}),
    "granitemoe": ("the same, mixture of experts", MOE | {"embedding_multiplier": 12.0}),
    "mixtral": ("mixture of experts", MOE),
    "qwen3_moe": ("mixture of experts", MOE),
    "olmoe": ("mixture of experts", MOE),
    "gpt_oss": ("mixture of experts, attention sinks", MOE | {"sliding_window": 16}),
    "falcon_h1": ("state space and attention, embeddings scaled afterwards", MAMBA | {"embedding_multiplier": 5.0}),
    "bamba": ("state space and attention", MAMBA | {"attn_layer_indices": [1]}),
    "lfm2": ("convolutions and attention", LFM2),
    "qwen3_next": ("linear attention, mixture of experts", MOE | LINEAR),
    "mamba2": ("state space alone", MAMBA2),
    "opt, projected": ("embeddings of another width", {"word_embed_proj_dim": 32, "ffn_dim": 96}),
    "gemma3n_text": ("per-layer embeddings", GEMMA3N),
}  # fmt: skip


def main() -> None:
    """Try each family in a process of its own and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help=f"of {', '.join(FAMILIES)}")
    parser.add_argument("--in-this-process", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_this_process:
        print("SAYS " + json.dumps(_try(options.in_this_process)))
        return
    text = README.read_text(encoding="utf-8")
    rows = {family: row for family in FAMILIES for row in text.splitlines() if row.startswith(f"| `{family}` |")}
    for family in options.families or FAMILIES:
        rows[family] = _row(family, _ask(family))
        print(rows[family], flush=True)
    head = ["| family | what is peculiar | vLLM | Transformers | same answers |", "|---|---|---|---|---|"]
    table = "\n".join([*head, *(rows[family] for family in FAMILIES if family in rows)])
    README.write_text(with_part(README.read_text(encoding="utf-8"), "architectures", table), encoding="utf-8")


def _row(family: str, said: dict[str, str]) -> str:
    return f"| `{family}` | {FAMILIES[family][0]} | {said['vllm']} | {said['transformers']} | {said['same']} |"


def _ask(family: str) -> dict[str, str]:
    command = [sys.executable, __file__, "--in-this-process", family]
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | settings, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return dict.fromkeys(("vllm", "transformers"), f"no answer in {TIMEOUT} s") | {"same": ""}
    for line in done.stdout.splitlines():
        if line.startswith("BUT "):
            print(f"{family}: {line.removeprefix('BUT ')[:300]}", flush=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("SAYS ")]
    if not lines:
        print(done.stderr[-2000:], file=sys.stderr)
        return {"vllm": f"ended with {done.returncode}", "transformers": "", "same": ""}
    said: dict[str, str] = json.loads(lines[-1].removeprefix("SAYS "))
    return said


def _try(family: str) -> dict[str, str]:
    """Return what the engines say of a family: `passes`, or why not."""
    model_type, peculiar = family.split(",")[0], FAMILIES[family][1]
    with tempfile.TemporaryDirectory() as folder:
        config = AutoConfig.for_model(model_type, **_small(peculiar))
        checkpoint = find(ModelConfig(id=str(write_model(Path(folder) / "model", config))))
        try:
            checkpoint.check_supported()
            table = open_table(checkpoint)
        except SweepError:
            return {"vllm": "refused", "transformers": "refused", "same": ""}
        engines: dict[str, Callable[[], Engine]] = {
            "transformers": lambda: _open(TransformersConfig(max_batch_size=8), checkpoint),
            "vllm": lambda: _open(VLLMConfig(max_num_seqs=8, kv_cache_gib=0.1), checkpoint),
        }
        said, answers = {}, []
        for name, start in engines.items():
            said[name], answer = _gate(start, table)
            answers.append(answer)
        compared = None not in answers
        return said | {"same": ("yes" if answers[0] == answers[1] else "no") if compared else ""}


def _small(peculiar: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a configuration; None takes one away that all others have."""
    return {key: value for key, value in (SIZES | peculiar).items() if value is not None}


def _open(config: Any, checkpoint: Checkpoint) -> Engine:
    engine: Engine = config.open(checkpoint.files, MAX_MODEL_LEN, checkpoint.folder / "cache")
    return engine


def _gate(start: Callable[[], Engine], table: EmbeddingTable) -> tuple[str, object]:
    """Return what the gate says, and the answers to all prompts at rows as they are and twice as large."""
    try:
        engine = start()
        identity_gate(engine, [GatePrompt(str(ids), ids, table.rows(ids)) for ids in PROMPTS], ANSWER.max_tokens)
        asked = [
            Request((ids, factor), ids, table.rows(ids) * factor, ANSWER) for ids in PROMPTS for factor in (1.0, 2.0)
        ]
        answers = {}
        for answer in engine.generate(asked):
            assert isinstance(answer, Generation), answer
            answers[answer.key] = answer.completions[0].token_ids
        engine.close()
    except SweepError as error:
        print("BUT", error, flush=True)
        return ("fails" if "fails the identity gate" in str(error) else "does not run"), None
    return "passes", answers


if __name__ == "__main__":
    main()
