"""Client of a judge: asks questions at a server with OpenAI's API, and gives up in bounded time."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sweep.engines.server.http_client import ConnectionLost, HttpClient
from sweep.engines.server.replies import Reply
from sweep.errors import ConfigError
from sweep.scoring.judge_config import JudgeConfig
from sweep.scoring.text import ScorerError
from sweep.scoring.verdicts import Verdict, VerdictCache, read_reply, request_of
from sweep.util.retry import Patience

log = logging.getLogger(__name__)

MAX_BYTES = 1 << 20  # of a reply
CONTACT_SECONDS = 10.0  # longest wait for the judge before an engine starts
DOWN_SECONDS = 300.0  # for which a judge that failed is not asked again, so that it delays a sweep only once
RETRIED = (408, 425, 429, 500, 502, 503, 504)
REFUSED = (401, 403, 404)  # the same for every question

_down: dict[tuple[str, ...], tuple[float, str]] = {}  # by address, model and key variable: when it failed, and why


def ask(judge: JudgeConfig, questions: Sequence[str], cache: Path) -> list[Verdict]:
    """Return the verdict on each question. Equal questions are asked once, also by different sweeps.

    Args:
        judge: the judge; `url` and `model` are set.
        questions: texts for the judge.
        cache: folder with earlier verdicts.

    Raises:
        ScorerError: the judge cannot be reached within `timeout` and `patience`, refuses the key or the model, or
            rejects all questions.
    """
    verdicts = VerdictCache(cache, judge.base_url)
    bodies = {question: request_of(judge, question) for question in questions}
    known = {question: found for question, body in bodies.items() if (found := verdicts.get(body)) is not None}
    missing = [question for question in bodies if question not in known]
    if missing:
        failed, reason = _down.get(_identity(judge), (0.0, ""))
        if reason and time.monotonic() - failed < DOWN_SECONDS:
            raise ScorerError(reason)
        known |= asyncio.run(_Interview(judge, bodies, verdicts).ask(missing))
    return [known[question] for question in questions]


def check_judge(judge: JudgeConfig, *, contact: bool) -> None:
    """Check that a judge is configured and, with `contact`, that its server answers and serves the model.

    Raises:
        ConfigError: a setting is missing, or the judge cannot be reached or refuses the key.
    """
    for key in ("url", "model"):
        if not getattr(judge, key):
            raise ConfigError(f"scoring.judge.{key}: quality/judge_score needs it. Set scoring.judge.{key}=…")
    key_of(judge)
    if contact:
        asyncio.run(_contact(judge))


def key_of(judge: JudgeConfig) -> str | None:
    """Return the API key from the environment; None without `key_variable`.

    Raises:
        ConfigError: the variable is not set, or contains characters that cannot be sent.
    """
    if judge.key_variable is None:
        return None
    key = os.environ.get(judge.key_variable, "").strip()
    if not key:
        raise ConfigError(f"scoring.judge.key_variable: ${judge.key_variable} is not set. Set it to the API key.")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"${judge.key_variable} is not an API key: it contains spaces or unprintable characters.")
    return key


async def _contact(judge: JudgeConfig) -> None:
    seconds = min(CONTACT_SECONDS, judge.timeout)
    client = HttpClient(judge.base_url, key_of(judge), seconds, seconds, 1)
    try:
        reply = await client.get("models", seconds)
    except ConnectionLost as error:
        raise ConfigError(f"scoring.judge.url: the judge at {judge.base_url} does not answer: {error}.") from error
    finally:
        await client.close()
    if reply.status in (401, 403):
        advice = "Check the key." if judge.key_variable else "Set scoring.judge.key_variable."
        raise ConfigError(f"scoring.judge.url: the judge at {judge.base_url} refuses access: {reply.reason}. {advice}")
    served = [model.get("id") for model in reply.content.get("data", []) if isinstance(model, dict)]
    if served and judge.model not in served:
        names = ", ".join(map(str, served[:10]))
        raise ConfigError(f"scoring.judge.model: {judge.base_url} does not serve {judge.model!r}. It serves: {names}.")


class _Interview:
    """Questions to a judge that are asked at the same time. Owned by one event loop."""

    def __init__(self, judge: JudgeConfig, bodies: dict[str, dict[str, Any]], cache: VerdictCache) -> None:
        self._judge, self._bodies, self._cache = judge, bodies, cache
        self._patience = Patience(judge.patience)
        self._slots = asyncio.Semaphore(judge.max_in_flight)

    async def ask(self, questions: Sequence[str]) -> dict[str, Verdict]:
        judge = self._judge
        # A client of its own, since connections belong to one event loop.
        self._client = HttpClient(judge.base_url, key_of(judge), judge.timeout, judge.timeout, judge.max_in_flight)
        rejected: list[str] = []
        tasks = [asyncio.ensure_future(self._one(question, rejected)) for question in questions]
        try:
            found = await asyncio.gather(*tasks)
        except ScorerError as error:
            _down[_identity(self._judge)] = time.monotonic(), str(error)
            raise
        finally:
            self._patience.end()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._client.close()
        if len(rejected) == len(self._bodies):  # of all questions, the answered ones included
            raise ScorerError(f"the judge at {judge.base_url} rejects all questions: {rejected[0]}")
        return dict(zip(questions, found, strict=True))

    async def _one(self, question: str, rejected: list[str]) -> Verdict:
        body = self._bodies[question]
        async with self._slots:
            reply = await self._reply(body)
        if reply.status in REFUSED:
            raise ScorerError(f"the judge at {self._judge.base_url} refuses: {_reason(reply)}")
        if reply.status >= 300:
            rejected.append(_reason(reply))
            verdict = Verdict(None, f"the judge rejects the question: {_reason(reply)}")
        else:
            verdict = read_reply(reply.content) if not reply.problem else Verdict(None, reply.problem, is_final=False)
            if verdict.is_final:
                self._cache.put(body, verdict)
        if verdict.score is None:
            log.warning("No verdict of the judge: %s. Question: %.200r", verdict.problem, question)
        return verdict

    async def _reply(self, body: dict[str, Any]) -> Reply:
        attempt = 0
        while True:
            attempt += 1
            try:
                seconds = self._judge.timeout
                reply = await self._client.post("chat/completions", body, max_bytes=MAX_BYTES, seconds=seconds)
                if reply.status not in RETRIED:
                    return reply
                problem = _reason(reply)
            except ConnectionLost as error:
                problem = str(error)
            self._patience.hurry()  # from the point's first failure on
            if not await asyncio.to_thread(self._patience.pause, attempt):
                judge = self._judge
                raise ScorerError(
                    f"the judge at {judge.base_url} did not answer within {judge.patience:g} s of attempts: {problem}. "
                    "Run the same command again once it does: answers and verdicts so far are kept"
                )


def _identity(judge: JudgeConfig) -> tuple[str, ...]:
    return judge.base_url, judge.model or "", judge.key_variable or ""


def _reason(reply: Reply) -> str:
    return reply.reason.replace("engine.url", "scoring.judge.url")
