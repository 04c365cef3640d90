"""LoRA adapters of tiny models, saved by PEFT, and PEFT's own answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM


def make_adapter(model: Path, folder: Path, targets: Sequence[str], seed: int = 1, **options: Any) -> Path:
    """Write an adapter with random matrices, and return its folder."""
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model)
    settings = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"} | options
    adapted = get_peft_model(base, LoraConfig(target_modules=list(targets), **settings))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.15)
    adapted.save_pretrained(str(folder))
    return folder


def peft_answer(model: Path, adapter: Path | None, ids: Sequence[int], factor: float, tokens: int) -> tuple[int, ...]:
    """Return the greedy answer to scaled embeddings, computed by PEFT without a cache. The rows include the adapter."""
    base = AutoModelForCausalLM.from_pretrained(model).eval()
    adapted = base if adapter is None else PeftModel.from_pretrained(base, str(adapter)).eval()
    embed, answer = adapted.get_input_embeddings(), list[int]()
    with torch.inference_mode():
        rows = embed(torch.tensor([list(ids)])) * factor
        for _ in range(tokens):
            answer.append(int(adapted(inputs_embeds=rows, use_cache=False).logits[0, -1].argmax()))
            rows = torch.cat([rows, embed(torch.tensor([answer[-1:]]))], 1)
    return tuple(answer)
