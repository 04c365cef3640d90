"""Score the demo model: its greedy answers to scaled or noisy prompts, and exact match with the trained answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from demo_corpus import Example
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

LONGEST_ANSWER = 128


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
