"""Application object of this process: the sweep's folder, lock, runner and exit callbacks.

It is a module-level object so that every launcher finds the same engine, the same parent run and the same controls.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep.app.sweep_folder import (
    FOLDER_ID,
    UNKNOWN_ID,
    folder_id,
    make_sweep_id,
    missing_paths,
    numbered,
    require_regular_file,
    sweeps_folder,
)
from sweep.app.sweep_name import default_name
from sweep.config.objective import CONTROL_PREFIX
from sweep.console.terminal import Terminal
from sweep.errors import ConfigError, SweepError
from sweep.points.point import Point, with_controls
from sweep.report.point_selectors import check_selectors
from sweep.storage.lock import SweepLock
from sweep.util.redaction import redact, redact_file

if TYPE_CHECKING:
    from sweep.app.dry_run import DryRun
    from sweep.app.sweep_runner import SweepRunner
    from sweep.launch.backend import ShardBackend
    from sweep.planning.results import PointResult


class SweepApp:
    """One invocation of the program: opens the sweep, runs batches of points, and cleans up on exit.

    Owned by the main thread. `open_folder` comes first. `run` opens the runner with the first batch; leaving the `with`
    block closes it, prints the report and runs the exit callbacks.

    Attributes:
        id: Sweep id. The same command and configuration have the same id, so that a sweep can be resumed.
        axes: Keys that an optimising sweeper varies. Empty: the keys whose values differ within a batch.
    """

    def __init__(self) -> None:
        self.id = ""
        self._folder: Path | None = None
        self.axes: tuple[str, ...] = ()
        self.terminal = Terminal()
        self._runner: SweepRunner | None = None
        self._dry_run: DryRun | None = None
        self._exit_stack = ExitStack()
        self._trusted: set[str] = set()
        self._lock_callbacks: list[Callable[[], None]] = []
        self._in_batches = False
        OmegaConf.register_new_resolver("sweep_folder", self._folder_below, replace=True)

    def open_folder(self, config: DictConfig) -> None:
        """Allocate the sweep's id and check its folder. Register what removes new files after a refusal or a dry run.

        Called once, before Hydra runs anything: Hydra writes the command's overrides to the folder.

        Args:
            config: the command's configuration as Hydra composed it.

        Raises:
            ConfigError: a file in the folder is not a regular file.
            OmegaConfBaseException: `sweep.dir` has no value, or cannot be used as a path.
        """
        sweeps = Path(config.hydra.sweep.dir).parent  # `_folder_below` has checked the path
        root_paths = (sweeps.parent / FOLDER_ID, sweeps.parent, *sweeps.parent.parents)
        created = [path for path in root_paths if not path.exists()]
        sweep_id = make_sweep_id(config, folder_id(sweeps.parent))
        self._in_batches = config.hydra.sweeper.get("max_batch_size") is not None
        self.id = numbered(sweep_id, sweeps, restart=str(config.sweep.resume).lower() == "false")
        self._folder = folder = sweeps / self.id
        self._exit_stack.push(partial(self._remove_created, [*missing_paths(folder), *created]))
        for path in (self.overrides_file, folder / "sweep.log", folder / "published.jsonl"):
            require_regular_file(path)
        previous = self.overrides_file.read_bytes() if self.overrides_file.is_file() else None
        self._exit_stack.push(partial(self._restore, self.overrides_file, previous))
        self._exit_stack.callback(redact_file, self.overrides_file)

    @property
    def folder(self) -> Path:
        """Folder of the sweep's files. Only after `open_folder`."""
        assert self._folder is not None
        return self._folder

    @property
    def overrides_file(self) -> Path:
        """File to which sweepers write the overrides of the command."""
        return self.folder / "multirun.yaml"

    def _folder_below(self, root: str) -> str:
        """Return the sweep's folder for `${sweep_folder:…}`, by which Hydra knows it. Changes nothing."""
        return str(sweeps_folder(root) / (self.id or UNKNOWN_ID))

    def run(
        self, points: Sequence[Point], backend: Callable[[], ShardBackend | None] | None = None
    ) -> list[PointResult | None]:
        """Run one batch of points.

        Args:
            points: Points of the batch; controls are added.
            backend: Makes the backend that runs shards, on the first call. None, or a backend of None: run the points
                in this process.

        Returns:
            A result for each point, in order; None for each point of a dry run.

        Raises:
            ConfigError: an input is wrong, or `report.baseline` or a contrast names a point that does not exist.
        """
        for model in {
            point.config.model.id for point in points if point.config.model.trust_remote_code
        } - self._trusted:
            self.terminal.say(f"model.trust_remote_code=true: {model} may run Python code from its repository.")
            self._trusted.add(model)
        if not self.axes and not self._in_batches:  # else points of later batches are not known
            check_selectors(points[0].config.report, enumerate(with_controls(points)))
        if points[0].config.sweep.dry_run:
            self._run_dry(points, backend)
            return [None for _ in points]
        runner = self._runner or self._open(points[0], backend)
        try:
            runner.run(points)
        except ConfigError as error:
            if runner.results:  # an earlier batch ran, so exit code 2 (nothing was started) would be wrong
                raise SweepError(str(error)) from error
            raise
        return [runner.result(point) for point in points]

    def measures(self, result: PointResult | None) -> dict[str, float]:
        """Return a point's mean measures for a sweeper, and its control's under `control/…`."""
        if result is None or result.error or self._runner is None:
            return {}
        key = result.point.control_key
        results = self._runner.results.values()
        control = next((r for r in results if r.point.is_control and r.point.control_key == key), None)
        means = {name: summary.mean for name, summary in result.summaries.items()}
        return means | {
            CONTROL_PREFIX + name: summary.mean for name, summary in (control.summaries if control else {}).items()
        }

    def on_lock_held(self, callback: Callable[[], None]) -> None:
        """Register a callback to run once the sweep lock is held."""
        self._lock_callbacks.append(callback)

    def on_exit(self, callback: Callable[[], None]) -> None:
        """Register a callback to run after everything else has ended. Call it before the first `run`."""
        self._exit_stack.callback(callback)

    def add_summary(self, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Add metrics and tags to the parent run when the sweep finishes."""
        if self._runner is not None and self._runner.publisher is not None:
            self._runner.publisher.add_to_parent_run(metrics, tags)

    @property
    def started(self) -> bool:
        """Whether a batch of points was passed to `run`."""
        return self._runner is not None or self._dry_run is not None

    @property
    def has_results(self) -> bool:
        """Whether any point has a result, from this invocation or an earlier one."""
        return self._runner is not None and bool(self._runner.results)

    @property
    def failures(self) -> list[str]:
        """One line for each point that failed or could not be published."""
        if self._runner is None:
            return []
        failed = [f"{r.point.name}: {r.error}" for r in self._runner.results.values() if r.error]
        return failed + self._runner.problems

    def _open(self, point: Point, backend: Callable[[], ShardBackend | None] | None) -> SweepRunner:
        # Imported here, so that --help and wrong configurations need not wait for PyTorch.
        from sweep.app.sweep_runner import SweepRunner
        from sweep.report.terminal import print_report

        name = default_name(sys.argv[1:], point.config.transform.name)
        runner = SweepRunner(point.config, self.id, _command(), self.terminal, self._make_backend(backend), name=name)
        try:
            lock = runner.folder / "lease"
            resumed = lock.exists()
            self._exit_stack.enter_context(SweepLock(lock, _end_process))
            if not resumed:
                self._exit_stack.push(partial(self._remove_lock, lock))
            for callback in self._lock_callbacks:
                callback()
            log = runner.folder / "sweep.log"
            self._exit_stack.enter_context(self.terminal.divert(log, point.config.verbose))
        except OSError as error:
            raise ConfigError(f"sweep.dir: cannot write to {point.config.sweep.dir!r}: {error.strerror}.") from error

        def close(*_: object) -> None:
            if (outcome := runner.outcome()) is not None:
                print_report(self.terminal, outcome, point.config)

        self._exit_stack.push(close)
        self._runner = self._exit_stack.enter_context(runner)
        return runner

    def _run_dry(self, points: Sequence[Point], backend: Callable[[], ShardBackend | None] | None) -> None:
        from sweep.app.dry_run import DryRun

        if self._dry_run is None:
            shard_backend = self._make_backend(backend)
            if shard_backend is not None:
                self._exit_stack.callback(shard_backend.close)
            self._dry_run = DryRun(points[0].config, self.id, self.terminal, shard_backend)
        with self.terminal.showing_warnings():
            self._dry_run.show(points)

    def _make_backend(self, make: Callable[[], ShardBackend | None] | None) -> ShardBackend | None:
        backend = make() if make else None
        if self.axes and backend is not None and not backend.waits:
            raise ConfigError(
                "hydra/launcher: an optimising sweeper needs a launcher that waits for results. "
                "Do not use plan, or slurm with hydra.launcher.wait=false."
            )
        return backend

    def _remove_created(
        self, created: Sequence[Path], kind: type[BaseException] | None, error: BaseException | None, tb: object
    ) -> None:
        """Remove what a dry run or a refused configuration has created, except a log with content."""
        refused = isinstance(error, (ConfigError, HydraException, OmegaConfBaseException))
        refused |= isinstance(error, OSError) and not self.started
        if self.has_results or not (refused or self._dry_run is not None):
            return
        for path in created:
            with suppress(OSError, Timeout):  # a folder with other files in it, or a lock that is held, stays
                if path.is_dir():
                    path.rmdir()
                elif path.name == FOLDER_ID:
                    # Other sweeps derive their ids from it, and create their folders right away.
                    others = list(path.parent.glob("sweeps/*"))
                    if all(other.name == self.id and not (other / "lease").exists() for other in others):
                        path.unlink()
                elif path.suffix == ".lock":
                    with FileLock(path, timeout=0):
                        path.unlink()
                elif path.suffix != ".log" or not path.stat().st_size:
                    path.unlink()

    def _restore(self, path: Path, previous: bytes | None, *_: object) -> None:
        """Undo what a dry run has changed in the folder of an existing sweep."""
        if self._dry_run is not None and previous is not None:
            with suppress(OSError):
                path.write_bytes(previous)

    def _remove_lock(
        self, lock: Path, kind: type[BaseException] | None, error: BaseException | None, tb: object
    ) -> None:
        """Remove a new lock's folder after a refusal, while the lock is held and no other process can claim it."""
        if isinstance(error, ConfigError) and not self.has_results:
            with suppress(OSError):
                for claim in lock.glob("*.json"):
                    claim.unlink()
                lock.rmdir()

    def __enter__(self) -> SweepApp:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._exit_stack.__exit__(kind, error, tb)


def _end_process(reason: str) -> None:
    """End this process, because another process has taken the sweep lock."""
    logging.getLogger(__name__).warning("%s", reason)
    os.kill(os.getpid(), signal.SIGTERM)


def _command() -> str:
    """Return the command line as typed, without secrets."""
    return redact(shlex.join(["sweep", *(argument for argument in sys.argv[1:] if argument != "--multirun")]))


_current: SweepApp | None = None


def current() -> SweepApp:
    """Return this process's application object, and make it on the first call."""
    global _current
    if _current is None:
        _current = SweepApp()
    return _current
