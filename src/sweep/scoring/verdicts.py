"""Verdicts of a judge: the question as a request, the score in the reply, and the cache of earlier verdicts."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.scoring.judge_config import JudgeConfig
from sweep.util.atomic import replace

LOWEST, HIGHEST = 1, 5
SCHEMA = {
    "type": "object",
    "properties": {"score": {"type": "integer", "enum": list(range(LOWEST, HIGHEST + 1))}},
    "required": ["score"],
    "additionalProperties": False,
}
_OBJECT = re.compile(r'\{[^{}]*"score"[^{}]*\}')
_FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Reply of a judge to one question.

    Attributes:
        score: from 1 to 5; None: the reply has no valid score.
        problem: why there is no score; empty if there is one.
        is_final: whether the judge said something, so that the same question would get the same reply. The error of a
            gateway may not last.
    """

    score: int | None
    problem: str = ""
    is_final: bool = True

    @property
    def share(self) -> float:
        """The score as a number from 0 to 1; NaN if there is none."""
        return float("nan") if self.score is None else (self.score - LOWEST) / (HIGHEST - LOWEST)


def request_of(judge: JudgeConfig, question: str) -> dict[str, Any]:
    """Return the body of a request to `/chat/completions`, greedy and with the form of the verdict."""
    body: dict[str, Any] = {
        "model": judge.model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": judge.max_tokens,
    }
    if judge.format == "json_schema":
        schema = {"name": "verdict", "strict": True, "schema": SCHEMA}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif judge.format == "json_object":
        body["response_format"] = {"type": "json_object"}
    return body


def read_reply(content: dict[str, Any]) -> Verdict:
    """Return the verdict in a reply of `/chat/completions`."""
    try:
        choice = content["choices"][0]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return Verdict(None, "the reply has no choices[0].message.content", is_final=False)
    if not isinstance(text, str) or not text.strip():
        return Verdict(None, "the reply is empty", is_final=False)
    verdict = read_verdict(text)
    if verdict.score is None and choice.get("finish_reason") == "length":
        return Verdict(None, f"{verdict.problem}; it was cut: raise scoring.judge.max_tokens")
    return verdict


def read_verdict(text: str) -> Verdict:
    """Return the verdict in a text: JSON, JSON in a code block, or the only object with a score in a longer text."""
    fenced = _FENCE.search(text)
    candidates = [_score(part) for part in (text, fenced[1] if fenced else None) if part is not None]
    candidates += sorted({score for part in _OBJECT.findall(text) if (score := _score(part)) is not None})
    scores = {score for score in candidates if score is not None}
    shown = " ".join(text.split())[:80]
    if not scores:
        return Verdict(None, f"no JSON with a score from {LOWEST} to {HIGHEST} in {shown!r}")
    if len(scores) > 1:
        return Verdict(None, f"several different scores in {shown!r}")
    return Verdict(scores.pop())


def _score(text: str) -> int | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    try:
        return _valid(value.get("score") if isinstance(value, dict) else value)
    except ValueError:
        return None


def _valid(score: Any) -> int:
    """Return a whole number from 1 to 5 as an integer.

    Raises:
        ValueError: it is not one.
    """
    number = isinstance(score, (int, float)) and not isinstance(score, bool)
    if not number or not LOWEST <= score <= HIGHEST or score != int(score):
        raise ValueError(f"{score!r} is not a score from {LOWEST} to {HIGHEST}")
    return int(score)


class VerdictCache:
    """Verdicts by the content of their question, one file each. Any process and thread may use it."""

    def __init__(self, folder: Path, url: str) -> None:
        """Use a folder, which is created with the first verdict.

        Args:
            folder: where the files are.
            url: the judge's address, which is part of the question: models of equal names may differ.
        """
        self._folder, self._url = folder, url

    def get(self, body: dict[str, Any]) -> Verdict | None:
        """Return the earlier verdict on a request; None if there is none or its file is damaged."""
        try:
            found = json.loads(self._path(body).read_text("utf-8"))
            score, problem = found["score"], str(found["problem"])
            if score is None:
                return Verdict(None, problem) if problem else None
            return Verdict(_valid(score))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, body: dict[str, Any], verdict: Verdict) -> None:
        """Store a verdict.

        Raises:
            OSError: the file cannot be written.
        """
        path = self._path(body)
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = {"score": verdict.score, "problem": verdict.problem, "url": self._url, "request": body}
        replace(path, lambda temporary: temporary.write_text(json.dumps(stored), "utf-8"))

    def _path(self, body: dict[str, Any]) -> Path:
        text = json.dumps([self._url, body], sort_keys=True)
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return self._folder / digest[:2] / f"{digest}.json"
