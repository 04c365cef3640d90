"""Shards on Ray: actors with an engine each, which are given one shard after the other.

Ray's core is used, not Ray Data's or Serve's LLM parts, which take no prompt embeddings and pin a vLLM of their own.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sweep import signals
from sweep.checks import require
from sweep.errors import ConfigError, EngineError, SweepError
from sweep.redaction import redact
from sweep.shards.crew import ATTEMPTS, LEASE_SECONDS, Crew, left_undone
from sweep.shards.manifest import Manifest, read

log = logging.getLogger(__name__)

PERIOD = 0.5  # seconds
ROOM_SECONDS = 30.0  # after which the user is told that actors still wait for room


class RayCrew(Crew):
    """Actors, which keep their engines from plan to plan.  One that dies is replaced, and its shard begun again.

    Args:
        actors: how many; None: as many as the cluster has room for now.
        address: of a running cluster; None: one is started on this machine, and ended with this process.
        gpus, cpus: of each actor.
        shards: how many shards a plan is cut into; None: as many as are worth an engine's start.
        say: tells the user.
    """

    patience = LEASE_SECONDS

    def __init__(
        self,
        *,
        actors: int | None,
        address: str | None,
        gpus: float,
        cpus: float,
        shards: int | None,
        say: Callable[[str], None],
    ) -> None:
        super().__init__(shards)
        self._count, self._address, self._gpus, self._cpus, self._say = actors, address, gpus, cpus, say
        self._actors: list[Any] = []
        self._folder: str | None = None
        if address is None:
            self._prepare_own()
        self._connected = False

    def suggest(self, tokens: int) -> int:
        """Return some for each actor, if that is known, so that the slowest does not decide."""
        return 4 * self._count if self._count else super().suggest(tokens)

    def work(self, manifest: Manifest, watch: Callable[[], None]) -> Mapping[int, str]:
        """As of `Crew`."""
        import ray

        self._connect()
        waiting, reasons = list(range(manifest.shards)), dict[int, str]()
        attempts, busy = dict.fromkeys(waiting, 0), dict[Any, tuple[int | None, Any]]()
        while len(self._actors) < min(self._most(), manifest.shards):
            self._actors.append(self._actor())
        # One for which there is no room yet, or never will be, must not keep a shard from the others.
        for actor in self._actors:
            busy[actor.is_ready.remote()] = None, actor
        free: list[Any] = []
        began, told, unready = time.monotonic(), False, 0
        while waiting or any(index is not None for index, _ in busy.values()):
            while waiting and free:
                actor, shard = free.pop(), waiting.pop(0)
                attempts[shard] += 1
                busy[actor.work.remote(str(manifest.path), shard)] = shard, actor
            done, _ = ray.wait(list(busy), timeout=PERIOD)
            signals.check()
            watch()
            for reference in done:
                index, actor = busy.pop(reference)
                try:
                    answer = ray.get(reference)
                    if index is not None and answer is not None:
                        reasons[index] = answer
                    free.append(actor)
                    unready = 0
                except ray.exceptions.RayError as error:
                    self._actors.remove(actor)
                    reason = f"its actor has died: {str(error).splitlines()[0]}"
                    if index is None:
                        unready += 1
                        if unready == ATTEMPTS:  # in a row: none can even start
                            raise EngineError(f"hydra/launcher=ray: {reason}") from error
                    else:
                        reasons[index] = reason
                        log.warning("Shard %d: %s", index, reason)
                        if attempts[index] < ATTEMPTS:
                            waiting.insert(0, index)
                    self._actors.append(actor := self._actor())
                    busy[actor.is_ready.remote()] = None, actor
            if not told and time.monotonic() - began > ROOM_SECONDS:
                if wanting := sum(index is None for index, _ in busy.values()):
                    self._say(f"Ray: {wanting} of {len(self._actors)} actors wait for room in the cluster")
                told = True
        return left_undone(manifest, reasons)

    def close(self) -> None:
        """End the actors, and the cluster if it was started here."""
        if self._connected:
            import ray

            for actor in self._actors:
                with suppress(ray.exceptions.RayError):
                    ray.kill(actor)
            ray.shutdown()
        self._actors, self._connected = [], False
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _connect(self) -> None:
        if self._connected:
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        try:
            if self._address is not None:
                ray.init(self._address, log_to_driver=False)
            else:
                ray.init(log_to_driver=False, include_dashboard=False, _temp_dir=self._folder)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            first = str(error).strip().splitlines()[0][:200]
            raise ConfigError(f"hydra.launcher.address: Ray cannot be reached: {first}") from error
        self._connected = True
        if self._address is None and self._count and self._count > (room := self._room()):
            rule = f"and cpus and gpus ask for more than there is here: there is room for {room}"
            require(False, "hydra.launcher.actors", rule, self._count)
        self._say(f"Ray: {self._most()} actors")

    def _prepare_own(self) -> None:
        """Have a cluster of this sweep's own listen on loopback, and take nobody else's requests.

        To be called before anything imports Ray, as libraries do that models are read with.
        """
        # Not in `sweep.dir`, whose path may be too long for the names of sockets.
        self._folder = tempfile.mkdtemp(prefix="sweep-ray-")
        token = Path(self._folder) / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        os.environ |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            # What Ray does on the systems of that name, for its own reasons: else it listens on all addresses.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }

    def _most(self) -> int:
        return self._count or max(1, self._room())

    def _room(self) -> int:
        """Return how many actors the cluster has room for, busy or not."""
        import ray

        resources = ray.cluster_resources()
        room = [resources.get("CPU", 0) / self._cpus] if self._cpus else []
        room += [resources.get("GPU", 0) / self._gpus] if self._gpus else []
        return int(min(room, default=1))

    def _actor(self) -> Any:
        import ray

        return ray.remote(num_cpus=self._cpus, num_gpus=self._gpus, max_restarts=0)(ShardActor).remote()


class ShardActor:
    """A worker in a process of Ray's."""

    def __init__(self) -> None:
        import sweep._environment  # noqa: F401 - before the libraries that it is for
        from sweep.shards.worker import ShardWorker
        from sweep.terminal import Terminal

        self._terminal = Terminal()
        self._worker = ShardWorker(self._terminal)

    def is_ready(self) -> bool:
        """Return once there was room for it."""
        return True

    def work(self, path: str, index: int) -> str | None:
        """Work off a shard; return why it is not done, None if it is."""
        manifest = read(Path(path))
        try:
            manifest.enter()
        except SweepError as error:
            return str(error)
        with self._terminal.divert(manifest.log(f"shard-{index:05d}"), verbose=False):
            try:
                self._worker.work(manifest, index, patience=LEASE_SECONDS)
            except SweepError as error:
                return redact(str(error))
        return None
