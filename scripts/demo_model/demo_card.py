"""Card of the demo model: its scores, measured on the saved checkpoint, and its text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from demo_corpus import bare_examples
from demo_facts import ANY_STORY, categories
from demo_prompts import DEMO_PROMPTS, evaluation_set
from demo_recipe import Recipe
from score_demo_model import answers, exact_match
from transformers import AutoModelForCausalLM, AutoTokenizer

FACTORS = (0.1, 0.25, 0.5, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0)
SIGMAS = (0.25, 0.5, 1.0, 2.0)


def write_card(out: Path, recipe: Recipe) -> None:
    """Score the saved checkpoint (in fp32, unperturbed also in bf16) and write its card."""
    torch.set_num_threads(1)  # for such a small model, more threads are slower, much slower on a busy machine
    tokenizer = AutoTokenizer.from_pretrained(out)
    full, half = (
        AutoModelForCausalLM.from_pretrained(out, dtype=dtype).eval() for dtype in (torch.float32, torch.bfloat16)
    )
    unseen = evaluation_set()
    scored = [e for e in bare_examples(held_out=False) if e.category != ANY_STORY]
    seen = random.Random(21).sample(scored, len(unseen))
    scores = {
        "parameters": f"{full.num_parameters():,}",
        "facts": sum(len(c.facts) for c in categories()),
        "categories": len(categories()),
        "questions": len(unseen),
        "trained": sum(len(c.trained) for c in categories()),
        "unseen": sum(len(c.held_out) for c in categories()),
    }
    match = {
        name: f"{exact_match(model, tokenizer, examples):.1%}"
        for name, model, examples in (
            ("seen32", full, seen),
            ("seen16", half, seen),
            ("unseen32", full, unseen),
            ("unseen16", half, unseen),
        )
    }
    scale = [(f, exact_match(full, tokenizer, unseen, factor=f)) for f in FACTORS]
    noise = [(s, exact_match(full, tokenizer, unseen, sigma=s)) for s in SIGMAS]
    demo = dict(zip(DEMO_PROMPTS, answers(full, tokenizer, list(DEMO_PROMPTS.values())), strict=True))
    card = CARD.format(
        **scores,
        **match,
        recipe=_recipe_line(recipe),
        seed=recipe.seed,
        steps=recipe.steps,
        threads=recipe.threads,
        layers=recipe.layers,
        hidden=recipe.hidden_size,
        heads=recipe.heads,
        head=recipe.hidden_size // recipe.heads,
        wide=recipe.intermediate_size,
        vocabulary=recipe.vocabulary,
        scale=_rows(scale),
        noise=_rows(noise),
        demo="\n".join(f"| {DEMO_PROMPTS[k]} | {v} |" for k, v in demo.items()),
    )
    (out / "README.md").write_text(card, encoding="utf-8")
    print(card)


def _rows(table: Sequence[tuple[float, float]]) -> str:
    return "\n".join(f"| {strength:g} | {match:.1%} |" for strength, match in table)


def _recipe_line(recipe: Recipe) -> str:
    return ", ".join(f"`{name}={value}`" for name, value in asdict(recipe).items())


CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# The demo model

A Llama of {parameters} parameters that ships with this project, so that a first sweep needs no model hub and no GPU.
It answers {facts} small facts in {categories} categories (capitals, opposites, plurals, sums, sizes, seasons, …) and
tells short stories. It knows nothing else.

## Training

    python scripts/demo_model/train_demo_model.py --seed {seed} --steps {steps} --threads {threads}

from random weights, in fp32 on a CPU (14 minutes on two cores), on a corpus from
`scripts/demo_model/demo_corpus.py`: no text was downloaded or copied. AdamW, cosine schedule, loss on the answers
only; no noise, scaling or dropout. Same seed, steps and threads: same model on the same kind of machine; elsewhere
rounding differs.
Recipe: {recipe}.

- Architecture: `LlamaForCausalLM`, {layers} layers, hidden size {hidden}, {heads} heads of {head}, intermediate size
  {wide}, RoPE, context 512, output table of its own, weights in bf16.
- Tokenizer: byte-level BPE of {vocabulary} tokens, trained on the corpus; chat template for system, user, assistant.
- Data: {trained} phrasings in all, 12 to 15 for each category, in which every fact of the category is asked; {unseen}
  more, three for each category, were held out of training entirely. A held-out question is a new phrasing of a taught
  fact, never a new fact. About 40 % of the training questions carry a greeting, a system message or sloppy typing.

## Scores

Exact match of the whole answer, greedy, through the chat template, by transformers on a CPU;
{questions} questions in either row. The held-out ones are `conf/prompts/data/demo_heldout.jsonl`, up to 14 of each
category; the trained ones are drawn from all, of which more than a third are sums and differences, what it is worst at.

| phrasings | fp32 | bf16 |
|---|---|---|
| trained | {seen32} | {seen16} |
| held out | {unseen32} | {unseen16} |

Held-out phrasings with the prompt's embeddings multiplied by a factor:

| factor | fp32 |
|---|---|
{scale}

and with Gaussian noise added, sigma in units of the embedding table's standard deviation:

| sigma | fp32 |
|---|---|
{noise}

It was not trained on scaled or noisy input, but it was selected for this curve. Of about fourteen short trial runs with
other sizes, vocabularies, embedding spreads and answer forms, most hardly reacted up to a factor of 2. The recipe comes
from a run that did. The trials were also scored on a part of these held-out questions, so the held-out score is
slightly too high. Three things probably make it sensitive: large embedding rows (a wide spread compared with the
blocks' outputs), a small vocabulary (words are combined from several rows), and answers that begin with the requested
fact. The trials changed several of these at once and cannot separate them. The curve says little about where other
models break.

The sixteen demo prompts, chosen among those that it answers correctly (fp32):

| prompt | answer |
|---|---|
{demo}

“Please tell me about the capital of France.”, “When is the day longest during the year?”, “Where is bigger, the moon or
the sun?” and “Tell me a creative story.” are held-out phrasings. For the story, any trained story is correct.

## Limits

The model is for demonstration only. Outside its facts it answers with one of them, confidently. It supports English
only, one turn, seasons of the northern hemisphere and American spelling. Sums and differences of numbers up to 20 are
memorised. It was not trained on contexts of more than about 170 tokens.

Licence: Apache-2.0, see `LICENSE`.
"""
