"""Conversion of a Llama model in a GGUF file, as llama.cpp writes it, to a folder that Transformers and vLLM read.

The result depends only on the file: not on library versions, and not on PyTorch, which a dry run does not import.
Transformers' own reader of GGUF is not used: it needs PyTorch and accelerate, and version 5.19.0 ignores that
tokenizers of the kind `smollm` separate digits first (`a  1`: `a`, `ĠĠ`, `1`, and not `a`, `Ġ`, `Ġ`, `1`).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy

# Names in GGUF and in Transformers. Those of a layer follow `blk.<n>.` and `model.layers.<n>.`.
_MODEL_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL, _USER_DEFINED = 3, 4  # token types in GGUF


def convert(file: Path, folder: Path) -> None:
    """Write a model in bfloat16: `config.json`, `generation_config.json`, `model.safetensors` and its tokenizer.

    Args:
        file: GGUF file of the architecture `llama`, with a byte-level BPE tokenizer of the kind `smollm`.
        folder: an existing folder.

    Raises:
        ValueError: the file has another architecture or tokenizer, or tensors that a Llama does not have.
    """
    import gguf

    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    for key, expected in {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
    }.items():
        if fields.get(key) != expected:
            raise ValueError(f"{file.name}: {key} is {fields.get(key)!r}; only {expected!r} can be converted.")
    tensors = {_name(tensor.name): tensor for tensor in reader.tensors}
    config = _config(fields, tied="lm_head.weight" not in tensors)
    documents = {
        "config.json": config,
        "generation_config.json": {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
        "tokenizer.json": _tokenizer(fields),
        "tokenizer_config.json": _tokenizer_config(fields),
    }
    for name, document in documents.items():
        text = json.dumps(document, ensure_ascii=False, indent=1)
        (folder / name).write_text(text + "\n", encoding="utf-8")
    _write_weights(folder / "model.safetensors", tensors, config)


def _name(name: str) -> str:
    """Return the name in Transformers of a tensor in GGUF."""
    stem, _, suffix = name.rpartition(".")
    parts = stem.split(".")
    if suffix == "weight" and len(parts) == 1 and stem in _MODEL_NAMES:
        return f"{_MODEL_NAMES[stem]}.weight"
    if suffix == "weight" and len(parts) == 3 and parts[0] == "blk" and parts[2] in _LAYER_NAMES:
        return f"model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}.weight"
    raise ValueError(f"The tensor {name} is not part of a Llama without biases.")


def _config(fields: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    import numpy

    def read(name: str) -> Any:
        return fields[f"llama.{name}"]

    def number(name: str) -> float:
        return float(str(numpy.float32(read(name))))  # 1e-05, not the float32 next to it

    heads = read("attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": read("embedding_length"),
        "intermediate_size": read("feed_forward_length"),
        "num_hidden_layers": read("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": read("attention.head_count_kv"),
        "head_dim": read("embedding_length") // heads,
        "max_position_embeddings": read("context_length"),
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_theta": number("rope.freq_base"), "rope_type": "default"},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }


def _tokenizer(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `tokenizer.json`: digits one by one, then byte-level BPE."""
    tokens = fields["tokenizer.ggml.tokens"]
    types = fields["tokenizer.ggml.token_type"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kind == _CONTROL,
            }
            for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind in (_CONTROL, _USER_DEFINED)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in fields["tokenizer.ggml.merges"]],
        },
    }


def _tokenizer_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    tokens = fields["tokenizer.ggml.tokens"]
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    return {
        # Loads tokenizer.json as it is. Transformers 5 makes a GPT2Tokenizer without the split of digits.
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{short}_token": tokens[fields[f"tokenizer.ggml.{long}_token_id"]] for short, long in names.items()},
        "model_max_length": fields["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": fields["tokenizer.chat_template"],
    }


def _write_weights(file: Path, tensors: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Write tensors in bfloat16 as safetensors, one at a time, in the order of their names.

    NumPy has no bfloat16, and the library `safetensors` writes it only from PyTorch.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(tensors):
        shape = [int(length) for length in reversed(tensors[name].shape)]  # GGML puts the width first
        begin, end = end, end + 2 * int(tensors[name].n_elements)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for values in _values(tensors, config):
            stream.write(_bfloat16(values).tobytes())


def _values(tensors: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[numpy.ndarray[Any, Any]]:
    """Yield the tensors in float32, in the order of their names and with rows in Transformers' order."""
    import gguf

    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name in sorted(tensors):
        values = gguf.dequantize(tensors[name].data, tensors[name].tensor_type)
        projection = name.split(".")[-2]
        yield _halves_apart(values, heads[projection]) if projection in heads else values


def _halves_apart(rows: numpy.ndarray[Any, Any], heads: int) -> numpy.ndarray[Any, Any]:
    """Undo llama.cpp's order of the rows of q and k, where the two rows of each rotation are neighbours.

    Transformers has the first rows of all rotations of a head, and then the second ones.
    """
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1)
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _bfloat16(values: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
    """Return the bits of finite float32 values in bfloat16, rounded to nearest, ties to even, as PyTorch does."""
    import numpy

    bits = numpy.ascontiguousarray(values, dtype="<f4").view("<u4")
    rounded: numpy.ndarray[Any, Any] = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.astype("<u2")
