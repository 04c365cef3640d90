"""Recipe of the demo model: hyperparameters, control tokens and chat template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BOS, EOS, PAD = "<|begin|>", "<|end|>", "<|pad|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
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
