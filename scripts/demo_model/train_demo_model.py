"""Train the embedded demo model: a small Llama, from scratch, on the corpus of `demo_corpus.py`.

    python scripts/demo_model/train_demo_model.py               # write the shipped checkpoint, its card, its prompts
    python scripts/demo_model/train_demo_model.py --score-only  # score the existing checkpoint and write its card

Needs torch, transformers, tokenizers and safetensors, but no network and no GPU. The same seed, steps and threads give
the same model on the same kind of machine. On other machines rounding differs.

The model's sensitivity to scaled embeddings was tuned by trial, mostly with `Recipe.embedding_std` and
`Recipe.vocabulary`. The hypothesis, which was not tested separately: RMSNorm hides a common factor from each block, but
the residual stream carries it. Therefore the size of the embedding rows relative to the blocks' outputs matters. With a
smaller vocabulary, the blocks must combine more words from several rows.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from demo_corpus import ANY_STORY, Example, bare_examples, categories, held_out_examples, training_examples
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[2]
MODEL_DIR = ROOT / "src" / "sweep" / "demo_model"
PROMPTS_DIR = ROOT / "conf" / "prompts"
BOS, EOS, PAD = "<|begin|>", "<|end|>", "<|pad|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
IGNORED = -100
FACTORS = (0.1, 0.25, 0.5, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0)
SIGMAS = (0.25, 0.5, 1.0, 2.0)
LONGEST_ANSWER = 128

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

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('Unknown role: ' + message['role']) }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Hyperparameters that determine the checkpoint."""

    seed: int = 0
    steps: int = 4200
    threads: int = 2
    tokens_per_batch: int = 1000
    peak_rate: float = 4e-3
    weight_decay: float = 0.5
    embedding_std: float = 4.0
    block_std: float = 0.02
    vocabulary: int = 512
    hidden_size: int = 192
    layers: int = 6
    heads: int = 6
    intermediate_size: int = 576


def train_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on all training questions and answers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [PAD, BOS, EOS, *ROLES]
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=specials,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    lines = sorted({text for e in bare_examples(held_out=False) for text in (e.prompt, e.answer)})
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return a Llama with random weights, with a separate standard deviation for embedding rows."""
    config = LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=recipe.block_std,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(0.0, recipe.embedding_std)
    return model


def encode(tokenizer: PreTrainedTokenizerFast, example: Example) -> tuple[list[int], int]:
    """Return the token ids of the whole chat, and the number of prompt tokens."""
    chat = [{"role": "system", "content": example.system}] if example.system else []
    chat.append({"role": "user", "content": example.prompt})
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return head + tokenizer(example.answer + EOS, add_special_tokens=False)["input_ids"], len(head)


def batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield right-padded batches of ids and labels endlessly: (rows, length), int64, with rows of similar length."""
    rng = random.Random(recipe.seed)
    while True:
        coded = [encode(tokenizer, e) for e in training_examples(rng, 4096)]
        coded.sort(key=lambda item: len(item[0]))
        groups: list[list[tuple[list[int], int]]] = [[]]
        for item in coded:
            if len(item[0]) * (len(groups[-1]) + 1) > recipe.tokens_per_batch:
                groups.append([])
            groups[-1].append(item)
        rng.shuffle(groups)
        for group in groups:
            yield _padded(group, tokenizer.pad_token_id)


def _padded(group: Sequence[tuple[list[int], int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(len(ids) for ids, _ in group)
    ids = torch.full((len(group), length), pad)
    labels = torch.full((len(group), length), IGNORED)
    for row, (tokens, head) in enumerate(group):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, head : len(tokens)] = torch.tensor(tokens[head:])
    return ids, labels


def answer_loss(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of the answers' tokens; logits are computed for these positions only."""
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    targets = labels[:, 1:]
    is_answer = targets != IGNORED
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[is_answer]), targets[is_answer])


def optimizer_for(recipe: Recipe, model: LlamaForCausalLM) -> torch.optim.AdamW:
    """Return AdamW without weight decay on embeddings and norms."""
    table, matrices, norms = [], [], []
    for name, weight in model.named_parameters():
        (table if "embed_tokens" in name else matrices if weight.ndim == 2 else norms).append(weight)
    groups = [{"params": table + norms, "weight_decay": 0.0}, {"params": matrices, "weight_decay": recipe.weight_decay}]
    return torch.optim.AdamW(groups, lr=recipe.peak_rate, betas=(0.9, 0.98))


def rate_at(recipe: Recipe, step: int) -> float:
    """Return the learning rate: a short linear warm-up, then a cosine decay to 2 % of the peak."""
    warm = min(1.0, (step + 1) / 200)
    return recipe.peak_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / recipe.steps)))


def train(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Train the model and return it in fp32."""
    torch.set_num_threads(recipe.threads)
    torch.use_deterministic_algorithms(True)
    model = new_model(recipe, tokenizer).train()
    optimizer, start, stream = optimizer_for(recipe, model), time.monotonic(), batches(recipe, tokenizer)
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(recipe, step)
        loss = answer_loss(model, *next(stream))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step:5d}  loss {loss.item():.4f}  {time.monotonic() - start:6.0f} s", flush=True)
    return model.eval()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the checkpoint in bf16, in a format that all recent Transformers and vLLM versions read."""
    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(out)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    _write_json(out / "generation_config.json", ends | {"pad_token_id": tokenizer.pad_token_id, "do_sample": False})
    tokenizer.backend_tokenizer.save(str(out / "tokenizer.json"))
    _write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "padding_side": "left",
            "model_max_length": 512,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    shutil.copyfile(ROOT / "LICENSE", out / "LICENSE")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@torch.inference_mode()
def answers(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    factor: float = 1.0,
    sigma: float = 0.0,
    seed: int = 0,
    longest: int = LONGEST_ANSWER,
) -> list[str]:
    """Return greedy answers to prompts with scaled or noisy embedding rows; `sigma` is in units of the table's std."""
    table, noise = model.get_input_embeddings(), torch.Generator().manual_seed(seed)
    spread = table.weight.float().std()
    answer_of: dict[int, str] = {}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), 64):
        chosen = order[start : start + 64]
        chats = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompts[i]}], tokenize=False, add_generation_prompt=True
            )
            for i in chosen
        ]
        batch = tokenizer(chats, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
        rows = table(batch["input_ids"]).float() * factor
        if sigma:
            rows += torch.randn(rows.shape, generator=noise) * sigma * spread
        output = model.generate(
            inputs_embeds=rows.to(table.weight.dtype),
            attention_mask=batch["attention_mask"],
            max_new_tokens=longest,
            do_sample=False,
        )
        answer_of.update(zip(chosen, tokenizer.batch_decode(output, skip_special_tokens=True), strict=True))
    return [answer_of[i] for i in range(len(prompts))]


def exact_match(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[Example],
    factor: float = 1.0,
    sigma: float = 0.0,
) -> float:
    """Return the share of examples with exactly the trained answer."""
    ordered, hits = sorted(examples, key=lambda example: len(example.answer)), 0
    for start in range(0, len(ordered), 64):
        chunk = ordered[start : start + 64]
        # A wrong answer may never end, so generation stops after the length of the longest correct answer.
        longest = max(len(tokenizer(example.answer)["input_ids"]) for example in chunk)
        generated = answers(model, tokenizer, [e.prompt for e in chunk], factor, sigma, seed=start, longest=longest)
        hits += sum(text == example.answer for text, example in zip(generated, chunk, strict=True))
    return hits / len(examples)


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


def main(argv: Sequence[str] | None = None) -> None:
    """Train and save the model, write the prompts, and score it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=MODEL_DIR, help="folder of the checkpoint")
    parser.add_argument("--prompts", type=Path, default=PROMPTS_DIR, help="folder of the demo prompts")
    parser.add_argument("--score-only", action="store_true", help="do not train; score the existing checkpoint")
    for name in ("seed", "steps", "threads"):
        default = next(field.default for field in fields(Recipe) if field.name == name)
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(argv)
    recipe = Recipe(seed=options.seed, steps=options.steps, threads=options.threads)
    if not options.score_only:
        tokenizer = train_tokenizer(recipe)
        save(train(recipe, tokenizer), tokenizer, options.out)
    write_prompts(options.prompts)
    write_card(options.out, recipe)


if __name__ == "__main__":
    main()
