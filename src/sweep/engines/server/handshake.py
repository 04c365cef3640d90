"""The first words with a server: is it there, does it serve the model, and does it take its embeddings?"""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import dataclass
from typing import Any

import torch

from sweep.checks import did_you_mean
from sweep.engines.base import ModelFiles
from sweep.engines.server import KEY_VARIABLE, ServerConfig
from sweep.engines.server_http import Http, Lost, Reply
from sweep.errors import ConfigError

log = logging.getLogger(__name__)

MODELS, COMPLETIONS, VERSION = "/v1/models", "/v1/completions", "/version"
TRIES, PAUSE = 3, 0.5  # of what is asked first, and the seconds between
UNAUTHORISED = (401, 403)

_WIDTH = re.compile(r"hidden_size \d+ does not match the model's hidden_size (\d+)")
_DTYPE = re.compile(r"model's dtype torch\.(\w+)")


@dataclass(frozen=True, slots=True)
class Met:
    """What is known of a server.

    Attributes:
        model: the name under which it serves the model.
        hidden_size: the width of the model's embeddings.
        version: the server's software.
    """

    model: str
    hidden_size: int
    version: str


async def meet(http: Http, config: ServerConfig, model: ModelFiles, max_model_len: int) -> Met:
    """Find out what the server serves, and let it refuse embeddings of a kind whose refusal tells what it would take.

    Raises:
        ConfigError: it is not there, wants another key, serves another model or none that this sweep fits into, or
            takes no embeddings.
    """
    reply = await greet(http, config)
    card = _card(reply.content, config)
    room = card.get("max_model_len")
    if isinstance(room, int) and room < max_model_len:
        raise ConfigError(
            f"engine.url: the server's model has room for {room} tokens of prompt and answer, and the sweep needs "
            f"{max_model_len}: start it with --max-model-len {max_model_len}, ask for less, "
            f"or set engine.max_model_len={room}, which cuts answers."
        )
    hidden_size = _hidden_size(model)
    await _probe(http, config, card["id"], hidden_size, model)
    version = await _version(http, config.connect_timeout)
    log.info("%s at %s serves %s, from %s.", version, config.base_url, card["id"], card.get("root"))
    return Met(card["id"], hidden_size, version)


async def greet(http: Http, config: ServerConfig) -> Reply:
    """Return which models the server has.

    Raises:
        ConfigError: it is not there, is no vLLM server, or wants another key.
    """
    where = f"engine.url: {config.base_url}"
    for left in reversed(range(TRIES)):
        try:
            reply = await http.get(MODELS, config.connect_timeout)
        except Lost as error:
            why = f"no server answers there ({error})"
        else:
            if reply.status < 300:
                return reply
            if reply.status in UNAUTHORISED:
                key = f"the key in ${KEY_VARIABLE} is not the one" if http.has_key else f"${KEY_VARIABLE} is not set"
                raise ConfigError(f"{where}: the server wants a key, and {key} ({reply.reason}).")
            if reply.status < 500 and reply.status != 429:
                raise ConfigError(f"{where}: what answers there is no vLLM server (GET {MODELS}: {reply.reason}).")
            why = f"the server is not ready ({reply.reason})"
        if left:
            await asyncio.sleep(PAUSE)
    raise ConfigError(f"{where}: {why}.")


def _card(listed: dict[str, Any], config: ServerConfig) -> dict[str, Any]:
    """Return what the server says of the model that is wanted."""
    data = listed.get("data")
    cards = [card for card in data if isinstance(card, dict) and "id" in card] if isinstance(data, list) else []
    if not cards:
        raise ConfigError(f"engine.url: what answers at {config.base_url} is no vLLM server: it lists no models.")
    names = [str(card["id"]) for card in cards]
    if config.served_model is not None:
        for card in cards:
            if card["id"] == config.served_model:
                return card
        known = did_you_mean(config.served_model, names)
        raise ConfigError(f"engine.served_model: the server does not serve {config.served_model!r}. {known}")
    bases = [card for card in cards if card.get("parent") is None]  # the others are adapters
    if len({card.get("root") or card["id"] for card in bases}) != 1:
        raise ConfigError(f"engine.served_model: the server has several models; say which: {', '.join(names)}.")
    return bases[0]


async def _probe(http: Http, config: ServerConfig, name: str, hidden_size: int, model: ModelFiles) -> None:
    """Send integers for embeddings, which are refused for what else is wrong, or else for not being of a dtype."""
    fields = {"model": name, "max_tokens": 1}
    where = f"engine.url: the server at {config.base_url}"
    try:
        reply = await http.post(COMPLETIONS, fields, torch.zeros(1, hidden_size, dtype=torch.int8))
    except Lost as error:
        raise ConfigError(f"{where} lists its models, but does not answer requests ({error}).") from error
    if "enable-prompt-embeds" in reply.reason:
        raise ConfigError(f"{where} takes no embeddings: it must be started with --enable-prompt-embeds.")
    if found := _WIDTH.search(reply.reason):
        raise ConfigError(
            f"{where} serves {name!r}, another model: its embeddings are {found[1]} wide, and model.id's {hidden_size}."
        )
    if found := _DTYPE.search(reply.reason):
        if found[1] != model.dtype:
            raise ConfigError(
                f"{where} runs its model in {found[1]}, and model.dtype is {model.dtype}: set model.dtype={found[1]}, "
                f"or start it with --dtype {model.dtype}."
            )
    elif reply.status < 300:
        raise ConfigError(f"{where} ignores prompt_embeds: it must be a vLLM server.")
    elif reply.status != 400:
        raise ConfigError(f"{where} does not answer {COMPLETIONS} as a vLLM server does ({reply.reason}).")
    else:
        log.warning("%s does not say in which dtype it runs its model: %s", where, reply.reason)


async def _version(http: Http, timeout: float) -> str:
    try:
        reply = await http.get(VERSION, timeout)
    except Lost:
        return "vllm"
    return f"vllm {reply.content.get('version', '')}".strip()


def _hidden_size(model: ModelFiles) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model.folder, trust_remote_code=model.trust_remote_code)
    return int(config.get_text_config().hidden_size)
