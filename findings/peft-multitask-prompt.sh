#!/usr/bin/env bash
# PEFT's multitask prompt tuning: the file's `prompt_embeddings` is not the prompt.
#
# Versions: peft 0.21.2, transformers 5.19.0, torch 2.13.0.
# Behaviour: save_pretrained writes the part that all tasks share as `prompt_embeddings`, the name under which
#   PROMPT_TUNING, P_TUNING and CPT write the prompt itself. The prompt of task t is shared × (cols[t] @ rows[t]).
# Seen:
#   file: prefix_task_cols [2, 2, 2], prefix_task_rows [2, 2, 2], prompt_embeddings [2, 2]
#   shared part: [[1.0, 2.0], [3.0, -1.0]]
#   prompt of task 0: [[3.0, -2.0], [21.0, -2.0]]
#   prompt of task 1: [[1.0, 0.0], [-6.0, 4.0]]
# Exits non-zero if that changes. Needs Python 3.11 or newer, and about 1 GB while it runs (3 GB with CUDA's torch).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile peft==0.21.2 transformers==5.19.0 torch==2.13.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from peft import MultitaskPromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

sizes = dict(vocab_size=16, hidden_size=2, intermediate_size=4)
base = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1))
config = MultitaskPromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2, num_tasks=2, num_ranks=2)
model = get_peft_model(base, config).eval()
encoder = model.prompt_encoder["default"]
with torch.no_grad():
    encoder.embedding.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, -1.0]]))
    encoder.prefix_task_cols.copy_(torch.tensor([[[1.0, 0.0], [2.0, 1.0]], [[0.5, 1.0], [-1.0, 2.0]]]))
    encoder.prefix_task_rows.copy_(torch.tensor([[[3.0, -1.0], [1.0, 4.0]], [[2.0, 2.0], [0.0, -1.0]]]))
model.save_pretrained("saved")
tensors = load_file("saved/adapter_model.safetensors")
print("file:", ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(tensors.items())))
print("shared part:", tensors["prompt_embeddings"].tolist())
for task, expected in enumerate([[[3.0, -2.0], [21.0, -2.0]], [[1.0, 0.0], [-6.0, 4.0]]]):
    with torch.no_grad():
        prompt = model.get_prompt(1, task_ids=torch.tensor([task]))[0]
    print(f"prompt of task {task}:", prompt.tolist())
    product = tensors["prefix_task_cols"][task] @ tensors["prefix_task_rows"][task]
    assert prompt.tolist() == expected == (tensors["prompt_embeddings"] * product).tolist()
    assert prompt.tolist() != tensors["prompt_embeddings"].tolist()
PYTHON
