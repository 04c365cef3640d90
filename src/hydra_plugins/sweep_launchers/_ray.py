"""Shards on Ray: actors with an engine each, which are given one shard after the other.

Ray's core is used, not Ray Data's or Serve's LLM parts, which take no prompt embeddings and pin a vLLM of their own.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sweep import signals
from sweep.errors import ConfigError, SweepError
from sweep.redaction import redact
from sweep.shards.crew import ATTEMPTS, Crew, left_undone
from sweep.shards.manifest import Manifest, read

log = logging.getLogger(__name__)

PERIOD = 0.5  # seconds
LEASE_SECONDS = 180.0  # that a shard's next actor waits for what held it on another machine to be known as dead


class RayCrew(Crew):
    """Actors, which keep their engines from plan to plan.  One that dies is replaced, and its shard begun again.

    Args:
        actors: how many; None: as many as the cluster has room for now.
        address: of a running cluster; None: one is started on this machine, and ended with this process.
        gpus, cpus: of each actor.
        shards: how many shards a plan is cut into; None: as many as are worth an engine's start.
        say: tells the user.
    """

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
        attempts, busy = dict.fromkeys(waiting, 0), dict[Any, tuple[int, Any]]()
        while len(self._actors) < min(self._most(), manifest.shards):
            self._actors.append(self._actor())
        free = list(self._actors)
        while waiting or busy:
            while waiting and free:
                actor, index = free.pop(), waiting.pop(0)
                attempts[index] += 1
                busy[actor.work.remote(str(manifest.path), index)] = index, actor
            done, _ = ray.wait(list(busy), timeout=PERIOD)
            signals.check()
            watch()
            for reference in done:
                index, actor = busy.pop(reference)
                try:
                    if (reason := ray.get(reference)) is not None:
                        reasons[index] = reason
                except ray.exceptions.RayError as error:
                    reasons[index] = f"its actor has died: {str(error).splitlines()[0]}"
                    log.warning("Shard %d: %s", index, reasons[index])
                    self._actors.remove(actor)
                    actor = self._actor()
                    self._actors.append(actor)
                    if attempts[index] < ATTEMPTS:
                        waiting.insert(0, index)
                free.append(actor)
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
        if self._count:
            return self._count
        import ray

        resources = ray.cluster_resources()
        room = [resources.get("CPU", 0) / self._cpus] if self._cpus else []
        room += [resources.get("GPU", 0) / self._gpus] if self._gpus else []
        return max(1, int(min(room, default=1)))

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
