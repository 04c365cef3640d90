#!/usr/bin/env bash
# Transformers' cache argument: 5.24 renamed `past_key_values` to `cache`; 5.23 takes `cache=` and ignores it.
#
# Versions: transformers 5.23.0 and 5.24.0, torch 2.13.0.
# Behaviour: in 5.24 `forward` and its output call the cache `cache`; the old name works but is not in the signature.
#   In 5.23 `cache=` goes into the keyword arguments and is dropped without a word: the next token is predicted without
#   its context. So the name is to be read from the signature, not tried.
# Seen:
#   5.23.0: signature has past_key_values; cache= keeps the context: False; past_key_values= keeps it: True
#   5.24.0: signature has cache; cache= keeps the context: True; past_key_values= keeps it: True
# Exits non-zero if that changes. Needs Python 3.11 or newer, and about 1 GB while it runs (3 GB with CUDA's torch).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile transformers==5.24.0 torch==2.13.0
for version in 5.23.0 5.24.0; do
    "$folder/venv/bin/pip" install --quiet --no-compile --no-deps --target "$folder/$version" "transformers==$version"
    PYTHONPATH=$folder/$version "$folder/venv/bin/python" - "$version" <<'PYTHON'
import inspect
import sys

import torch
import transformers

version = sys.argv[1]
assert transformers.__version__ == version
torch.manual_seed(0)
sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2)
config = transformers.LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)
model = transformers.LlamaForCausalLM(config).eval()
ids, positions = torch.tensor([[1, 2, 3, 4, 5]]), torch.arange(5)[None]
names = [name for name in ("past_key_values", "cache") if name in inspect.signature(model.forward).parameters]
assert names == (["past_key_values"] if version == "5.23.0" else ["cache"]), names


def keeps_context(name: str) -> bool:
    """Whether the last token's logits are those of the whole prompt when the context comes as a cache."""
    with torch.inference_mode():
        whole = model(input_ids=ids).logits[0, -1]
        cache = getattr(model(input_ids=ids[:, :-1], use_cache=True), names[0])
        last = model(input_ids=ids[:, -1:], position_ids=positions[:, -1:], use_cache=True, **{name: cache}).logits[0, -1]
    return torch.allclose(whole, last, atol=1e-5)


new, old = keeps_context("cache"), keeps_context("past_key_values")
print(f"{version}: signature has {names[0]}; cache= keeps the context: {new}; past_key_values= keeps it: {old}")
assert (new, old) == (version == "5.24.0", True)
PYTHON
done
