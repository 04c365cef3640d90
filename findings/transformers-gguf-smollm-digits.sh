#!/usr/bin/env bash
# Transformers: of a GGUF file with the tokenizer kind "smollm", digits are not separated before the byte-level split.
#
# Versions: transformers 5.19.0, gguf 0.19.0, torch 2.13.0.
# Behaviour: llama.cpp splits at each digit first, and then as GPT-2 does, like the model's own tokenizer.json (Digits,
#   then ByteLevel). Transformers does not know the kind and only splits as GPT-2 does. Where the spaces before a number
#   are more than one, tokens differ, without a message.
# Seen:
#   expected ['a', 'ĠĠ', '1'], got ['a', 'Ġ', 'Ġ', '1']
# Exits non-zero if that changes. Needs Python 3.11 or newer, and several GB while it runs (PyTorch).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile transformers==5.19.0 gguf==0.19.0 torch==2.13.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import gguf
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

tokens = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĠĠ"]
writer = gguf.GGUFWriter("a.gguf", "llama")
writer.add_block_count(1)
writer.add_context_length(64)
writer.add_embedding_length(32)
writer.add_feed_forward_length(32)
writer.add_head_count(1)
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("smollm")
writer.add_token_list(tokens)
writer.add_token_types([3] + [1] * (len(tokens) - 1))
writer.add_token_merges(["Ġ Ġ"])
writer.add_bos_token_id(0)
writer.add_eos_token_id(0)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
got = AutoTokenizer.from_pretrained(".", gguf_file="a.gguf").tokenize("a  1")
print(f"expected {['a', 'ĠĠ', '1']}, got {got}")
assert got == ["a", "Ġ", "Ġ", "1"]
PYTHON
