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
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from demo_card import write_card
from demo_corpus import Example, bare_examples, training_examples
from demo_prompts import PROMPTS_DIR, write_prompts
from demo_recipe import BOS, CHAT_TEMPLATE, EOS, PAD, ROLES, ROOT, Recipe
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

MODEL_DIR = ROOT / "src" / "sweep" / "demo_model"
IGNORED = -100


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
