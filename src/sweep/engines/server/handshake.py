"""Handshake with a server: check that it is available, serves the model and accepts its embeddings."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from dataclasses import dataclass
from typing import Any

import torch

from sweep.engines.base import ModelFiles, Origin
from sweep.engines.server.config import KEY_VARIABLE, ServerConfig
from sweep.engines.server.http_client import ConnectionLost, HttpClient
from sweep.engines.server.replies import Reply, printable_line
from sweep.errors import ConfigError
from sweep.util.redaction import redact
from sweep.util.validators import did_you_mean

log = logging.getLogger(__name__)

MODELS, COMPLETIONS, VERSION = "/v1/models", "/v1/completions", "/version"
ATTEMPTS, PAUSE = 3, 0.5  # for the first requests, and the seconds between them
UNAUTHORISED = (401, 403)
PROBE_BYTES = 1 << 20
MAX_VERSION_LENGTH = 60

_WIDTH = re.compile(r"hidden_size \d+ does not match the model's hidden_size (\d+)")
_DTYPE = re.compile(r"model's dtype torch\.(\w+)")


@dataclass(frozen=True, slots=True)
class Handshake:
    """Properties of a server and its model.

    Attributes:
        model: name under which the server serves the model.
        names: names of all models that the server lists.
        hidden_size: width of the model's embeddings.
        vocabulary: size of the vocabulary; None if the model's configuration does not contain it.
        origin: software and model, as the server reports them.
    """

    model: str
    names: tuple[str, ...]
    hidden_size: int
    vocabulary: int | None
    origin: Origin


async def perform_handshake(http: HttpClient, config: ServerConfig, model: ModelFiles, max_model_len: int) -> Handshake:
    """Find the served model, and send invalid embeddings whose error message tells which ones the server accepts.

    Raises:
        ConfigError: the server is unavailable, requires another key, serves another model or one with a shorter
            context, or accepts no embeddings.
    """
    reply = await list_models(http, config)
    card = _card(reply.content, config)
    served_len = _max_model_len(card)
    if served_len is not None and served_len < max_model_len:
        raise ConfigError(
            f"engine.url: the server's model has room for {served_len} tokens of prompt and answer, but the sweep "
            f"needs {max_model_len}. Start the server with --max-model-len {max_model_len}, lower sampling.max_tokens, "
            f"or set engine.max_model_len={served_len}, which cuts answers."
        )
    hidden_size, vocabulary = _sizes(model)
    await _probe(http, config, card["id"], hidden_size, model)
    origin = _origin(card, await _version(http, config))
    log.info("%s at %s serves %s.", origin.engine, config.base_url, origin.served)
    return Handshake(card["id"], tuple(entry["id"] for entry in _cards(reply.content)), hidden_size, vocabulary, origin)


async def fetch_origin(http: HttpClient, config: ServerConfig) -> Origin:
    """Return the origin that the server reports.

    Raises:
        ConfigError: see `list_models`; or the server does not serve the model.
    """
    card = _card((await list_models(http, config)).content, config)
    return _origin(card, await _version(http, config))


async def list_models(http: HttpClient, config: ServerConfig) -> Reply:
    """Return the server's reply with the list of its models.

    Raises:
        ConfigError: the server is unavailable, is not a vLLM server, or requires another key.
    """
    where = f"engine.url: {config.base_url}"
    reply = await _get(http, config, MODELS)
    if isinstance(reply, ConnectionLost):
        raise ConfigError(f"{where}: no server answers at this address ({reply}). Start it, or correct engine.url.")
    if reply.status in UNAUTHORISED:
        key = f"the key in ${KEY_VARIABLE} is wrong" if http.has_key else f"${KEY_VARIABLE} is not set"
        raise ConfigError(f"{where}: the server requires an API key, but {key} ({reply.reason}).")
    if _is_busy(reply):
        raise ConfigError(f"{where}: the server is not ready ({reply.reason}). Try again later.")
    if reply.status >= 300 or reply.problem:
        cause = reply.problem or reply.reason
        raise ConfigError(f"{where}: this is not a vLLM server (GET {MODELS}: {cause}).")
    return reply


async def _get(http: HttpClient, config: ServerConfig, path: str) -> Reply | ConnectionLost:
    """Send a GET request, a few times if necessary and within `engine.patience`; return the last reply."""
    until, left = time.monotonic() + config.patience, ATTEMPTS
    while True:
        left -= 1
        try:
            reply: Reply | ConnectionLost = await http.get(path, config.connect_timeout)
        except ConnectionLost as error:
            reply = error
        if not (isinstance(reply, ConnectionLost) or _is_busy(reply)) or not left or time.monotonic() + PAUSE > until:
            return reply
        await asyncio.sleep(PAUSE)


def _is_busy(reply: Reply) -> bool:
    return reply.status >= 500 or reply.status == 429


def _cards(listed: dict[str, Any]) -> list[dict[str, Any]]:
    data = listed.get("data")
    cards = data if isinstance(data, list) else []
    return [card for card in cards if isinstance(card, dict) and isinstance(card.get("id"), str) and card["id"]]


def _card(listed: dict[str, Any], config: ServerConfig) -> dict[str, Any]:
    """Return the server's description of the configured model."""
    cards = _cards(listed)
    if not cards:
        raise ConfigError(f"engine.url: {config.base_url}: this is not a vLLM server: it lists no models.")
    names = [printable_line(card["id"]) for card in cards]
    if config.served_model is not None:
        for card in cards:
            if card["id"] == config.served_model:
                return card
        hint = did_you_mean(config.served_model, names)
        raise ConfigError(f"engine.served_model: the server does not serve {config.served_model!r}. {hint}")
    bases = [card for card in cards if card.get("parent") is None]  # the others are adapters
    if len({_root(card) for card in bases}) != 1:
        raise ConfigError(f"engine.served_model: the server has several models. Set it to one of: {', '.join(names)}.")
    return bases[0]


async def _probe(http: HttpClient, config: ServerConfig, name: str, hidden_size: int, model: ModelFiles) -> None:
    """Send int8 embeddings: the server checks their width first and then names the dtype that it expects."""
    fields = {"model": name, "max_tokens": 1}
    where = f"engine.url: the server at {config.base_url}"
    try:
        embeds = torch.zeros(1, hidden_size, dtype=torch.int8)
        seconds = config.connect_timeout + min(config.read_timeout, config.patience)
        reply = await http.post(COMPLETIONS, fields, embeds, max_bytes=PROBE_BYTES, seconds=seconds)
    except ConnectionLost as error:
        raise ConfigError(f"{where} lists its models, but does not answer requests ({error}).") from error
    if "enable-prompt-embeds" in reply.reason:
        raise ConfigError(f"{where} does not accept embeddings. Start it with --enable-prompt-embeds.")
    if match := _WIDTH.search(reply.reason):
        raise ConfigError(
            f"{where} serves another model as {name!r}: its embeddings have {match[1]} columns, but those of model.id "
            f"have {hidden_size}."
        )
    if match := _DTYPE.search(reply.reason):
        if match[1] != model.dtype:
            raise ConfigError(
                f"{where} runs its model in {match[1]}, but model.dtype is {model.dtype}. Set model.dtype={match[1]}, "
                f"or start the server with --dtype {model.dtype}."
            )
    elif reply.status < 300:
        raise ConfigError(f"{where} ignores prompt_embeds, so it is not a vLLM server.")
    elif reply.status != 400:
        raise ConfigError(f"{where} does not answer {COMPLETIONS} as a vLLM server does ({reply.reason}).")
    else:
        log.warning("%s does not report the dtype of its model: %s", where, reply.reason)


async def _version(http: HttpClient, config: ServerConfig) -> str:
    """Return the server's version; empty if it does not report one.

    Raises:
        ConfigError: the server does not answer any more.
    """
    reply = await _get(http, config, VERSION)
    if isinstance(reply, ConnectionLost) or _is_busy(reply):
        cause = reply if isinstance(reply, ConnectionLost) else reply.reason
        raise ConfigError(f"engine.url: {config.base_url} lists its models, but not its version ({cause}).")
    version = reply.content.get("version")
    return printable_line(version)[:MAX_VERSION_LENGTH].partition("+")[0] if isinstance(version, str) else ""


def _origin(card: dict[str, Any], version: str) -> Origin:
    length = _max_model_len(card)
    suffix = "" if length is None else f", max_model_len {length}"
    return Origin(f"vllm {version or 'of unknown version'} (server)", f"{printable_line(redact(_root(card)))}{suffix}")


def _root(card: dict[str, Any]) -> str:
    """Return the path from which the server loaded a model, or else its served name."""
    root = card.get("root")
    return root if isinstance(root, str) and root else str(card["id"])


def _max_model_len(card: dict[str, Any]) -> int | None:
    length = card.get("max_model_len")
    return length if isinstance(length, int) and not isinstance(length, bool) else None


def _sizes(model: ModelFiles) -> tuple[int, int | None]:
    """Return the width of the model's embeddings and the size of its vocabulary, if known."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model.folder, trust_remote_code=model.trust_remote_code).get_text_config()
    vocabulary = getattr(config, "vocab_size", None)
    return int(config.hidden_size), vocabulary if isinstance(vocabulary, int) else None
