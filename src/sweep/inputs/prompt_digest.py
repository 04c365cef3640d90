"""Digest of a prompt's content, which identifies it across files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from sweep.inputs.formats.chat import OPENAI_CHAT
from sweep.inputs.prompt import Prompt


def prompt_digest(prompt: Prompt) -> str:
    """Return a digest of a prompt's content without its id and system messages.

    It identifies prompts across files, because files may give one id to different prompts. System messages are
    excluded so that answers under different system messages can be compared.
    """
    content = asdict(prompt)
    del content["id"], content["references"], content["places"], content["choices"]
    # How an entry was read counts as in earlier versions, whose archives have these digests; its file does not.
    del content["reading"]["source"]
    if content["reading"]["form"] == OPENAI_CHAT:
        content["reading"]["form"] = ""
    messages = [m for m in content["messages"] or () if m["role"] not in ("system", "developer")]
    text = json.dumps(content | {"messages": messages}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
