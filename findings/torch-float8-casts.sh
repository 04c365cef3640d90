#!/usr/bin/env bash
# PyTorch's float8 casts: what is too large becomes 448, infinity or NaN, depending on the type.
#
# Versions: torch 2.13.0 (CPU).
# Behaviour: float8_e4m3fn has no infinity and clamps to its greatest value, infinity included; float8_e5m2 gives
#   infinity; the fnuz types give NaN. A check for finite numbers after a cast to e4m3fn sees nothing.
# Seen, for 500, 1e9 and infinity:
#   float8_e4m3fn [448.0, 448.0, 448.0]
#   float8_e5m2 [512.0, inf, inf]
#   float8_e4m3fnuz [nan, nan, nan]
#   float8_e5m2fnuz [512.0, nan, nan]
# Exits non-zero if that changes. Needs Python 3.11 or newer, and about 1 GB while it runs (3 GB with CUDA's torch).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.3.5
"$folder/venv/bin/python" - <<'PYTHON'
import torch

given = torch.tensor([500.0, 1e9, float("inf")])
seen = {
    "float8_e4m3fn": "[448.0, 448.0, 448.0]",
    "float8_e5m2": "[512.0, inf, inf]",
    "float8_e4m3fnuz": "[nan, nan, nan]",
    "float8_e5m2fnuz": "[512.0, nan, nan]",
}
for name, expected in seen.items():
    cast = str(given.to(getattr(torch, name)).float().tolist())
    print(name, cast)
    assert cast == expected, expected
PYTHON
