"""Ray backend: actors with an engine each run one shard after the other.

Only Ray Core is used. The LLM parts of Ray Data and Ray Serve accept no prompt embeddings and pin another vLLM.
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

from sweep.console import signals
from sweep.errors import ConfigError, EngineError, SweepError
from sweep.launch.backend import ATTEMPTS, LOCK_EXPIRY_SECONDS, ShardBackend, unfinished_shards
from sweep.launch.manifest import Manifest, read
from sweep.util.redaction import redact
from sweep.util.validators import require

log = logging.getLogger(__name__)

PERIOD = 0.5  # seconds
ROOM_SECONDS = 30.0  # after which the user is told that actors wait for free resources
# Without it, an actor with 0 GPUs sees all GPUs of its machine in Ray 2.60 (ray-project/ray#54868, #62492).
NO_GPUS = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}


class RayBackend(ShardBackend):
    """Runs shards on Ray actors, which keep their engines from plan to plan.

    An actor that dies is replaced, and its shard is run again. Owned by the coordinator's main thread.

    Args:
        actors: number of actors. None: as many as the cluster has room for.
        address: address of a running cluster. None: start one on this machine, which ends with this process.
        gpus: GPUs per actor. None: 1 if the cluster has GPUs, else 0. With 0, an actor sees no GPU.
        cpus: CPUs that an actor reserves, and threads of its numerical libraries. None: it reserves one CPU, and has
            as many threads as there are CPUs for each of its GPUs, or one without GPUs.
        shards: number of shards per plan. None: as many as are worth an engine start.
        say: prints a message to the user.
    """

    patience = LOCK_EXPIRY_SECONDS

    def __init__(
        self,
        *,
        actors: int | None,
        address: str | None,
        gpus: float | None,
        cpus: float | None,
        shards: int | None,
        say: Callable[[str], None],
    ) -> None:
        super().__init__(shards)
        self._count, self._address, self._gpus, self._cpus, self._say = actors, address, gpus, cpus, say
        self._hide_gpus = gpus == 0  # only if configured: Ray finds no GPUs of kinds that it does not know
        self._actors: list[Any] = []
        self._folder: str | None = None
        if address is None:
            self._prepare_private_cluster()
        self._connected = False

    def suggest_shards(self, tokens: int) -> int:
        """Return several shards per actor, if the number of actors is configured, to balance the load."""
        return 4 * self._count if self._count else super().suggest_shards(tokens)

    def work(self, manifest: Manifest, watch: Callable[[], None]) -> Mapping[int, str]:
        """See `ShardBackend`."""
        import ray

        self._connect()
        waiting, reasons = list(range(manifest.shards)), dict[int, str]()
        attempts, busy = dict.fromkeys(waiting, 0), dict[Any, tuple[int | None, Any]]()
        while len(self._actors) < min(self._actor_limit(), manifest.shards):
            self._actors.append(self._start_actor())
        # An actor gets a shard only when it is ready. One that never finds room must not block a shard.
        for actor in self._actors:
            busy[actor.is_ready.remote()] = None, actor
        free: list[Any] = []
        started, notified, failed_starts = time.monotonic(), False, 0
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
                    failed_starts = 0
                except ray.exceptions.RayError as error:
                    self._actors.remove(actor)
                    reason = f"its actor has died: {str(error).splitlines()[0]}"
                    if index is None:
                        failed_starts += 1
                        if failed_starts == ATTEMPTS:
                            raise EngineError(
                                f"hydra/launcher=ray: {ATTEMPTS} actors in a row could not start: "
                                f"{str(error).splitlines()[0]}"
                            ) from error
                    else:
                        reasons[index] = reason
                        log.warning("Shard %d: %s", index, reason)
                        if attempts[index] < ATTEMPTS:
                            waiting.insert(0, index)
                    self._actors.append(actor := self._start_actor())
                    busy[actor.is_ready.remote()] = None, actor
            if not notified and time.monotonic() - started > ROOM_SECONDS:
                if waiting_actors := sum(index is None for index, _ in busy.values()):
                    self._say(
                        f"Ray: {waiting_actors} of {len(self._actors)} actors wait for free resources in the cluster"
                    )
                notified = True
        return unfinished_shards(manifest, reasons)

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
            reason = str(error).strip().splitlines()[0][:200]
            raise ConfigError(f"hydra.launcher.address: cannot connect to Ray: {reason}") from error
        self._connected = True
        self._set_default_gpus()
        if self._address is None and self._count and self._count > (room := self._room()):
            rule = f"needs more CPUs or GPUs than this machine has: room for {room} actors (see cpus and gpus)"
            require(False, "hydra.launcher.actors", rule, self._count)
        self._say(f"Ray: {self._actor_limit()} actors")

    def _set_default_gpus(self) -> None:
        """Set the number of GPUs per actor if it is not configured."""
        if self._gpus is None:
            self._gpus = 1 if self._resource("GPU") else 0

    def _default_threads(self) -> int:
        """Return an actor's share of the CPUs of the machine with the fewest for each GPU.

        The CPUs are not reserved: one that another process holds would keep the actor from starting.
        """
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = self._gpus or 0
        shares = [node.get("CPU", 0) * gpus / node["GPU"] for node in nodes if gpus and node.get("GPU", 0) >= gpus]
        return max(1, int(min(shares, default=1)))

    def _resource(self, name: str) -> float:
        """Return how much of a resource the cluster has in all."""
        import ray

        return float(ray.cluster_resources().get(name, 0))

    def _prepare_private_cluster(self) -> None:
        """Configure a cluster for this sweep that listens on loopback only and requires a token.

        Call it before any library imports Ray, as libraries that read models do.
        """
        # Not in `sweep.dir`: its path may exceed the limit for socket names.
        self._folder = tempfile.mkdtemp(prefix="sweep-ray-")
        token = Path(self._folder) / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        os.environ |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            # Makes Ray listen on loopback only, as it does on Windows and macOS. Otherwise it listens on all addresses.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }

    def _actor_limit(self) -> int:
        return self._count or max(1, self._room())

    def _room(self) -> int:
        """Return how many actors the cluster's total resources allow."""
        cpus = self._reserved_cpus
        limits = [self._resource("CPU") / cpus] if cpus else []
        limits += [self._resource("GPU") / self._gpus] if self._gpus else []
        return int(min(limits, default=1))

    @property
    def _reserved_cpus(self) -> float:
        return 1 if self._cpus is None else self._cpus

    def _start_actor(self) -> Any:
        import ray

        options: dict[str, Any] = {"num_cpus": self._reserved_cpus, "num_gpus": self._gpus, "max_restarts": 0}
        variables = dict(NO_GPUS) if self._hide_gpus else {}
        if self._cpus is None and "OMP_NUM_THREADS" not in os.environ:
            variables["OMP_NUM_THREADS"] = str(self._default_threads())  # else Ray sets it to the reserved CPUs
        if variables:
            options["runtime_env"] = {"env_vars": variables}
        return ray.remote(**options)(ShardActor).remote()


class ShardActor:
    """Shard worker in a Ray process. Becomes a Ray actor with the requested resources.

    Owned by the actor's main thread, which executes the coordinator's calls in order.
    """

    def __init__(self) -> None:
        import sweep.util.environment  # noqa: F401 - sets variables before other libraries are imported
        from sweep.console.terminal import Terminal
        from sweep.launch.shard_worker import ShardWorker

        self._terminal = Terminal()
        self._worker = ShardWorker(self._terminal)

    def is_ready(self) -> bool:
        """Return True. The call completes once Ray has started the actor."""
        return True

    def work(self, path: str, index: int) -> str | None:
        """Run a shard. Return the reason if it is not finished, else None.

        Args:
            path: the plan's manifest.
            index: index of the shard.
        """
        manifest = read(Path(path))
        try:
            manifest.enter_workdir()
        except SweepError as error:
            return str(error)
        with self._terminal.divert(manifest.log(f"shard-{index:05d}"), verbose=False):
            try:
                self._worker.work(manifest, index, patience=LOCK_EXPIRY_SECONDS)
            except SweepError as error:
                return redact(str(error))
        return None
