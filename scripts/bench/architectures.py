"""Run the identity check on tiny random models of many families, in both engines.

Writes the table of docs/guide/models-and-engines.md.

.venv/bin/python scripts/bench/architectures.py                        # all, each in its own process: 20 minutes
.venv/bin/python scripts/bench/architectures.py llama gemma3_text      # these only; other rows stay unchanged
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

sys.path[:0] = [str(Path(__file__).parents[2] / folder) for folder in ("tests", "scripts/docs")]

from transformers import AutoConfig  # noqa: E402
from update_docs import ARCHITECTURES, with_part  # noqa: E402

from sweep.config.schema import ModelConfig  # noqa: E402
from sweep.engines import TransformersConfig, VLLMConfig  # noqa: E402
from sweep.engines.base import Engine, Generation, Request, Sampling  # noqa: E402
from sweep.engines.identity_check import IdentityPrompt, check_identity  # noqa: E402
from sweep.errors import SweepError  # noqa: E402
from sweep.inputs.checkpoint import Checkpoint, find  # noqa: E402
from sweep.inputs.embedding_loader import open_table  # noqa: E402
from sweep.inputs.embedding_table import EmbeddingTable  # noqa: E402
from tiny_models import SIZES, write_model  # noqa: E402

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
# Special features of each family, and the values that make it small; common values are in `tests/tiny_models.py`.
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
    """Check each family in its own process and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help=f"families to check: {', '.join(FAMILIES)}; default: all")
    parser.add_argument("--in-this-process", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_this_process:
        print("RESULT " + json.dumps(_check(options.in_this_process)))
        return
    text = ARCHITECTURES.read_text(encoding="utf-8")
    rows = {family: row for family in FAMILIES for row in text.splitlines() if row.startswith(f"| `{family}` |")}
    for family in options.families or FAMILIES:
        rows[family] = _row(family, _check_in_process(family))
        print(rows[family], flush=True)
    head = ["| family | what is peculiar | vLLM | Transformers | same answers |", "|---|---|---|---|---|"]
    table = "\n".join([*head, *(rows[family] for family in FAMILIES if family in rows)])
    page = with_part(ARCHITECTURES.read_text(encoding="utf-8"), "architectures", table)
    ARCHITECTURES.write_text(page, encoding="utf-8")


def _row(family: str, result: dict[str, str]) -> str:
    return f"| `{family}` | {FAMILIES[family][0]} | {result['vllm']} | {result['transformers']} | {result['same']} |"


def _check_in_process(family: str) -> dict[str, str]:
    command = [sys.executable, __file__, "--in-this-process", family]
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | settings, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return dict.fromkeys(("vllm", "transformers"), f"no answer in {TIMEOUT} s") | {"same": ""}
    for line in done.stdout.splitlines():
        if line.startswith("ERROR "):
            print(f"{family}: {line.removeprefix('ERROR ')[:300]}", flush=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        print(done.stderr[-2000:], file=sys.stderr)
        return {"vllm": f"exit code {done.returncode}", "transformers": "", "same": ""}
    result: dict[str, str] = json.loads(lines[-1].removeprefix("RESULT "))
    return result


def _check(family: str) -> dict[str, str]:
    """Return each engine's result for a family: `passes`, or the kind of failure."""
    model_type, overrides = family.split(",")[0], FAMILIES[family][1]
    with tempfile.TemporaryDirectory() as folder:
        config = AutoConfig.for_model(model_type, **_small(overrides))
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
        results, answers = {}, []
        for name, start in engines.items():
            results[name], answer = _identity_check(start, table)
            answers.append(answer)
        compared = None not in answers
        return results | {"same": ("yes" if answers[0] == answers[1] else "no") if compared else ""}


def _small(overrides: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a small configuration; None removes a common value."""
    return {key: value for key, value in (SIZES | overrides).items() if value is not None}


def _open(config: Any, checkpoint: Checkpoint) -> Engine:
    engine: Engine = config.open(checkpoint.files, MAX_MODEL_LEN, checkpoint.folder / "cache")
    return engine


def _identity_check(start: Callable[[], Engine], table: EmbeddingTable) -> tuple[str, object]:
    """Return the result of the check, and the answers to all prompts with rows at factors 1 and 2."""
    try:
        engine = start()
        check_identity(engine, [IdentityPrompt(str(ids), ids, table.rows(ids)) for ids in PROMPTS], ANSWER.max_tokens)
        requests = [
            Request((ids, factor), ids, table.rows(ids) * factor, ANSWER) for ids in PROMPTS for factor in (1.0, 2.0)
        ]
        answers = {}
        for answer in engine.generate(requests):
            assert isinstance(answer, Generation), answer
            answers[answer.key] = answer.completions[0].token_ids
        engine.close()
    except SweepError as error:
        print("ERROR", error, flush=True)
        return ("fails" if "fails the identity check" in str(error) else "does not run"), None
    return "passes", answers


if __name__ == "__main__":
    main()
