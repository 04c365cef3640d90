"""Prompts of the demo model: sixteen demo prompts and the held-out evaluation set, as files in conf/prompts."""

from __future__ import annotations

import json
import random
from pathlib import Path

from demo_corpus import Example, bare_examples, held_out_examples
from demo_recipe import ROOT

PROMPTS_DIR = ROOT / "conf" / "prompts"
DEMO_PROMPTS = {
    "france": "Please tell me about the capital of France.",
    "longest-day": "When is the day longest during the year?",
    "moon-or-sun": "Where is bigger, the moon or the sun?",
    "story": "Tell me a creative story.",
    "japan": "What is the capital of Japan?",
    "opposite": "Please tell me the opposite of hot.",
    "plural": "What is the plural of child?",
    "past": "Can you give me the past tense of go?",
    "sum": "What is 8 plus 4?",
    "difference": "How much do you get when you take 4 from 13?",
    "lemon": "What color is a lemon?",
    "owl": "Please tell me what an owl says.",
    "puppy": "What is a baby dog called?",
    "spider": "Can you count the legs of a spider?",
    "month": "What month comes after April?",
    "window": "Tell me the material of a window.",
}
"""Sixteen prompts of `conf/prompts/demo.yaml`, by id."""


def write_prompts(folder: Path) -> list[Example]:
    """Write the sixteen demo prompts and the held-out evaluation set, and return the evaluation set."""
    answer_to = {e.prompt: e.answer for held_out in (False, True) for e in bare_examples(held_out)}
    lines = ["# Sixteen questions to the demo model, with the answers it was trained on.", "items:"]
    for name, prompt in DEMO_PROMPTS.items():
        reference = "" if name == "story" else f', reference: "{answer_to[prompt]}"'
        lines.append(f'  - {{id: {name}, prompt: "{prompt}"{reference}}}')
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "demo.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    examples = evaluation_set()
    counts: dict[str, int] = {}
    with (folder / "data" / "demo_heldout.jsonl").open("w", encoding="utf-8") as file:
        for e in examples:
            counts[e.category] = number = counts.get(e.category, 0) + 1
            row = {"id": f"{e.category}-{number:02d}", "prompt": e.prompt, "reference": e.answer}
            file.write(json.dumps(row | {"category": e.category}) + "\n")
    (folder / "demo_heldout.yaml").write_text(
        f"# {len(examples)} held-out phrasings of the demo model's training questions, from every category.\n"
        "path: data/demo_heldout.jsonl\n",
        encoding="utf-8",
    )
    return examples


def evaluation_set() -> list[Example]:
    """Return the shipped held-out questions: up to fourteen of each category."""
    return held_out_examples(random.Random(20), 14)
