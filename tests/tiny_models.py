"""Tiny random checkpoints of real architectures, with a byte-level tokenizer and a chat template, made on the spot."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    LlavaConfig,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

VOCABULARY = 272
SPECIAL = ["<pad>", "<bos>", "<eos>", "<user>", "<assistant>"]
BYTES = len(SPECIAL) + 256  # tokens of the tokenizer
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<user>' if m.role != 'assistant' else '<assistant>' }}"
    "{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def tiny_config(family: str) -> PretrainedConfig:
    """Return the configuration of a model of some family with 2 layers and rows of width 64."""
    sizes = dict(SIZES)
    if family == "gpt2":
        return GPT2Config(
            vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=2, n_positions=512, bos_token_id=1, eos_token_id=2
        )
    if family == "opt":
        return OPTConfig(
            vocab_size=VOCABULARY, hidden_size=64, word_embed_proj_dim=64, ffn_dim=96, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip
    if family == "llava":  # a text model beside a vision tower
        vision = CLIPVisionConfig(
            hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
        )  # fmt: skip
        return LlavaConfig(text_config=LlamaConfig(**sizes), vision_config=vision, image_token_index=VOCABULARY - 1)
    if family == "granite":
        return GraniteConfig(**sizes, embedding_multiplier=12.0)
    families = {
        "llama": LlamaConfig,
        "llama-tied": LlamaConfig,
        "mistral": MistralConfig,
        "qwen2": Qwen2Config,
        "qwen3": Qwen3Config,
        "gemma": GemmaConfig,
        "gemma2": Gemma2Config,
        "gemma3": Gemma3TextConfig,
    }
    return families[family](**sizes, tie_word_embeddings=family == "llama-tied" or family.startswith("gemma"))


def make_model(
    folder: Path, family: str = "llama", dtype: torch.dtype = torch.float32, shard_size: str = "1GB", seed: int = 0
) -> Path:
    """Write a checkpoint with random weights, whose greedy answers vary with the prompt, and return its folder."""
    return write_model(folder, tiny_config(family), dtype, shard_size, seed)


def write_model(
    folder: Path, config: PretrainedConfig, dtype: torch.dtype = torch.float32, shard_size: str = "1GB", seed: int = 0
) -> Path:
    """Write a checkpoint of this configuration, and return its folder; see `make_model`."""
    torch.manual_seed(seed)
    auto_class = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    model = auto_class.from_config(config).to(dtype)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "position" not in name and "wpe" not in name:
                weight.normal_(0, 0.2)
    model.save_pretrained(folder, max_shard_size=shard_size)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_tokenizer(chat_template: bool = True, unread: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """Return a tokenizer of single bytes and a few special tokens, and of some that are only ever written."""
    known = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *unread]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(known)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=["<user>", "<assistant>"],
    )
    if chat_template:
        wrapped.chat_template = TEMPLATE
    return wrapped
