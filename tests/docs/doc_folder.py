"""A folder with every file that commands of the docs name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from doc_pages import blocks
from safetensors.torch import save_file

from lora_adapters import make_adapter
from tiny_models import make_model


def make_files(made: Path) -> Path:
    """Write the files into a folder, and return it."""
    model = make_model(made / "my-model")
    make_adapter(model, made / "my-adapter", ["q_proj"])
    make_adapter(model, made / "my-other-adapter", ["embed_tokens"])
    width, names = 64, ("happy", "rows")
    for name in names:
        save_file(
            {"vector": torch.randn(1, width, generator=torch.Generator().manual_seed(0))}, made / f"{name}.safetensors"
        )
    peft = made / "my-peft-checkpoint"
    peft.mkdir()
    save_file({"prompt_embeddings": torch.zeros(4, width)}, peft / "adapter_model.safetensors")
    (peft / "adapter_config.json").write_text(
        json.dumps({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, "token_dim": width})
    )
    (made / "mine.jsonl").write_text('{"id": "france", "prompt": "The capital of France?", "reference": "Paris"}\n')
    (made / "reviews.jsonl").write_text('{"prompt": "I liked it.", "reference": "positive"}\n')
    (made / "qa.jsonl").write_text('{"doc": {"question": "The capital of France?", "answer": "Paris"}}\n')
    (made / "questions.md").write_text("# Why is the sky blue?\n\nText.\n")
    for block in blocks("python"):
        if name := re.match(r"# ([\w/]+\.py)\n", block.text):
            (made / name[1]).parent.mkdir(exist_ok=True)
            (made / name[1]).write_text(block.text)
    return made
