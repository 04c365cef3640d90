"""The embedded model: its size, what it answers, how scaling breaks it, and that its test questions were never trained."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts" / "demo_model"))

import demo_corpus  # noqa: E402
import demo_facts  # noqa: E402
from demo_prompts import PROMPTS_DIR, evaluation_set  # noqa: E402
from score_demo_model import answers, exact_match  # noqa: E402
from train_demo_model import MODEL_DIR  # noqa: E402

Loaded = tuple[torch.nn.Module, object]


@pytest.fixture(scope="module")
def loaded() -> Iterator[Loaded]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for so small a model more threads are slower, much slower on a busy machine
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()
    yield model, AutoTokenizer.from_pretrained(MODEL_DIR)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def unseen() -> list[demo_corpus.Example]:
    """Ninety-six shipped held-out questions; the long stories are left out for time."""
    lines = (PROMPTS_DIR / "data" / "demo_heldout.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["category"] != "story"]
    return [
        demo_corpus.Example(row["category"], row["prompt"], row["reference"])
        for row in random.Random(0).sample(rows, 96)
    ]


def test_folder_is_small_and_complete() -> None:
    files = {path.name: path.stat().st_size for path in MODEL_DIR.iterdir()}
    assert sum(files.values()) <= 8_000_000
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "LICENSE",
        "README.md",
    } <= files.keys()


def test_answers_held_out_phrasings(loaded: Loaded, unseen: list[demo_corpus.Example]) -> None:
    assert exact_match(*loaded, unseen) >= 0.9


def test_scaling_damages_the_answers(loaded: Loaded, unseen: list[demo_corpus.Example]) -> None:
    below, whole, half_broken, broken = (
        exact_match(*loaded, unseen[:64], factor=factor) for factor in (0.25, 1.0, 2.0, 3.0)
    )
    assert whole >= 0.9 and below < whole - 0.3
    assert broken < half_broken < whole - 0.15


def test_demo_prompts(loaded: Loaded) -> None:
    items = yaml.safe_load((PROMPTS_DIR / "demo.yaml").read_text(encoding="utf-8"))["items"]
    assert [item["prompt"] for item in items[:4]] == [
        "Please tell me about the capital of France.",
        "When is the day longest during the year?",
        "Where is bigger, the moon or the sun?",
        "Tell me a creative story.",
    ]
    assert len({item["id"] for item in items}) == len(items) == 16
    given = answers(*loaded, [item["prompt"] for item in items])
    assert given[:3] == [
        "Paris is the capital of France.",
        "Summer is when the day is longest.",
        "The sun is bigger than the moon.",
    ]
    assert given[:3] == [item["reference"] for item in items[:3]]
    assert given[3].startswith("Once upon a time,") and given[3].endswith(".") and 2 <= given[3].count(". ") + 1 <= 4
    assert sum(text == item.get("reference") for text, item in zip(given, items, strict=True)) >= 14


def test_generation_stops_and_system_messages_are_known(loaded: Loaded) -> None:
    model, tokenizer = loaded
    chat = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is the capital of Japan?"},
    ]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=40, do_sample=False)[0]
    assert output[-1] == tokenizer.eos_token_id == model.generation_config.eos_token_id
    answer = output[inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "Tokyo is the capital of Japan."


def test_corpus_is_deterministic() -> None:
    first, second = (demo_corpus.training_examples(random.Random(3), 500) for _ in range(2))
    assert first == second
    shipped = (PROMPTS_DIR / "data" / "demo_heldout.jsonl").read_text(encoding="utf-8").splitlines()
    made = [(example.prompt, example.answer) for example in evaluation_set()]
    assert made == [(row["prompt"], row["reference"]) for row in map(json.loads, shipped)]
    assert len(made) >= 256
    assert {example.category for example in evaluation_set()} == {
        category.name for category in demo_facts.categories()
    } - {demo_facts.ANY_STORY}


def test_held_out_phrasings_are_not_trained() -> None:
    unseen = {demo_corpus.normalised(example.prompt) for example in demo_corpus.bare_examples(held_out=True)}
    trained = [*demo_corpus.bare_examples(held_out=False), *demo_corpus.training_examples(random.Random(4), 20_000)]
    assert not [e.prompt for e in trained if demo_corpus.normalised(e.prompt) in unseen]


def test_a_question_has_one_answer() -> None:
    answers: dict[str, str] = {}
    for held_out in (False, True):
        for example in demo_corpus.bare_examples(held_out):
            if example.category != demo_facts.ANY_STORY:
                assert answers.setdefault(example.prompt, example.answer) == example.answer
