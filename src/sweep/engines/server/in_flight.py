"""Requests in flight to a server: each is retried until it is answered or fails."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import queue
import random
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from sweep.engines.base import Failure, Generation, Request
from sweep.engines.server import answers, protocol
from sweep.engines.server.answers import ROUNDING, RequestFailed, validate
from sweep.engines.server.config import ServerConfig
from sweep.engines.server.event_loop import DROP_SECONDS, ServerLoop
from sweep.engines.server.handshake import COMPLETIONS, MODELS, UNAUTHORISED, Handshake
from sweep.engines.server.http_client import ConnectionLost
from sweep.engines.server.protocol import ServerRequest
from sweep.engines.server.replies import Reply
from sweep.errors import EngineDied, EngineError

log = logging.getLogger(__name__)

T = TypeVar("T")

BUSY = (429, 503)
DOWN = (500, 502, 504)  # status of the list of models that means that the server is down
ATTEMPTS = 4  # for a request whose connection breaks or at which the server fails, while the server is up
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 15.0  # seconds before the next attempt, doubled each time
PROBE_SECONDS = 5.0

NAN = "The model computed non-finite logits (vLLM: NaN in its log-probabilities)"


class ServerLost(Exception):
    """The server is down or has been replaced."""


class InFlight:
    """Requests in flight for one call of `Engine.generate`.

    `send`, `receive` and `drop` are called by the thread of the engine, everything else by the loop's thread.

    Attributes:
        size: number of requests in flight.
    """

    def __init__(self, loop: ServerLoop, config: ServerConfig, handshake: Handshake) -> None:
        self.size = 0
        self._loop, self._http, self._handshake = loop, loop.http, handshake
        self._url, self._patience = config.base_url, config.patience
        self._slots = asyncio.Semaphore(config.max_in_flight)
        self._results: queue.SimpleQueue[Generation | Failure | BaseException] = queue.SimpleQueue()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._last_answer = time.monotonic()
        self._ending = self._warned_busy = False
        self._raw_logprobs: asyncio.Task[bool] | None = None
        self._ids, self._repeats_ids = answers.request_ids(), False

    def send(self, request: Request, max_tokens: int) -> None:
        """Send a request that is answered with at most `max_tokens` tokens."""
        if not self.size:
            self._last_answer = time.monotonic()
        self.size += 1
        self._loop.call(self._start, request, max_tokens)

    def receive(self) -> Generation | Failure:
        """Wait for the next answer.

        Raises:
            EngineDied: the server went down. It may be back, or `engine.patience` is exceeded.
            EngineError: the server rejects the API key, or has been busy for too long.
        """
        answer = self._results.get()
        if isinstance(answer, BaseException):
            raise answer
        self.size -= 1
        return answer

    def drop(self) -> None:
        """Cancel all requests in flight; the server aborts them when their connections close."""

        async def cancel() -> None:
            tasks = set(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        if self.size:
            self.size = 0
            with suppress(TimeoutError):
                self._loop.run(cancel(), DROP_SECONDS)

    def _start(self, request: Request, max_tokens: int) -> None:
        task = asyncio.ensure_future(self._process(request, max_tokens))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _process(self, request: Request, max_tokens: int) -> None:
        """Queue the answer to a request, or the error that ends all requests."""
        try:
            if request.scored:
                answer: Generation | Failure = await self._score(request)
            else:
                answer = await self._complete(request, max_tokens)
        except RequestFailed as error:
            answer = Failure(request.key, str(error))
        except ServerLost as error:
            try:
                await self._end(str(error))
            except Exception as unexpected:
                self._results.put(unexpected)
            return
        except Exception as error:
            self._results.put(error)
            return
        self._results.put(answer)

    async def _complete(self, request: Request, max_tokens: int) -> Generation:
        server_request = protocol.completion_request(self._handshake.model, request, max_tokens)
        if request.sampling.logprobs:
            await self._require_raw_logprobs(request)
        limit, vocabulary = server_request.fields["max_tokens"], self._handshake.vocabulary
        read = answers.generation_of
        generation = validate(read, request, *await self._post(server_request), limit, vocabulary)
        if protocol.suggests_nan(generation.completions) and not request.sampling.logprobs:
            server_request = protocol.with_logprobs(server_request)
            generation = validate(read, request, *await self._post(server_request), limit, vocabulary)
        for completion in generation.completions:
            if completion.finish_reason == "length" and len(completion.token_ids) < limit:
                raise RequestFailed(
                    f"the server cut its answer after {len(completion.token_ids)} of {limit} tokens; "
                    "start the server with --generation-config vllm"
                )
        return generation

    async def _score(self, request: Request) -> Generation:
        """Request the log-probabilities of all tokens of a forced answer concurrently."""
        await self._require_raw_logprobs(request)
        length = len(request.token_ids)
        positions = range(length - request.scored, length)
        requests = [self._logprob(request, position, request.token_ids[position]) for position in positions]
        return Generation(request.key, (), tuple(await _gather(requests)))

    async def _logprob(self, request: Request, position: int, token: int) -> float:
        embeds = None if request.embeds is None else request.embeds[:position]
        model = self._handshake.model
        server_request = protocol.forced_token_request(model, request.token_ids[:position], embeds, token)
        return validate(answers.logprob_of, *await self._post(server_request), server_request.prompt_tokens, token)

    async def _require_raw_logprobs(self, request: Request) -> None:
        """Check once that the server reports the model's log-probabilities; it can be configured to report others."""
        if self._raw_logprobs is None:
            self._raw_logprobs = asyncio.ensure_future(self._has_raw_logprobs(request.token_ids[:1]))
            self._tasks.add(self._raw_logprobs)
        if not await asyncio.shield(self._raw_logprobs):
            raise RequestFailed(
                "the server does not report the model's log-probabilities; start it with --logprobs-mode raw_logprobs"
            )

    async def _has_raw_logprobs(self, prompt: tuple[int, ...]) -> bool:
        """Force two tokens: after the mask, each has probability 1; before it, their sum is at most 1."""
        name = self._handshake.model
        forced = [protocol.forced_token_request(name, prompt, None, token) for token in (0, 1)]
        first, second = [validate(answers.logprob_of, *await self._post(one), one.prompt_tokens) for one in forced]
        top = validate(answers.logprob_of, *await self._post(protocol.top_token_request(name, prompt)), len(prompt))
        return max(first, second, top) <= ROUNDING and math.exp(first) + math.exp(second) <= 1 + ROUNDING

    async def _post(self, server_request: ServerRequest) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Send a request, repeatedly if necessary; return the server's answer and its choices.

        Raises:
            RequestFailed: the server rejects the request or fails at it.
            ServerLost: the server is down or has been replaced.
            EngineError: the server rejects the API key, or has been busy for too long.
        """
        failures, began = 0, time.monotonic()
        for attempt in itertools.count():
            wait, request_id = None, next(self._ids)
            fields = server_request.fields | {"request_id": request_id}
            try:
                async with self._slots:
                    reply = await self._http.post(
                        COMPLETIONS, fields, server_request.embeds, max_bytes=server_request.max_bytes
                    )
            except ConnectionLost as error:
                failures, reason = failures + 1, str(error)
                await self._check_server(reason)
                if failures == ATTEMPTS:
                    raise ServerLost(f"broke the connection of a request {ATTEMPTS} times: {reason}") from error
            else:
                reason = reply.reason
                if reply.status < 300 and not reply.problem:
                    choices = self._choices(server_request, reply.content, request_id)
                    if not answers.is_unfinished(choices):
                        self._last_answer = time.monotonic()
                        return reply.content, choices
                if reply.status in BUSY:
                    wait = reply.retry_after
                    self._log_busy(reason)
                elif reply.status < 300 or reply.status >= 500:
                    failures, reason = failures + 1, reason or reply.problem or "it aborted the request"
                    await self._check_server(reason)
                    if failures == ATTEMPTS:
                        raise RequestFailed(f"the server failed at it {ATTEMPTS} times: {reason}")
                else:
                    raise self._rejection(reply)
            if time.monotonic() - max(began, self._last_answer) > self._patience:
                raise EngineError(
                    f"The server at {self._url} has not answered any request for {self._patience:g} s "
                    f"(engine.patience): {reason}"
                )
            await asyncio.sleep(self._pause(attempt, wait))
        raise AssertionError

    def _choices(self, server_request: ServerRequest, content: dict[str, Any], request_id: str) -> list[dict[str, Any]]:
        """Return an answer's choices after checking that it belongs to the request and comes from the same server.

        Raises:
            RequestFailed: the answer is invalid or belongs to another request.
            ServerLost: another server answers now.
        """
        fingerprint = content.get("system_fingerprint")
        if isinstance(fingerprint, str) and fingerprint != self._loop.fingerprint:
            before, self._loop.fingerprint = self._loop.fingerprint, fingerprint
            if before is not None:
                raise ServerLost(f"has been replaced (now {fingerprint[:100]!r}, before {before[:100]!r})")
        repeats = validate(answers.check_request_id, content, request_id, self._handshake.names)
        self._repeats_ids = self._repeats_ids or repeats
        if self._repeats_ids and not repeats:
            raise RequestFailed("the server's answer belongs to another request: it lacks the request id")
        return validate(answers.choices_of, content, server_request.count)

    def _rejection(self, reply: Reply) -> Exception:
        self._last_answer = time.monotonic()
        if reply.status in UNAUTHORISED:
            return EngineError(f"The server at {self._url} does not accept the API key any more: {reply.reason}")
        if reply.status == 404:
            return ServerLost(f"does not serve {self._handshake.model!r} any more: {reply.reason}")
        if protocol.NAN_IN_JSON in reply.reason:
            return RequestFailed(NAN)
        return RequestFailed(f"the server rejected it: {reply.reason}")

    def _pause(self, attempt: int, wait: float | None) -> float:
        """Return the seconds before the next attempt: exponential backoff with jitter, plus the server's `wait`."""
        seconds = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(attempt, 16)) * random.uniform(0.5, 1.0)
        if wait is not None:
            seconds += wait
        return min(seconds, self._patience)

    def _log_busy(self, reason: str) -> None:
        level = logging.INFO if self._warned_busy else logging.WARNING
        log.log(level, "The server is busy; requests are sent again: %s", reason)
        self._warned_busy = True

    async def _check_server(self, reason: str) -> None:
        """Check that a server that did not answer a request is up; a slow server counts as up.

        Raises:
            ServerLost: the server is down.
        """
        try:
            reply = await self._http.get(MODELS, PROBE_SECONDS)
        except ConnectionLost as error:
            if error.refused:
                raise ServerLost(f"is down: {reason}") from error
        else:
            if reply.status in DOWN:
                raise ServerLost(f"is down: {reason}")
            log.info("A request is sent again: %s", reason)

    async def _end(self, cause: str) -> None:
        """Wait up to `engine.patience` until the server is back, then end all requests in flight in any case."""
        if self._ending:
            return
        self._ending = True
        until = time.monotonic() + self._patience
        log.warning("The server at %s %s. Waiting up to %g s for it.", self._url, cause, self._patience)
        for attempt in itertools.count():
            await asyncio.sleep(self._pause(attempt, None))
            try:
                if (await self._http.get(MODELS, PROBE_SECONDS)).status < 300:
                    break
            except ConnectionLost:
                pass
            if time.monotonic() > until:
                break
        self._results.put(EngineDied(f"The server at {self._url} {cause}"))


async def _gather(coroutines: list[Coroutine[Any, Any, T]]) -> list[T]:
    """Return all results; if one fails, cancel the others."""
    tasks = [asyncio.ensure_future(work) for work in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
