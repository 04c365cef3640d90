"""Control tokens in the texts of prompts: detection, and handling by `prompts.special_tokens`.

A tokenizer reads `<|end|>` as its control token wherever it occurs, so a text could end its own turn.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from sweep.errors import ConfigError
from sweep.inputs.layout import Characters
from sweep.inputs.prompts import Prompt
from sweep.util.counts import counted

log = logging.getLogger(__name__)

MAX_LISTED_PROMPTS = 3  # prompts listed in a warning
# Token added before all but the first piece of a text, because some tokenizers treat the start of a text differently.
_START = "\ue002start\ue002"


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """Return the texts and ids of a tokenizer's control tokens.

    These are its special tokens, and other added tokens that the chat template writes, such as `<think>`.
    """
    template, named = str(tokenizer.chat_template or ""), set(tokenizer.all_special_tokens)
    return {
        token.content: number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.content.strip() and (token.special or token.content in named or token.content in template)
    }


def check_texts(prompts: Sequence[Prompt], tokenizer: Any, policy: str) -> set[str]:
    """Find control tokens in the texts of prompts: messages, their other fields, and tools.

    Args:
        prompts: the prompts.
        tokenizer: the `transformers` tokenizer.
        policy: `prompts.special_tokens`: `warn`, `refuse`, `escape` or `allow`.

    Returns:
        The ids of prompts with control tokens in message contents; empty if `policy` is `allow`.

    Raises:
        ConfigError: the policy is to refuse them, or to escape them where that is impossible: outside message contents,
            or with a tokenizer without offsets.
    """
    if policy == "allow":
        return set()
    finder = _Finder(list(control_tokens(tokenizer)))
    affected = dict[str, str]()
    for prompt in prompts:
        tokens = dict.fromkeys(token for text in _contents(prompt) for token in finder(text))
        others = dict.fromkeys(token for text in _other_texts(prompt) for token in finder(text))
        if not tokens and not others:
            continue
        label = f"{prompt.id!r} ({', '.join(map(repr, tokens | others))})"
        if policy == "refuse":
            raise ConfigError(
                f"prompts.special_tokens=refuse: the prompt {label} contains control tokens of the model. Change the "
                "text, or set escape to send them as text, or allow."
            )
        if policy == "escape" and (others or not tokenizer.is_fast):
            where = "outside its messages' contents" if others else "and the model's tokenizer has no token offsets"
            raise ConfigError(
                f"prompts.special_tokens=escape: the prompt {label} contains control tokens {where}, so they cannot be "
                "escaped. Change the text, or set prompts.special_tokens=allow."
            )
        affected[prompt.id] = label
    if affected and policy == "warn":
        unlisted = len(affected) - MAX_LISTED_PROMPTS
        more = f" and {counted(unlisted, 'more prompt')}" if unlisted > 0 else ""
        log.warning(
            "Control tokens of the model occur in the texts of prompts %s%s. They are sent as control tokens. Set "
            "prompts.special_tokens=escape to send them as text, or refuse or allow.",
            ", ".join(list(affected.values())[:MAX_LISTED_PROMPTS]),
            more,
        )
    return set(affected)


class _Finder:
    """Finds which of a list of tokens occur in a text."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = tokens
        self._starts = {token[:2] for token in tokens}  # few, even for a thousand tokens

    def __call__(self, text: str) -> list[str]:
        if not any(start in text for start in self._starts):
            return []
        return [token for token in self._tokens if token in text]


def _contents(prompt: Prompt) -> Iterator[str]:
    if prompt.messages is None:
        yield prompt.text
    else:
        yield from (message["content"] for message in prompt.messages)


def _other_texts(prompt: Prompt) -> Iterator[str]:
    for message in prompt.messages or ():
        yield from _texts([value for key, value in message.items() if key != "content"])
    yield from _texts(list(prompt.tools))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


class Escape:
    """Tokenizes a text again between true control tokens, if it contains a control token that is meant as text.

    Owned by one thread; the tokenizer without control tokens is built on first use.
    """

    def __init__(self, tokenizer: Any, control: Mapping[str, int]) -> None:
        """Keep the control tokens of a tokenizer.

        Args:
            tokenizer: a fast `transformers` tokenizer.
            control: texts and ids of its control tokens.
        """
        self._tokenizer = tokenizer
        self._control = {number: text for text, number in control.items()}
        self._added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}

    def __call__(
        self, text: str, ids: Sequence[int], offsets: Sequence[Characters], plain: Sequence[Characters]
    ) -> tuple[list[int], list[Characters]]:
        """Return a text's tokens and their characters, without control tokens in its plain ranges.

        Args:
            text: the rendered prompt.
            ids: its tokens.
            offsets: the characters of each token.
            plain: ranges [start, stop) of the text in which control tokens are text.

        Raises:
            ConfigError: the tokenizer's vocabulary can spell a control token in one piece only.
        """
        matched = [i for i, token in enumerate(ids) if self._is_added(token, text[slice(*offsets[i])])]
        as_text = {
            i
            for i in matched
            if ids[i] in self._control and any(offsets[i][0] < b and a < offsets[i][1] for a, b in plain)
        }
        if not as_text:
            return list(ids), list(offsets)
        edges = [i for i in matched if i not in as_text]
        new_ids: list[int] = []
        new_offsets: list[Characters] = []
        for before, after in zip([-1, *edges], [*edges, len(ids)], strict=True):
            if any(before < i < after for i in as_text):
                piece_ids, piece_offsets = self._as_text(text, *self._between(before, after, offsets, len(text)))
            else:
                piece_ids, piece_offsets = list(ids[before + 1 : after]), list(offsets[before + 1 : after])
            new_ids += piece_ids + list(ids[after : after + 1])
            new_offsets += piece_offsets + list(offsets[after : after + 1])
        return new_ids, new_offsets

    def _is_added(self, token: int, text: str) -> bool:
        """Return whether a token is an added one that the text spells, or that the tokenizer inserts."""
        content = self._added.get(token)
        return content is not None and (not text or text.strip().casefold() == content.strip().casefold())

    def _between(self, before: int, after: int, offsets: Sequence[Characters], length: int) -> Characters:
        """Return the characters between two tokens; tokens without characters are at the text's start or end."""
        start = offsets[before][1] if before >= 0 else 0
        stop = offsets[after][0] if after < len(offsets) and offsets[after][1] > offsets[after][0] else length
        return start, stop

    def _as_text(self, text: str, start: int, stop: int) -> tuple[list[int], list[Characters]]:
        """Return the tokens of a part of the text, tokenized without control tokens."""
        first = _START if start else ""
        encoding = self._backend.encode(first + text[start:stop], add_special_tokens=False)
        skip, shift = bool(first), start - len(first)
        ids = [self._original_ids.get(token, token) for token in encoding.ids[skip:]]
        if unavoidable := next((i for i in ids if i in self._control and i != self._tokenizer.unk_token_id), None):
            raise ConfigError(
                f"prompts.special_tokens=escape: the model's tokenizer has {self._control[unavoidable]!r} in its "
                "vocabulary and cannot spell the text otherwise. Change the text, or set prompts.special_tokens=allow."
            )
        return ids, [(a + shift, b + shift) for a, b in encoding.offsets[skip:]]

    @cached_property
    def _backend(self) -> Any:
        """The tokenizer without its control tokens, neither as added tokens nor in its vocabulary."""
        from tokenizers import AddedToken, Tokenizer

        state = json.loads(self._tokenizer.backend_tokenizer.to_str())
        state |= {"post_processor": None, "truncation": None, "padding": None}
        names = {text: f"\ue003{number}\ue003" for number, text in self._control.items()}
        state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in names]
        _rename(state["model"], lambda piece: names.get(piece, piece), names)
        backend = Tokenizer.from_str(json.dumps(state))
        backend.add_special_tokens([AddedToken(_START, normalized=False, special=True)])
        return backend

    @cached_property
    def _original_ids(self) -> dict[int, int]:
        """Token ids of added tokens in the original tokenizer, by their ids in the reduced one."""
        moved = ((self._backend.token_to_id(text), number) for number, text in self._added.items())
        return {moved_to: number for moved_to, number in moved if moved_to is not None}


def _rename(model: dict[str, Any], name: Callable[[str], str], renamed: dict[str, str]) -> None:
    """Rename pieces of a tokenizer's vocabulary, keeping their ids, to names that do not occur in texts."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {name(piece): number for piece, number in vocabulary.items()}
    else:  # Unigram: a list of (piece, score)
        model["vocab"] = [[name(piece), score] for piece, score in vocabulary]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = name(model["unk_token"])
    if merges := model.get("merges"):
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
        model["merges"] = [[a, b] for a, b in pairs if not {a, b, a + b} & renamed.keys()]
