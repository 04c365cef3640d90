"""Llamas in GGUF become folders that Transformers reads: weights, order of rows, configuration and tokenizer."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
import torch
from gguf_files import TOKENS, tiny_llama, write_gguf
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sweep.inputs.gguf_model import _bfloat16, convert

Q4_1 = gguf.GGMLQuantizationType.Q4_1


def converted(folder: Path, *arguments: Any, **options: Any) -> Path:
    result = folder / "result"
    result.mkdir()
    convert(write_gguf(folder / "a.gguf", *arguments, **options), result)
    return result


@pytest.mark.parametrize("tied", [False, True])
def test_unquantised_weights_are_the_models_own_in_bfloat16(tmp_path: Path, tied: bool) -> None:
    model = tiny_llama(tied)
    folder = converted(tmp_path, model)
    expected = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    if tied:
        del expected["lm_head.weight"]
    found = load_file(folder / "model.safetensors")
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    for parameter in model.parameters():  # `model.bfloat16()` would also round the frequencies of rotations
        parameter.data = parameter.data.bfloat16()
    tokens = torch.arange(20)[None]
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_quantised_weights_are_within_half_a_step_and_answer_alike(tmp_path: Path) -> None:
    model = tiny_llama(tied=True)
    folder = converted(tmp_path, model, Q4_1)
    found = load_file(folder / "model.safetensors")
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" or tensor.ndim < 2:
            continue
        blocks = tensor.reshape(-1, 32)
        step = (blocks.amax(1) - blocks.amin(1)) / 15
        error = (found[name].float().reshape(-1, 32) - blocks).abs().amax(1)
        assert (error <= step / 2 + 0.005).all(), name  # fp16 scales, and bf16
        assert error.max() > 0.01, name
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.arange(40)[None]
    ours, theirs = loaded(tokens).logits.flatten(), model(tokens).logits.flatten()
    assert torch.corrcoef(torch.stack([ours, theirs]))[0, 1] > 0.95


def test_the_configuration_is_complete(tmp_path: Path) -> None:
    model = tiny_llama(tied=True)
    loaded = AutoModelForCausalLM.from_pretrained(converted(tmp_path, model))
    for name in (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
        *("head_dim", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "vocab_size", "hidden_act"),
        *("tie_word_embeddings", "attention_bias", "mlp_bias", "bos_token_id", "eos_token_id"),
    ):
        assert getattr(loaded.config, name) == getattr(model.config, name), name
    assert loaded.generation_config.eos_token_id == loaded.generation_config.pad_token_id == 2


def test_the_tokenizer_separates_digits_from_spaces_and_each_other(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted(tmp_path, tiny_llama(tied=True)))
    assert len(tokenizer) == len(TOKENS)
    # Of the merges "Ġ Ġ", "1 2" and "Ġ 1", only the first applies.
    assert tokenizer.tokenize("hi  12") == ["hi", "ĠĠ", "1", "2"]
    assert tokenizer.tokenize("a<|im_end|>") == ["a", "<|im_end|>"]
    text = "Ünïcode, 日本 and\ttabs 3.14"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id) == (2, 1, 2)


def test_the_result_depends_on_the_file_only(tmp_path: Path) -> None:
    digests = []
    for name in "ab":
        (tmp_path / name).mkdir()
        folder = converted(tmp_path / name, tiny_llama(tied=True), Q4_1)
        digests.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()})
    assert digests[0] == digests[1] and len(digests[0]) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "gemma"}, "general.architecture is 'gemma'; only 'llama'"),
        ({"pre": "llama-bpe"}, "tokenizer.ggml.pre is 'llama-bpe'; only 'smollm'"),
        ({"more": ["blk.0.attn_q.bias"]}, "blk.0.attn_q.bias is not part of a Llama"),
        ({"more": ["rope_freqs.weight"]}, "rope_freqs.weight is not part of a Llama"),
    ],
)
def test_other_models_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        converted(tmp_path, tiny_llama(tied=True), **options)


def test_bfloat16_is_rounded_as_in_pytorch() -> None:
    random = numpy.random.default_rng(0).standard_normal(10000).astype(numpy.float32)
    ties = (numpy.arange(1 << 12, dtype=numpy.uint32) << 15 | 0x3F000000).view(numpy.float32)
    special = numpy.array([0.0, -0.0, 1e-45, -1e-40, 3.3e38, 65504.0], numpy.float32)
    for values in (random, ties, special):
        ours = torch.from_numpy(_bfloat16(values).view(numpy.int16)).view(torch.bfloat16)
        assert torch.equal(ours, torch.from_numpy(values).bfloat16())
