#!/usr/bin/env bash
# GGUF: a bf16 tensor comes as bytes of double width, and its shape in the order of GGML.
#
# Versions: gguf 0.19.0, numpy 2.3.5.
# Behaviour: of a BF16 tensor `data` is uint8, twice as wide as the tensor; `shape` has the width first, unlike `data`.
#   `dequantize` gives float32 in the shape of `data`. Whoever reads `data` as numbers gets other ones, without an error.
# Seen:
#   data uint8 [2, 6], shape [3, 2], dequantized float32 [2, 3]: [[1.0, -2.0, 0.5], [4.0, 0.0, 8.0]]
# Exits non-zero if that changes. Needs Python 3.11 or newer, and about 100 MB while it runs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile gguf==0.19.0 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import gguf
import numpy as np

values = np.array([[1.0, -2.0, 0.5], [4.0, 0.0, 8.0]], dtype=np.float32)  # all exact in bf16, the upper half of float32
halves = np.ascontiguousarray((values.view(np.uint32) >> 16).astype(np.uint16)).view(np.uint8)
writer = gguf.GGUFWriter("table.gguf", "controlvector")
writer.add_tensor("direction.1", halves, raw_dtype=gguf.GGMLQuantizationType.BF16)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
tensor = gguf.GGUFReader("table.gguf").tensors[0]
numbers = gguf.dequantize(tensor.data, tensor.tensor_type)
shape = [int(length) for length in tensor.shape]
print(
    f"data {tensor.data.dtype} {list(tensor.data.shape)}, shape {shape}, "
    f"dequantized {numbers.dtype} {list(numbers.shape)}: {numbers.tolist()}"
)
assert tensor.data.dtype == np.uint8 and list(tensor.data.shape) == [2, 6] and shape == [3, 2]
assert numbers.dtype == np.float32 and numbers.tolist() == values.tolist()
PYTHON
