"""Cost of reading embedding rows of a model of 1.2B shape: memory-mapped, as in a sweep, and by `from_pretrained`.

    .venv/bin/python scripts/bench/bench_embeddings.py [--repeats 3]

Writes a model of Llama-3.2-1B's shape with random weights (bf16, tied, vocabulary 128,256 × 2,048; 2.5 GB) to a
temporary folder. Each method runs in a fresh process that has imported PyTorch and Transformers' configurations. The
process opens the table and reads the rows of 64 prompts × 16 tokens, then those of 512 × 256, prompt by prompt.

`MiB` is the peak memory above the imports after the first 64 prompts, including mapped pages. `own MiB` excludes pages
of files. Cold: the files' pages were dropped from the page cache before; warm: they are cached.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

METHODS = ("mapped", "from_pretrained", "from_pretrained in float32")
SMALL, LARGE = (64, 16), (512, 256)  # prompts and tokens of each


def make_model(folder: Path) -> None:
    """Write the checkpoint, tied as Llama-3.2-1B is."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(folder)


def measure(method: str, folder: Path) -> dict[str, float]:
    """Measure one method in this process."""
    import torch

    draw, sizes = torch.Generator().manual_seed(0), [SMALL[1]] * SMALL[0] + [LARGE[1]] * LARGE[0]
    ids = [torch.randint(128256, (size,), generator=draw).tolist() for size in sizes]
    few, many = ids[: SMALL[0]], ids[SMALL[0] :]
    from transformers import AutoConfig

    from sweep.inputs import embedding_loader
    from sweep.inputs.checkpoint import find
    from sweep.inputs.config import ModelConfig

    AutoConfig.from_pretrained(folder)
    base, anonymous, began = _peak(), _anonymous(), time.monotonic()
    if method == "mapped":
        rows: Any = embedding_loader.open_table(find(ModelConfig(id=str(folder), dtype="auto"))).rows
    else:
        from transformers import AutoModelForCausalLM

        dtype = torch.float32 if method.endswith("float32") else torch.bfloat16
        layer = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).get_input_embeddings()

        def rows(tokens: list[int]) -> torch.Tensor:
            with torch.inference_mode():
                return layer(torch.as_tensor(tokens)).float()

    opened = time.monotonic() - began
    read = sum(len(rows(tokens)) for tokens in few)
    seconds, peak, own_memory = time.monotonic() - began, _peak() - base, _anonymous() - anonymous
    assert read == SMALL[0] * SMALL[1]
    began = time.monotonic()
    for tokens in many:
        rows(tokens)
    gathered = time.monotonic() - began
    classes = float(any(name.startswith("transformers.models.llama.modeling") for name in sys.modules))
    return {
        "open": opened,
        "seconds": seconds,
        "MiB": peak,
        "own MiB": own_memory,
        "gather": gathered,
        "model class": classes,
    }


def _peak() -> float:
    """Return this process's peak memory so far in MiB."""
    return _status("VmHWM")


def _anonymous() -> float:
    """Return this process's memory that is not a page of a file, in MiB."""
    return _status("RssAnon")


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key))) / 1024


def drop(folder: Path) -> None:
    """Drop the files' pages from the page cache."""
    for file in folder.glob("*.safetensors"):
        number = os.open(file, os.O_RDONLY)
        os.fsync(number)
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(number)


def main() -> None:
    """Measure all methods and print medians and ranges."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--be", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.be and options.be[0] == "maker":
        return make_model(Path(options.be[1]))
    if options.be:
        print(json.dumps(measure(options.be[0], Path(options.be[1]))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, __file__, "--be", "maker", name], check=True, capture_output=True)
        results: dict[tuple[str, str], list[dict[str, float]]] = {}
        for repeat in range(options.repeats):
            for method in METHODS[:: -1 if repeat % 2 else 1]:
                for state in ("cold", "warm"):
                    if state == "cold":
                        drop(folder)
                    command = [sys.executable, __file__, "--be", method, name]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    results.setdefault((method, state), []).append(json.loads(done.stdout.splitlines()[-1]))
    for (method, state), runs in sorted(results.items(), key=lambda pair: (pair[0][1], METHODS.index(pair[0][0]))):
        summary = "  ".join(
            f"{key} {statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"
            for key in runs[0]
            for values in [[run[key] for run in runs]]
        )
        print(f"{state}, {method}: {summary}")


if __name__ == "__main__":
    main()
