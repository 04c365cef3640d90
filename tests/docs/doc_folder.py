"""A folder with every file that commands of the docs name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import gguf
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
    writer = gguf.GGUFWriter(made / "my-vector.gguf", "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    vectors = torch.randn(256, width, generator=torch.Generator().manual_seed(0))
    for layer in (1, 2, 3):
        writer.add_tensor(f"direction.{layer}", vectors[layer].numpy())
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    sae = made / "my-sae"
    sae.mkdir()
    weights = {
        "W_dec": vectors,
        "W_enc": vectors.T.contiguous(),
        "b_dec": vectors[0].clone(),
        "b_enc": vectors[:, 0].clone(),
    }
    save_file(weights, sae / "sae_weights.safetensors")
    origin = {"model_name": "demo", "hook_name": "hook_embed"}
    (sae / "cfg.json").write_text(json.dumps({"d_in": width, "d_sae": 256, "metadata": origin}))
    peft = made / "my-peft-checkpoint"
    peft.mkdir()
    save_file({"prompt_embeddings": torch.zeros(4, width)}, peft / "adapter_model.safetensors")
    (peft / "adapter_config.json").write_text(
        json.dumps({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, "token_dim": width})
    )
    (made / "mine.jsonl").write_text('{"id": "france", "prompt": "The capital of France?", "reference": "Paris"}\n')
    (made / "reviews.jsonl").write_text('{"prompt": "I liked it.", "reference": "positive"}\n')
    (made / "qa.jsonl").write_text('{"doc": {"question": "The capital of France?", "answer": "Paris"}}\n')
    (made / "texts.txt").write_text(
        "\n".join(f"a {colour} cat" for colour in ["red", "blue", "green", "black", "white", "tall"])
    )
    (made / "export.log").write_text("instruction,input,output\nTranslate to French.,Good morning,Bonjour\n")
    gsm8k = made / "openai" / "gsm8k" / "main"  # in the place of the hub's
    gsm8k.mkdir(parents=True)
    (gsm8k / "test.jsonl").write_text('{"question": "8 + 4?", "answer": "8 + 4 = 12. #### 12"}\n')
    (gsm8k / "train.jsonl").write_text(
        "".join(json.dumps({"question": f"{i} + 1?", "answer": f"#### {i + 1}"}) + "\n" for i in range(8))
    )
    (gsm8k.parent / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n"
        "  - {split: test, path: main/test.jsonl}\n  - {split: train, path: main/train.jsonl}\n---\n"
    )
    (made / "questions.md").write_text("# Why is the sky blue?\n\nText.\n")
    for block in blocks("jinja"):
        if name := re.match(r"\{# ([\w-]+\.jinja) #\}\n", block.text):
            (made / name[1]).write_text(block.text)
    for block in blocks("python"):
        if name := re.match(r"# ([\w/]+\.py)\n", block.text):
            (made / name[1]).parent.mkdir(exist_ok=True)
            (made / name[1]).write_text(block.text)
    return made
