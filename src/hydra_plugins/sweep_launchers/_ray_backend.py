"""Ray backend: actors with an engine each run one shard after the other, without a pause between them.

Only Ray Core is used. The LLM parts of Ray Data and Ray Serve accept no prompt embeddings and pin another vLLM.
"""

from __future__ import annotations

import logging
import os
import queue
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
from sweep.processes.cpu import core_share
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
        cpus: CPUs that an actor reserves. None: one. An actor with GPUs runs on its machine's share of cores for them,
            or on so many of them. One without has as many threads for numerical libraries as reserved CPUs.
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
        self._started = 0
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
        attempts = dict.fromkeys(waiting, 0)
        while len(self._actors) < min(self._actor_limit(), manifest.shards):
            self._actors.append(self._start_actor())
        # An actor gets a shard only when it is ready. One that never finds room must not block a shard.
        busy: dict[Any, Any] = {actor.answers.remote(): actor for actor in self._actors}
        free: list[Any] = []
        held: dict[Any, list[int]] = {actor: [] for actor in self._actors}  # shards that are not answered
        unready = set(self._actors)
        started, notified, failed_starts = time.monotonic(), False, 0
        while waiting or any(held.values()):
            for actor in list(free):
                if waiting:
                    shard = waiting.pop(0)
                    attempts[shard] += 1
                    held[actor].append(shard)
                    busy[actor.begin.remote(str(manifest.path), shard)] = actor
                elif held[actor]:
                    busy[actor.settle.remote()] = actor
                else:
                    continue
                free.remove(actor)
            done, _ = ray.wait(list(busy), timeout=PERIOD)
            signals.check()
            watch()
            for reference in done:
                actor = busy.pop(reference)
                try:
                    for index, reason in ray.get(reference):
                        held[actor].remove(index)
                        if reason:
                            reasons[index] = reason
                    free.append(actor)
                    unready.discard(actor)
                    failed_starts = 0
                except ray.exceptions.RayError as error:
                    self._actors.remove(actor)
                    message, lost = str(error).splitlines()[0], held.pop(actor)
                    if actor in unready:
                        failed_starts += 1
                        if failed_starts == ATTEMPTS:
                            raise EngineError(
                                f"hydra/launcher=ray: {ATTEMPTS} actors in a row could not start: {message}"
                            ) from error
                    for index in lost:
                        reasons[index] = f"its actor has died: {message}"
                        log.warning("Shard %d: %s", index, reasons[index])
                    waiting[:0] = [index for index in lost if attempts[index] < ATTEMPTS]
                    self._actors.append(actor := self._start_actor())
                    busy[actor.answers.remote()], held[actor] = actor, []
                    unready.add(actor)
            if not notified and time.monotonic() - started > ROOM_SECONDS:
                if unready:
                    self._say(
                        f"Ray: {len(unready)} of {len(self._actors)} actors wait for free resources in the cluster"
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
        # By default, actors have niceness 15, and get hardly any time next to other processes on busy cores.
        os.environ.setdefault("RAY_worker_niceness", "0")
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
        if variables:
            options["runtime_env"] = {"env_vars": variables}
        self._started += 1
        free_threads = "OMP_NUM_THREADS" not in os.environ
        return ray.remote(**options)(ShardActor).remote(self._started, self._cpus, free_threads)


class ShardActor:
    """Shard worker in a Ray process. Becomes a Ray actor with the requested resources.

    Owned by the actor's main thread, which executes the coordinator's calls in order. Each call returns the shards that
    were finished since the last one: an index and the reason if the shard is not finished, else "".

    Args:
        number: names the log, `actor-NUMBER.log` in the plan's folder.
        cpus: see `RayBackend`.
        free_threads: whether the user leaves the number of OpenMP's threads to this project. Ray sets a number, which
            the engine's core would take for the user's choice. Its threads then wait for each other at each tensor.
    """

    def __init__(self, number: int, cpus: float | None, free_threads: bool) -> None:
        import sweep.util.environment  # noqa: F401 - sets variables before other libraries are imported
        from sweep.console.terminal import Terminal
        from sweep.launch.shard_server import ShardServer
        from sweep.launch.shard_worker import ShardWorker

        _use_core_share(cpus, free_threads)
        self._number, self._terminal, self._log = number, Terminal(), Path()
        self._answers: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
        self._server = ShardServer(ShardWorker(self._terminal), self._answer)

    def answers(self) -> list[tuple[int, str]]:
        """Only return the finished shards. The first call completes once Ray has started the actor."""
        return [self._answers.get() for _ in range(self._answers.qsize())]

    def begin(self, path: str, index: int) -> list[tuple[int, str]]:
        """Generate a shard. Returns once the engine has received its requests.

        Args:
            path: the plan's manifest.
            index: index of the shard.
        """
        manifest = read(Path(path))
        self._log = manifest.log(f"actor-{self._number}")
        with self._terminal.divert(self._log, verbose=False):
            try:
                manifest.enter_workdir()
            except SweepError as error:
                self._server.fail(index, error)
            else:
                self._server.begin(manifest, index, patience=LOCK_EXPIRY_SECONDS)
        return self.answers()

    def settle(self) -> list[tuple[int, str]]:
        """Finish all shards that have begun."""
        with self._terminal.divert(self._log, verbose=False):
            self._server.settle()
        return self.answers()

    def _answer(self, index: int, _code: int, reason: str) -> None:
        self._answers.put((index, reason))


def _use_core_share(cpus: float | None, free_threads: bool) -> None:
    """Run on this process's share of the machine's cores for the GPUs that Ray has assigned to it, if there are any."""
    import ray

    gpus = ray.get_gpu_ids()
    if not gpus:
        return
    if free_threads:
        os.environ.pop("OMP_NUM_THREADS", None)
    node_id = ray.get_runtime_context().get_node_id()
    [node] = [node for node in ray.nodes() if node["NodeID"] == node_id]
    with suppress(ValueError):  # named by UUID
        cores = [core for gpu in gpus for core in core_share(int(gpu), int(node["Resources"].get("GPU", 0)))]
        if cores and (cpus is None or 1 <= cpus <= len(cores)):
            os.sched_setaffinity(0, cores if cpus is None else cores[: int(cpus)])
