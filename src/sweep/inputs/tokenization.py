"""From prompts to token ids, and where each message's own text lies among them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sweep.errors import ConfigError
from sweep.inputs.checkpoint import Checkpoint
from sweep.inputs.layout import Characters, Content, Layout, decoded_offsets, locate_contents, mark
from sweep.inputs.prompts import Prompt


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt, its token ids, and their places in its text."""

    prompt: Prompt
    layout: Layout

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The prompt's tokens."""
        return self.layout.token_ids


def encode(prompts: Sequence[Prompt], checkpoint: Checkpoint) -> list[EncodedPrompt]:
    """Turn prompts into token ids: chats by the model's template with its generation prompt, plain text as it is.

    Raises:
        ConfigError: the model has no chat template, its template refuses a chat, or a text has no tokens.
    """
    tokenizer = checkpoint.tokenizer
    if any(prompt.messages for prompt in prompts) and not tokenizer.chat_template:
        raise ConfigError(
            f"The model {checkpoint.model.id!r} has no chat template; prompts.chat=false sends prompts as plain text."
        )
    kept = sorted({place.name for prompt in prompts for place in prompt.places if place.kept})
    tokenize = Tokenize(tokenizer, [f"{{{name}}}" for name in kept])
    return [EncodedPrompt(prompt, _layout(prompt, tokenizer, tokenize)) for prompt in prompts]


def check_lengths(encoded: Sequence[EncodedPrompt], limit: int) -> None:
    """Refuse prompts that leave no room for an answer.

    Raises:
        ConfigError: names the longest such prompt, its length and the limit.
    """
    longest = max(encoded, key=lambda e: len(e.token_ids))
    if len(longest.token_ids) >= limit:
        raise ConfigError(
            f"The prompt {longest.prompt.id!r} has {len(longest.token_ids)} tokens; "
            f"the model's context is {limit}, of which an answer needs one or more."
        )


class Tokenize:
    """A tokenizer for which some texts are units: tokenized by themselves, whatever stands beside them."""

    def __init__(self, tokenizer: Any, units: Sequence[str] = ()) -> None:
        self._tokenizer, self._units = tokenizer, dict[int, list[int]]()
        if units:
            from tokenizers import AddedToken

            self._tokenizer = copy.deepcopy(tokenizer)
            self._tokenizer.add_tokens([AddedToken(unit, normalized=False, special=True) for unit in units])
            for unit in units:
                own = tokenizer(unit, add_special_tokens=False)["input_ids"]
                self._units[self._tokenizer.convert_tokens_to_ids(unit)] = own

    def __call__(self, text: str, add_special_tokens: bool) -> tuple[list[int], list[Characters] | None]:
        """Return a text's tokens and their characters; None for those if the tokenizer does not know them."""
        fast = self._tokenizer.is_fast
        done = self._tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=fast)
        ids = list(done["input_ids"])
        offsets = list(done["offset_mapping"]) if fast else decoded_offsets(ids, text, self._tokenizer)
        if not self._units:
            return ids, offsets
        lengths = [len(self._units.get(token, (token,))) for token in ids]
        if offsets is not None:
            offsets = [place for place, length in zip(offsets, lengths, strict=True) for _ in range(length)]
        return [own for token in ids for own in self._units.get(token, (token,))], offsets


def _layout(prompt: Prompt, tokenizer: Any, tokenize: Tokenize) -> Layout:
    contents: tuple[Content, ...] | None
    if prompt.messages is None:
        text, contents = prompt.text, (Content("user", 0, len(prompt.text)),)
    else:
        try:
            text = _render(prompt.messages, tokenizer)
            marked = [m | {"content": mark(i) if m["content"] else ""} for i, m in enumerate(prompt.messages)]
            contents = locate_contents(text, _render(marked, tokenizer), prompt.messages)
        except Exception as error:  # templates raise what they like, Jinja's errors among it
            raise ConfigError(f"The chat template refuses the prompt {prompt.id!r}: {error}") from error
    ids, offsets = tokenize(text, add_special_tokens=prompt.messages is None)
    if not ids:
        raise ConfigError(f"The prompt {prompt.id!r} has no tokens.")
    if offsets is None:
        contents, offsets = None, [(0, 0)] * len(ids)
    places = _places(prompt, text, contents) if contents is not None else ()
    return Layout(tuple(ids), text, tuple(offsets), contents, places)


def _render(messages: Sequence[dict[str, str]], tokenizer: Any) -> str:
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))


def _places(prompt: Prompt, text: str, contents: Sequence[Content]) -> tuple[tuple[str, Characters], ...]:
    """Return the placeholders' characters in the rendered prompt."""
    found = []
    for place in prompt.places:
        content = contents[place.message]
        own = prompt.messages[place.message]["content"] if prompt.messages else prompt.text
        shift = content.start - own.index(text[content.start : content.stop])
        found.append((place.name, (place.start + shift, place.stop + shift)))
    return tuple(found)
