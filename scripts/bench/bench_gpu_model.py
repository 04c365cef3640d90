"""Llamas of real shapes with random weights and a generated tokenizer, and prompts of exact lengths for them.

Linear weights are N(0, 1/fan_in) and embedding rows N(0, 1). The head is untied, with three times the standard
deviation of a linear layer. Greedy answers then vary with the prompt, so that parity is a meaningful test. With
Transformers' own initialisation, models repeat one token forever.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import tiny_models

TEMPLATE_TOKENS = 4  # of a chat of one message: three marks around it, and one after it
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SHARD_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int


SHAPES = {
    "3m": Shape(192, 576, 6, 6, 6, 32, 4096),  # the demo model's, except for the vocabulary, which the prompts need
    "tiny": Shape(256, 688, 4, 4, 2, 64, 4096),
    "1b": Shape(2048, 8192, 16, 32, 8, 64, 128256),  # Llama-3.2-1B
    "8b": Shape(4096, 14336, 32, 32, 8, 128, 128256),  # Llama-3-8B
}


def make_model(shape: Shape, folder: Path, seed: int = 0) -> int:
    """Write a bf16 checkpoint, drawn on the GPU if there is one, and return its number of parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    make_tokenizer(shape.vocabulary).save_pretrained(folder)
    count, size, number = 0, 0, 0
    shard: dict[str, torch.Tensor] = {}
    file_of: dict[str, str] = {}

    def flush() -> None:
        nonlocal number, size
        number += 1
        file = f"model-{number:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        file_of.update(dict.fromkeys(shard, file))
        shard.clear()
        size = 0

    for name, tensor in _weights(shape, seed):
        shard[name] = tensor.cpu()
        count += tensor.numel()
        size += tensor.nbytes
        if size >= SHARD_BYTES:
            flush()
    if shard:
        flush()
    index = {"metadata": {"total_size": 2 * count}, "weight_map": file_of}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return count


def _weights(shape: Shape, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)
    hidden, wide, head = shape.hidden_size, shape.intermediate_size, shape.head_dim

    def matrix(out: int, into: int, std: float) -> torch.Tensor:
        return torch.randn(out, into, generator=generator, device=device, dtype=torch.bfloat16).mul_(std)

    yield "model.embed_tokens.weight", matrix(shape.vocabulary, hidden, 1.0)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        sizes = {
            "self_attn.q_proj": (shape.heads * head, hidden),
            "self_attn.k_proj": (shape.kv_heads * head, hidden),
            "self_attn.v_proj": (shape.kv_heads * head, hidden),
            "self_attn.o_proj": (hidden, shape.heads * head),
            "mlp.gate_proj": (wide, hidden),
            "mlp.up_proj": (wide, hidden),
            "mlp.down_proj": (hidden, wide),
        }
        for name, (out, into) in sizes.items():
            yield f"{prefix}{name}.weight", matrix(out, into, into**-0.5)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{name}.weight", torch.ones(hidden, dtype=torch.bfloat16)
    yield "model.norm.weight", torch.ones(hidden, dtype=torch.bfloat16)
    yield "lm_head.weight", matrix(shape.vocabulary, hidden, 3 * hidden**-0.5)


def make_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer that encodes single bytes; the other tokens are made-up words, so that any answer is text."""
    return tiny_models.make_tokenizer(unread=[f"Ġ{_word(number)}" for number in range(size - tiny_models.BYTES)])


def write_prompts(folder: Path, tokens: int, count: int) -> Path:
    """Write `count` different prompts with references, whose chats have `tokens` tokens each; return the file."""
    rng = random.Random(tokens)
    file = folder / f"prompts-{tokens}-{count}.jsonl"
    with file.open("w", encoding="utf-8") as lines:
        for number in range(count):
            text = " ".join("".join(rng.choices(LETTERS, k=rng.randint(2, 7))) for _ in range(tokens))
            prompt = text[: tokens - TEMPLATE_TOKENS - 1] + "."
            reference = " ".join(_word(rng.randrange(3000)) for _ in range(8))
            lines.write(json.dumps({"id": f"p{number:04d}", "prompt": prompt, "reference": reference}) + "\n")
    return file


def _word(number: int) -> str:
    word = LETTERS[number % 26]
    while number := number // 26:
        word += LETTERS[number % 26]
    return f"{word}{word[0]}"
