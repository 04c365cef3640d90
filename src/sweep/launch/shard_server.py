"""Shard server: runs requested shards one after the other, and finishes each while the next one generates."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from sweep.errors import SweepError
from sweep.launch.manifest import Manifest
from sweep.launch.shard_worker import ShardWorker
from sweep.processes.background_thread import BackgroundThread
from sweep.util.redaction import redact

log = logging.getLogger(__name__)


class ShardServer:
    """Runs shards on a worker. Owned by the worker's main thread.

    Args:
        worker: generates the shards. The caller closes it, after `close`.
        answer: called with a shard's index, an exit code and the reason if the shard is not finished, else "". It is
            called on the thread "finishing".
    """

    def __init__(self, worker: ShardWorker, answer: Callable[[int, int, str], None]) -> None:
        self._worker, self._answer = worker, answer
        self._finishing = BackgroundThread("finishing", self._finish)

    def begin(self, manifest: Manifest, index: int, patience: float = 0.0) -> None:
        """Generate a shard. Returns once the engine has received its requests.

        The next call, or `drain`, receives the rest of its answers. See `ShardWorker.generate` for arguments and
        errors; a `SweepError` becomes the shard's answer.
        """
        try:
            finish = self._worker.generate(manifest, index, patience)
        except SweepError as error:
            self.fail(index, error)
        else:
            self._finishing.put((index, finish))

    def fail(self, index: int, error: SweepError) -> None:
        """Answer a shard with an error, after the shards that have begun before."""

        def finish() -> None:
            raise error

        self._finishing.put((index, finish))

    def drain(self, until: Callable[[], bool] = lambda: False) -> None:
        """See `ShardWorker.drain`."""
        self._worker.drain(until)

    def settle(self) -> None:
        """Wait until all shards that have begun are finished and answered."""
        self._worker.drain()
        self._finishing.drain()

    def close(self) -> None:
        """Finish all shards, and end the thread."""
        self._worker.drain()
        self._finishing.close()

    def _finish(self, generated: tuple[int, Callable[[], None]]) -> None:
        index, finish = generated
        code, reason = 0, ""
        try:
            finish()
        except SweepError as error:
            code, reason = error.exit_code, redact(str(error))
        except Exception:  # the main thread waits for the next request; a new process runs the shard again
            log.exception("Shard %d cannot be finished.", index)
            os._exit(1)
        self._answer(index, code, reason)
