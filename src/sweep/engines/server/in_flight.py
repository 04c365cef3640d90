"""Many requests to a server at a time, each of them until it is answered, from an event loop on a thread of its own."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import queue
import random
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from sweep.engines import server_protocol as protocol
from sweep.engines.base import Failure, Generation, Request
from sweep.engines.server import ServerConfig
from sweep.engines.server_http import Http, Lost, Reply
from sweep.engines.server_meeting import COMPLETIONS, MODELS, UNAUTHORISED, Met
from sweep.engines.server_protocol import Question
from sweep.errors import EngineDied, EngineError

log = logging.getLogger(__name__)

T = TypeVar("T")

BUSY = (429, 503)
GONE = (500, 502, 504)  # of a server that is asked no more than which models it has
TRIES = 4  # of a request whose connection breaks, or at which the server fails, while the server is there
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 15.0  # seconds before a request is sent again, doubled each time
LOOK_SECONDS = 5.0
DROP_SECONDS = 5.0
ROUNDING = 1e-3

NAN = "The model computed non-finite logits (vLLM: NaN in its log-probabilities)"


class Refused(Exception):
    """The server does not answer this request, and the fault is the request's."""


class Away(Exception):
    """The server is gone, or not to be relied on."""


class Talk:
    """What is said with one server.

    Attributes:
        http: the connections to it.
    """

    def __init__(self, config: ServerConfig, key: str | None) -> None:
        self._config = config
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="server", daemon=True)
        self._thread.start()
        # Some more, to look whether the server is there when all are taken.
        connections = config.max_in_flight + 8
        self.http = Http(config.base_url, key, config.connect_timeout, config.read_timeout, connections)

    def run(self, work: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
        """Return what a coroutine returns that runs on the other thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Have a function called on the other thread."""
        self._loop.call_soon_threadsafe(function, *arguments)

    def flight(self, met: Met) -> Flight:
        """Return what has requests answered, as yet without any."""
        return Flight(self, self._config, met)

    def close(self) -> None:
        """Close all connections and end the thread."""
        with suppress(TimeoutError):
            self.run(self.http.close(), DROP_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DROP_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()


class Flight:
    """Requests on their way, for one call of `Engine.generate`.

    Attributes:
        size: how many there are.
    """

    def __init__(self, talk: Talk, config: ServerConfig, met: Met) -> None:
        self.size = 0
        self._talk, self._http, self._met = talk, talk.http, met
        self._url, self._patience = config.base_url, config.patience
        self._at_once = asyncio.Semaphore(config.max_in_flight)
        self._done: queue.SimpleQueue[Generation | Failure | BaseException] = queue.SimpleQueue()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._heard = time.monotonic()
        self._ending = self._told = False
        self._are_logprobs: asyncio.Task[bool] | None = None

    def send(self, request: Request, room: int) -> None:
        """Have a request answered with `room` tokens at most."""
        if not self.size:
            self._heard = time.monotonic()
        self.size += 1
        self._talk.call(self._begin, request, room)

    def receive(self) -> Generation | Failure:
        """Wait for the next answer.

        Raises:
            EngineDied: the server is gone, and either has come back or is not waited for any longer.
            EngineError: it does not let us in any more.
        """
        answer = self._done.get()
        if isinstance(answer, BaseException):
            raise answer
        self.size -= 1
        return answer

    def drop(self) -> None:
        """Forget what is on its way; the server notices, and gives it up."""

        async def cancel() -> None:
            tasks = set(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        if self.size:
            self.size = 0
            with suppress(TimeoutError):
                self._talk.run(cancel(), DROP_SECONDS)

    def _begin(self, request: Request, room: int) -> None:
        task = asyncio.ensure_future(self._carry(request, room))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, request: Request, room: int) -> None:
        """Put the answer to a request, or what ends all of this, where it is received."""
        try:
            if request.scored:
                answer: Generation | Failure = await self._force(request)
            else:
                answer = await self._answer(request, room)
        except Refused as error:
            answer = Failure(request.key, str(error))
        except Away as error:
            await self._end(str(error))
            return
        except Exception as error:
            self._done.put(error)
            return
        self._done.put(answer)

    async def _answer(self, request: Request, room: int) -> Generation:
        asked = protocol.question(self._met.model, request, room)
        if request.sampling.logprobs:
            await self._require_logprobs(request)
        generation = _read(protocol.generation, request, await self._ask(asked))
        if protocol.looks_broken(generation.completions) and not request.sampling.logprobs:
            generation = _read(protocol.generation, request, await self._ask(protocol.with_logprobs(asked)))
        most = asked.fields["max_tokens"]
        for completion in generation.completions:
            if completion.finish_reason == "length" and len(completion.token_ids) < most:
                raise Refused(
                    f"the server cut its answer after {len(completion.token_ids)} tokens of {most}; "
                    "start it with --generation-config vllm"
                )
        return generation

    async def _force(self, request: Request) -> Generation:
        """Ask for the log-probability of each token of a forced answer, all at a time."""
        await self._require_logprobs(request)
        length = len(request.token_ids)
        places = range(length - request.scored, length)
        asking = [self._probability(request, place, request.token_ids[place]) for place in places]
        return Generation(request.key, (), tuple(await _all(asking)))

    async def _probability(self, request: Request, place: int, token: int) -> float:
        embeds = None if request.embeds is None else request.embeds[:place]
        asked = protocol.forcing(self._met.model, request.token_ids[:place], embeds, token)
        return _read(protocol.logprob, await self._ask(asked), token)

    async def _require_logprobs(self, request: Request) -> None:
        """Make sure, once, that log-probabilities are the model's own: servers can be told to report others."""
        if self._are_logprobs is None:
            self._are_logprobs = asyncio.ensure_future(self._look_at_logprobs(request.token_ids[:1]))
            self._tasks.add(self._are_logprobs)
        if not await asyncio.shield(self._are_logprobs):
            raise Refused("the server's log-probabilities are not the model's: it needs --logprobs-mode raw_logprobs")

    async def _look_at_logprobs(self, prompt: tuple[int, ...]) -> bool:
        """Force two tokens, whose probabilities are 1 each after the mask, and no more together before it."""
        name = self._met.model
        two = [protocol.forcing(name, prompt, None, token) for token in (0, 1)]
        first, second = [_read(protocol.logprob, await self._ask(asked)) for asked in two]
        most = _read(protocol.logprob, await self._ask(protocol.unforced(name, prompt)))
        return max(first, second, most) <= ROUNDING and math.exp(first) + math.exp(second) <= 1 + ROUNDING

    async def _ask(self, asked: Question) -> dict[str, Any]:
        """Return the server's answer, however often that takes.

        Raises:
            Refused: the request is at fault.
            Away: the server is gone.
            EngineError: it does not let us in, or has said nothing for too long but that it is busy.
        """
        failed, began = 0, time.monotonic()
        for attempt in itertools.count():
            wait = None
            try:
                async with self._at_once:
                    reply = await self._http.post(COMPLETIONS, asked.fields, asked.embeds)
            except Lost as error:
                failed, reason = failed + 1, str(error)
                await self._look(reason)
                if failed == TRIES:
                    raise Away(f"broke off a request {TRIES} times: {reason}") from error
            else:
                reason = reply.reason
                if reply.status < 300 and not _read(protocol.given_up, reply.content):
                    self._heard = time.monotonic()
                    return reply.content
                if reply.status in BUSY:
                    wait = reply.retry_after
                    self._tell_busy(reason)
                elif reply.status < 300 or reply.status >= 500:
                    failed, reason = failed + 1, reason or "it gave the request up"
                    await self._look(reason)
                    if failed == TRIES:
                        raise Refused(f"the server failed at it {TRIES} times: {reason}")
                else:
                    raise self._refusal(reply)
            if time.monotonic() - max(began, self._heard) > self._patience:
                raise EngineError(f"The server at {self._url} has answered nothing for {self._patience:g} s: {reason}")
            await asyncio.sleep(self._pause(attempt, wait))
        raise AssertionError

    def _refusal(self, reply: Reply) -> Exception:
        self._heard = time.monotonic()
        if reply.status in UNAUTHORISED:
            return EngineError(f"The server at {self._url} does not let us in any more: {reply.reason}")
        if reply.status == 404:
            return Away(f"serves {self._met.model!r} no more: {reply.reason}")
        if protocol.NAN_IN_JSON in reply.reason:
            return Refused(NAN)
        return Refused(f"the server refused it: {reply.reason}")

    def _pause(self, attempt: int, wait: float | None) -> float:
        """Return the seconds to wait before another attempt: twice as many each time, and not all requests as many."""
        seconds = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(attempt, 16)) * random.uniform(0.5, 1.0)
        if wait is not None:
            seconds += wait
        return min(seconds, self._patience)

    def _tell_busy(self, reason: str) -> None:
        log.log(logging.INFO if self._told else logging.WARNING, "The server is busy, and asked again: %s", reason)
        self._told = True

    async def _look(self, reason: str) -> None:
        """See whether a server is there that has just not answered; one that is only slow is.

        Raises:
            Away: it is not.
        """
        try:
            reply = await self._http.get(MODELS, LOOK_SECONDS)
        except Lost as error:
            if error.refused:
                raise Away(f"is gone: {reason}") from error
        else:
            if reply.status in GONE:
                raise Away(f"is gone: {reason}")
            log.info("A request is sent again: %s", reason)

    async def _end(self, how: str) -> None:
        """Wait for the server to be back, as long as there is patience; whether it is or not, this flight is over."""
        if self._ending:
            return
        self._ending = True
        until = time.monotonic() + self._patience
        log.warning("The server at %s %s. It is waited for, for up to %g s.", self._url, how, self._patience)
        for attempt in itertools.count():
            await asyncio.sleep(self._pause(attempt, None))
            try:
                if (await self._http.get(MODELS, LOOK_SECONDS)).status < 300:
                    break
            except Lost:
                pass
            if time.monotonic() > until:
                break
        self._done.put(EngineDied(f"The server at {self._url} {how}"))


def _read(read: Callable[..., T], *arguments: object) -> T:
    """Return what is read from an answer.

    Raises:
        Refused: it is not what vLLM answers.
    """
    try:
        return read(*arguments)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise Refused(f"the server's answer is not vLLM's ({type(error).__name__}: {error})") from error


async def _all(asking: list[Coroutine[Any, Any, T]]) -> list[T]:
    """Return all results; of one that fails, the others are cancelled."""
    tasks = [asyncio.ensure_future(work) for work in asking]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
