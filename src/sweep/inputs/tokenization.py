"""Encoding of prompts to token ids, with the position of each message's text among them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from typing import Any

from sweep.errors import ConfigError
from sweep.inputs.chat_template import (
    KWARGS,
    Clock,
    check_variables,
    reads_clock,
    render_all,
    unread_keys,
    with_template,
)
from sweep.inputs.checkpoint import Checkpoint
from sweep.inputs.layout import Characters, Content, Layout, decoded_offsets, locate_contents, mark
from sweep.inputs.prompts import Prompt
from sweep.inputs.special_tokens import Escape, check_texts, control_tokens
from sweep.util.counts import counted

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt with its token ids and their positions in the rendered text.

    Attributes:
        prompt: the prompt.
        layout: the rendered text, its tokens and their positions.
        plain: ranges of the rendered text in which control tokens are text.
    """

    prompt: Prompt
    layout: Layout
    plain: tuple[Characters, ...] = ()

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The prompt's token ids."""
        return self.layout.token_ids


Render = Callable[..., list[str]]  # (chats, tools=…) -> the rendered chats


def encode(
    prompts: Sequence[Prompt],
    checkpoint: Checkpoint,
    *,
    variables: Mapping[str, Any] | None = None,
    now: Clock = datetime.now,
    dated: bool = False,
    special_tokens: str = "warn",
    template: str | None = None,
    prefill: bool = False,
    variables_key: str = KWARGS,
) -> list[EncodedPrompt]:
    """Encode prompts to token ids: chats by the model's template with its generation prompt, plain text as it is.

    Args:
        prompts: the prompts.
        checkpoint: the model, with its tokenizer.
        variables: variables for the chat template; see `prompts.template_kwargs`.
        now: returns the time, for templates that read the clock.
        dated: whether the user has set the date.
        special_tokens: handling of control tokens in prompt texts; see `check_texts`.
        template: file with a chat template to use instead of the model's.
        prefill: whether the model continues the last message of each chat.
        variables_key: configuration key of the variables, for errors.

    Raises:
        ConfigError: the model has no chat template, the template rejects a chat, or a text has no tokens; see also
            `check_texts`.
    """
    tokenizer = checkpoint.tokenizer if template is None else with_template(checkpoint.tokenizer, template)
    chat = any(prompt.messages for prompt in prompts)
    if chat and not tokenizer.chat_template:
        advice = ", which chats need. Choose a model that has one."
        if all(prompt.reading.text for prompt in prompts):
            advice = ". Set prompts.chat=false to send prompts as plain text."
        raise ConfigError(f"The model {checkpoint.model.id!r} has no chat template{advice}")
    if variables and not chat:
        raise ConfigError(f"{variables_key}: no prompt is a chat, so no chat template reads them.")
    if variables:
        check_variables(variables, tokenizer, checkpoint.model.id, variables_key)
    if dated and not (chat and reads_clock(tokenizer)):
        reason = "its chat template does not read the clock" if chat else "no prompt is a chat"
        log.warning("prompts.date has no effect on the model %r: %s.", checkpoint.model.id, reason)
    if unread := unread_keys([prompt.messages or () for prompt in prompts], tokenizer):
        shown = ", ".join(f"messages.{key}" for key in unread)
        log.warning(
            "The chat template of %r does not mention %s, which probably has no effect.", checkpoint.model.id, shown
        )
    render_chats = partial(render_all, tokenizer=tokenizer, variables=variables, now=now, dated=dated, prefill=prefill)
    placeholders = sorted({place.name for prompt in prompts for place in prompt.places if place.kept})
    tokenize = Tokenize(tokenizer, [f"{{{name}}}" for name in placeholders])
    affected = check_texts(prompts, tokenizer, special_tokens)
    escaped = affected if special_tokens == "escape" else ()
    return [_encoded(prompt, render_chats, tokenize, prompt.id in escaped) for prompt in prompts]


def check_lengths(encoded: Sequence[EncodedPrompt], limit: int) -> None:
    """Check that every prompt leaves room for an answer.

    Raises:
        ConfigError: names the longest prompt, its length and the limit.
    """
    longest = max(encoded, key=lambda e: len(e.token_ids))
    if len(longest.token_ids) >= limit:
        raise ConfigError(
            f"The prompt {longest.prompt.id!r} has {counted(len(longest.token_ids), 'token')}; "
            f"the context is {limit}, which leaves no room for an answer. Shorten the prompt, or raise "
            "engine.max_model_len if it is set."
        )


class Tokenize:
    """A tokenizer that treats some texts as units, which are tokenized by themselves whatever surrounds them.

    Owned by one thread. A tokenizer with units is a copy; the original stays unchanged.
    """

    def __init__(self, tokenizer: Any, units: Sequence[str] = ()) -> None:
        self._tokenizer, self._units = tokenizer, dict[int, list[int]]()
        self._control = control_tokens(tokenizer)
        if units:
            from tokenizers import AddedToken

            self._tokenizer = copy.deepcopy(tokenizer)
            self._tokenizer.add_tokens([AddedToken(unit, normalized=False, special=True) for unit in units])
            for unit in units:
                unit_ids = tokenizer(unit, add_special_tokens=False)["input_ids"]
                self._units[self._tokenizer.convert_tokens_to_ids(unit)] = unit_ids

    def __call__(
        self, text: str, add_special_tokens: bool, plain: Sequence[Characters] = ()
    ) -> tuple[list[int], list[Characters] | None]:
        """Return a text's tokens and their characters; None for the characters if they cannot be determined.

        Control tokens within `plain` are treated as text, which requires a fast tokenizer.
        """
        fast = self._tokenizer.is_fast
        encoding = self._tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=fast)
        ids = list(encoding["input_ids"])
        offsets = list(encoding["offset_mapping"]) if fast else decoded_offsets(ids, text, self._tokenizer)
        if plain and offsets is not None:
            ids, offsets = self._escape(text, ids, offsets, plain)
        if not self._units:
            return ids, offsets
        lengths = [len(self._units.get(token, (token,))) for token in ids]
        if offsets is not None:
            offsets = [place for place, length in zip(offsets, lengths, strict=True) for _ in range(length)]
        return [unit_token for token in ids for unit_token in self._units.get(token, (token,))], offsets

    @cached_property
    def _escape(self) -> Escape:
        return Escape(self._tokenizer, self._control)


def _encoded(prompt: Prompt, render_chats: Render, tokenize: Tokenize, escaped: bool) -> EncodedPrompt:
    contents: tuple[Content, ...] | None
    repeated = False
    if prompt.messages is None:
        text, contents = prompt.text, (Content("user", 0, len(prompt.text)),)
    else:
        marked = [_marked(message, i) for i, message in enumerate(prompt.messages)]
        try:
            text, skeleton = render_chats([prompt.messages, marked], tools=prompt.tools)
            contents = locate_contents(text, skeleton, prompt.messages)
            repeated = any(skeleton.count(mark(i)) > 1 for i in range(len(marked)))
        except ConfigError as error:
            raise ConfigError(f"Prompt {prompt.id!r}: {error}") from error
    if escaped and (contents is None or repeated):
        raise ConfigError(
            f"prompts.special_tokens=escape: the text of the prompt {prompt.id!r} contains control tokens, and the "
            "chat template rewrites or repeats it. Change the text, or set prompts.special_tokens=allow."
        )
    plain = tuple((content.start, content.stop) for content in contents or ()) if escaped else ()
    ids, offsets = tokenize(text, add_special_tokens=prompt.messages is None, plain=plain)
    if not ids:
        raise ConfigError(f"The prompt {prompt.id!r} has no tokens.")
    if offsets is None:
        contents, offsets = None, [(0, 0)] * len(ids)
    places = _places(prompt, text, contents) if contents is not None else ()
    return EncodedPrompt(prompt, Layout(tuple(ids), text, tuple(offsets), contents, places), plain)


def _marked(message: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Return a message with a mark in place of its text; unchanged if it has no text."""
    content = message.get("content")
    return dict(message) | ({"content": mark(index)} if isinstance(content, str) and content else {})


def _places(prompt: Prompt, text: str, contents: Sequence[Content]) -> tuple[tuple[str, Characters], ...]:
    """Return the placeholders' characters in the rendered prompt."""
    ranges = []
    for place in prompt.places:
        content = contents[place.message]
        message_text = prompt.messages[place.message]["content"] if prompt.messages else prompt.text
        shift = content.start - message_text.index(text[content.start : content.stop])
        ranges.append((place.name, (place.start + shift, place.stop + shift)))
    return tuple(ranges)
