#!/usr/bin/env bash
# Gemma in Transformers: before 5.4, embeddings that are given are multiplied by sqrt(hidden_size), from 5.4 on not.
#
# Versions: transformers 5.3.0 and 5.4.0, torch 2.13.0, tokenizers 0.22.2.
# Behaviour: Gemma multiplies its embeddings by sqrt(hidden_size). In 5.3 the model's forward pass does it, to
#   `inputs_embeds` too, so the rows must be given as they are in the table. In 5.4 the embedding layer does it, so that
#   rows must be given multiplied. Rows that are right for one version are wrong for the other, without an error.
# Seen:
#   5.3.0: get_input_embeddings()(ids) / table rows: 1.0; given as inputs_embeds, table rows are right: True, multiplied: False
#   5.4.0: get_input_embeddings()(ids) / table rows: 4.0; given as inputs_embeds, table rows are right: False, multiplied: True
# Exits non-zero if that changes. Needs Python 3.11 or newer, and about 1 GB while it runs (3 GB with CUDA's torch).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile transformers==5.4.0 torch==2.13.0 tokenizers==0.22.2
for version in 5.3.0 5.4.0; do
    "$folder/venv/bin/pip" install --quiet --no-compile --no-deps --target "$folder/$version" "transformers==$version"
    PYTHONPATH=$folder/$version "$folder/venv/bin/python" - "$version" <<'PYTHON'
import sys

import torch
import transformers

version = sys.argv[1]
assert transformers.__version__ == version
torch.manual_seed(0)
sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, head_dim=8)
config = transformers.GemmaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, pad_token_id=None)
model = transformers.GemmaForCausalLM(config).eval()
ids = torch.tensor([[1, 2, 3, 4, 5]])
with torch.inference_mode():
    rows = model.get_input_embeddings().weight[ids]
    ratio = round(float((model.get_input_embeddings()(ids) / rows).mean()), 3)
    expected = model(input_ids=ids).logits
    raw, multiplied = (
        torch.allclose(model(inputs_embeds=given).logits, expected, atol=1e-4) for given in (rows, 4.0 * rows)
    )
print(
    f"{version}: get_input_embeddings()(ids) / table rows: {ratio}; given as inputs_embeds, table rows are right: {raw}, "
    f"multiplied: {multiplied}"
)
assert (ratio, raw, multiplied) == ((1.0, True, False) if version == "5.3.0" else (4.0, False, True))
PYTHON
done
