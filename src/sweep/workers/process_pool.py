"""Helpers in processes of their own, so that the engine's Python need not share an interpreter with them.

Building and measuring a request takes about a millisecond, scoring a point a millisecond for each prompt, and looking
up nearest tokens in a large vocabulary a second.
"""

from __future__ import annotations

import logging
import pickle
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary, finalize

from sweep.config import SweepConfig
from sweep.disk.archive import Archive
from sweep.errors import SweepError
from sweep.helpers.base import Built, HelperLost, Scored, Unbuilt
from sweep.helpers.helper import Helper
from sweep.helpers.threads import Threads
from sweep.inputs.corpus import Corpus
from sweep.outcome import Finished
from sweep.remote import Loss, Remote

log = logging.getLogger(__name__)

END_SECONDS = 0.5  # that a process may take to end
# glibc's allocator is to keep what it has been given: with its own habits, a matrix of a megabyte has fresh pages each
# time, which cost more than what is computed.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(2**25),  # the most that it takes
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
}
QUEUED = 2  # points that one process has to score before another one is given some
DEATHS = 2  # of processes at work on the same thing, after which it is not tried again


class Processes:
    """Some processes, each of which does one thing after the other; see `Helpers`.

    What one of them was at work on when it died is tried once more, as is what it had before it.  What they cannot be
    given, or cannot read, is done in this process; all is, if they do not even start.  Points go to the first of them,
    and to others when that has enough; but not to the last, so that requests need not wait for a point.
    """

    def __init__(self, number: int, plugins: Sequence[str], threads: int, nice: int = 0) -> None:
        """Remember how many there are to be.

        Args:
            number: of processes.
            plugins: modules to be imported there.
            threads: that each may use where more than one is of use.
            nice: as of `Remote`.
        """
        self._number, self._plugins, self._threads, self._nice = number, tuple(plugins), threads, nice
        self._here = Threads()
        self._remotes: list[Remote] = []
        self._points = [0] * number  # that each has to score
        self._lock = threading.Lock()
        self._closed = self._useless = False
        self._numbers = count()
        self._corpora: WeakValueDictionary[int, Corpus] = WeakValueDictionary()
        self._known: WeakKeyDictionary[Corpus, int] = WeakKeyDictionary()
        self._forgotten: deque[int] = deque()
        self._last: tuple[SweepConfig, bytes] | None = None

    def prepare(self) -> None:
        """As of `Helpers`."""
        self._here.prepare()
        with self._lock:
            while len(self._remotes) < self._number and not self._closed:
                self._remotes.append(Remote(Helper, self._given, HelperLost, nice=self._nice, variables=ALLOCATOR))

    def build(
        self, corpus: Corpus, config: SweepConfig, prompts: Sequence[int], unsent: frozenset[int], most: int
    ) -> Future[list[Built | Unbuilt]]:
        """As of `Helpers`."""
        here = partial(self._here.build, corpus, config, prompts, unsent, most)
        try:
            if self._last is None or self._last[0] is not config:
                self._last = config, pickle.dumps(config, pickle.HIGHEST_PROTOCOL)
        except Exception as error:  # a transform of the user's that has something in it which cannot travel
            log.info("%s cannot be built elsewhere: %s", config.transform.name, error)
            return here()
        arguments = self._number_of(corpus), self._last[1], prompts, unsent, most
        dtype = corpus.table.dtype
        return self._try(_Job("build", arguments, here, lambda packed: packed.unpack(dtype)))

    def score(self, corpus: Corpus, finished: Finished, archive: Archive) -> Future[Scored]:
        """As of `Helpers`."""
        here = partial(self._here.score, corpus, finished, archive)
        return self._try(_Job("score", (self._number_of(corpus), finished, archive), here))

    def close(self) -> None:
        """As of `Helpers`."""
        with self._lock:
            self._closed = True
        for remote in self._remotes:
            remote.end(END_SECONDS)
        self._here.close()

    def _given(self) -> tuple[Any, ...]:
        """Return what a process that takes another one's place is made of."""
        return self._plugins, self._threads, {n: pickle.dumps(corpus) for n, corpus in list(self._corpora.items())}

    def _number_of(self, corpus: Corpus) -> int:
        """Return a corpus's number, by which all processes know it."""
        self.prepare()
        while self._forgotten:
            self._tell_all("forget", self._forgotten.popleft())
        known = self._known.get(corpus)
        if known is None:
            known = self._known[corpus] = next(self._numbers)
            self._corpora[known] = corpus
            self._tell_all("take", known, pickle.dumps(corpus, pickle.HIGHEST_PROTOCOL))
            # Only noted, as whoever lets go of a corpus may be in the middle of asking.
            finalize(corpus, self._forgotten.append, known).atexit = False
        return known

    def _tell_all(self, method: str, *arguments: Any) -> None:
        for remote in () if self._useless else self._remotes:
            with suppress(HelperLost):  # then it is started anew, and told so
                remote.ask(method, *arguments)

    def _try(self, job: _Job) -> Future[Any]:
        self._ask(job)
        return job.asked

    def _ask(self, job: _Job) -> None:
        if self._useless:
            return self._do_here(job)
        with self._lock:
            place = self._choose(job)
            self._points[place] += job.is_point
        try:
            answer = self._remotes[place].ask(job.method, *job.arguments)
        except HelperLost as lost:
            self._take_back(place, job)
            self._lost(job, lost)
        else:
            answer.add_done_callback(partial(self._answered, place, job))

    def _choose(self, job: _Job) -> int:
        """Return which process is to do something: the first of equals."""
        places = range(len(self._remotes))
        if job.is_point:
            return min(places[:-1] or places, key=lambda place: self._points[place] // QUEUED)
        return min(places[::-1], key=lambda place: (self._points[place] > 0, self._remotes[place].pending))

    def _take_back(self, place: int, job: _Job) -> None:
        with self._lock:
            self._points[place] -= job.is_point

    def _answered(self, place: int, job: _Job, answer: Future[Any]) -> None:
        self._take_back(place, job)
        try:
            job.asked.set_result(job.read(answer.result()))
        except HelperLost as lost:
            self._lost(job, lost)
        except SweepError as error:
            job.asked.set_exception(error)
        except Exception:
            log.info("Something could not be done elsewhere.", exc_info=True)
            self._do_here(job)

    def _lost(self, job: _Job, lost: HelperLost) -> None:
        if self._closed:
            job.asked.cancel()
            return
        if lost.loss is Loss.STILLBORN and not self._useless:
            self._useless = True
            log.warning("%s  The sweep's own process does what it was for; sweep.log says more.", lost)
        job.deaths += lost.loss is Loss.AT_WORK
        if lost.loss in (Loss.AT_WORK, Loss.WAITING) and job.deaths < DEATHS:
            self._ask(job)
        elif job.deaths:  # this process is not to die of it too
            job.asked.set_exception(lost)
        else:
            self._do_here(job)

    def _do_here(self, job: _Job) -> None:
        with self._lock:
            done = job.here()
        done.add_done_callback(partial(_pass_on, job.asked))


def _pass_on(asked: Future[Any], done: Future[Any]) -> None:
    if done.cancelled():
        asked.cancel()
    elif (error := done.exception()) is not None:
        asked.set_exception(error)
    else:
        asked.set_result(done.result())


@dataclass(slots=True)
class _Job:
    """Something that a process is asked to do.

    Attributes:
        here: does it in this process.
        read: makes of the answer what was asked for.
        deaths: of processes that were at work on it.
    """

    method: str
    arguments: tuple[Any, ...]
    here: Callable[[], Future[Any]]
    read: Callable[[Any], Any] = lambda value: value
    asked: Future[Any] = field(default_factory=Future)
    deaths: int = 0

    @property
    def is_point(self) -> bool:
        """Whether a point is to be scored, and not requests built."""
        return self.method == "score"
