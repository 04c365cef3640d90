"""Few-shot examples: answered prompts before each prompt."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from sweep.errors import ConfigError
from sweep.inputs.config import PromptsConfig
from sweep.inputs.messages import SYSTEM_ROLES, Message
from sweep.inputs.placeholders import Place
from sweep.inputs.prompt import Prompt
from sweep.util.counts import counted

OWN_TEXT = "prompt"  # name under which a span finds a prompt's own text after the examples
SEPARATOR = "\n\n"  # between examples of plain text, as in lm-evaluation-harness


def with_shots(prompts: Sequence[Prompt], pool: Sequence[Prompt], config: PromptsConfig, where: str) -> list[Prompt]:
    """Put `prompts.shots` answered examples before each prompt.

    The choice depends only on `prompts.shots_seed`, the prompt's id and the pool. A prompt is not an example of itself,
    and neither is one with the same text. An example is answered by its first reference. In chats, examples are turns
    of user and assistant; plain texts are joined by empty lines.

    Args:
        prompts: the prompts.
        pool: prompts to choose from; those without a reference are left out.
        config: the number, the seed, and whether prompts are chats.
        where: name of the pool, for errors.

    Raises:
        ConfigError: the pool has too few examples, or examples with tools or placeholders for a transform.
    """
    answered = [prompt for prompt in pool if prompt.references]
    if bad := next((p for p in answered if p.tools or any(place.kept for place in p.places)), None):
        raise ConfigError(
            f"prompts.shots: the example {bad.id!r} of {where} has tools or placeholders of prompts.placeholders, "
            "which examples cannot have. Set prompts.shots_from to others."
        )
    return [_with_examples(prompt, _choose(prompt, answered, config, where)) for prompt in prompts]


def _choose(prompt: Prompt, answered: Sequence[Prompt], config: PromptsConfig, where: str) -> list[Prompt]:
    generator = random.Random(f"{config.shots_seed}:{prompt.id}")
    chosen: list[Prompt] = []
    for size in (min(len(answered), 2 * config.shots + 8), len(answered)):  # few are skipped
        drawn = generator.sample(range(len(answered)), size)
        chosen = [answered[i] for i in drawn if not _same(answered[i], prompt)][: config.shots]
        if len(chosen) == config.shots:
            return chosen
    raise ConfigError(
        f"prompts.shots: {where} has only {counted(len(chosen), 'other example')} with a reference for the prompt "
        f"{prompt.id!r}; {config.shots} are needed."
    )


def _same(example: Prompt, prompt: Prompt) -> bool:
    return example is prompt or (example.text == prompt.text and example.messages == prompt.messages)


def _with_examples(prompt: Prompt, examples: Sequence[Prompt]) -> Prompt:
    if prompt.messages is None:
        start = SEPARATOR.join([*(_answered(example) for example in examples), ""])
        places = tuple(replace(p, start=p.start + len(start), stop=p.stop + len(start)) for p in prompt.places)
        own = Place(OWN_TEXT, 0, len(start), len(start) + len(prompt.text), kept=False)
        return replace(prompt, text=start + prompt.text, places=_with_own(places, own))
    systems = sum(message["role"] in SYSTEM_ROLES for message in prompt.messages[:1])
    turns: list[Message] = []
    for example in examples:
        turns += [m for m in example.messages or () if m["role"] not in SYSTEM_ROLES]
        turns.append({"role": "assistant", "content": example.references[0]})
    messages = (*prompt.messages[:systems], *turns, *prompt.messages[systems:])
    moved = tuple(replace(p, message=p.message + len(turns)) if p.message >= systems else p for p in prompt.places)
    last = max(i for i, message in enumerate(messages) if message["content"] == prompt.text)
    own = Place(OWN_TEXT, last, 0, len(prompt.text), kept=False)
    return replace(prompt, messages=messages, places=_with_own(moved, own))


def _with_own(places: tuple[Place, ...], own: Place) -> tuple[Place, ...]:
    """Add the place of the prompt's own text, unless a placeholder has the name, or the text is empty."""
    taken = any(place.name == own.name for place in places) or own.start == own.stop
    return places if taken else (*places, own)


def _answered(example: Prompt) -> str:
    answer = example.references[0]
    joined = example.text[-1:].isspace() or answer[:1].isspace()
    return f"{example.text}{'' if joined else ' '}{answer}"
