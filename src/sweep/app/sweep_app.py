"""This process's sweep, which launchers hand points to as often as they like.

It lives in a module, not in `__main__` or in a launcher object, so that whichever launcher calls finds the same engine,
the same parent run and the same controls.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep.disk.lease import Lease
from sweep.errors import ConfigError, SweepError
from sweep.objective import OF_CONTROL
from sweep.point import Point
from sweep.redaction import redact, redact_file
from sweep.terminal import Terminal

if TYPE_CHECKING:
    from sweep.outcome import PointResult
    from sweep.preview import Preview
    from sweep.runner import Runner
    from sweep.shards.crew import Crew


FOLDER_ID = ".id"
NOT_IDENTITY = ("sweep", "tracking", "hydra", "verbose")
HOW_LONG = ("n_trials", "n_jobs")  # of a sweeper: a search that goes on longer is the same search


class Session:
    """One invocation of the program.

    Attributes:
        id: of its sweep: the same for the same command and configuration, so that they find what they have begun.
        axes: the keys that an optimising sweeper varies; empty: those whose values differ within a batch.
    """

    def __init__(self) -> None:
        self.id = ""
        self.axes: tuple[str, ...] = ()
        self.terminal = Terminal()
        self._runner: Runner | None = None
        self._preview: Preview | None = None
        self._undo = ExitStack()
        self._trusted: set[str] = set()
        self._when_held: list[Callable[[], None]] = []
        OmegaConf.register_new_resolver("sweep_folder", self._folder, replace=True)

    def _folder(self, root: str, *, _root_: DictConfig) -> str:
        try:
            sweeps = Path(root).expanduser().resolve() / "sweeps"
        except (RuntimeError, ValueError, OSError) as error:  # nobody's home, a NUL, a loop of links
            raise ConfigError(f"sweep.dir: {root!r} cannot be used: {error}.") from error
        if not self.id:
            made = [path for path in (sweeps.parent / FOLDER_ID, sweeps.parent) if not path.exists()]
            own = _sweep_id(_root_, _folder_id(sweeps.parent))
            self.id = _numbered(own, sweeps, anew=str(_root_.sweep.resume).lower() == "false")
            self._undo.push(partial(self._clear, [*_missing(sweeps / self.id), *made]))
            self._undo.callback(redact_file, sweeps / self.id / "multirun.yaml")  # Hydra keeps what was typed
        return str(sweeps / self.id)

    def run(self, points: Sequence[Point], crew: Callable[[], Crew | None] | None = None) -> list[PointResult | None]:
        """Run points and return what became of each, in their order; None for all of a dry run.

        Args:
            crew: makes who works them off, the first time; None: this process does.
        """
        for model in {
            point.config.model.id for point in points if point.config.model.trust_remote_code
        } - self._trusted:
            self.terminal.say(f"model.trust_remote_code: {model} may run code of its own.")
            self._trusted.add(model)
        if points[0].config.sweep.dry_run:
            self._show(points, crew)
            return [None for _ in points]
        runner = self._runner or self._open(points[0], crew)
        try:
            runner.run(points)
        except ConfigError as error:
            if runner.results:  # of an earlier batch: it is not true that nothing was started
                raise SweepError(str(error)) from error
            raise
        return [runner.result(point) for point in points]

    def measures(self, result: PointResult | None) -> dict[str, float]:
        """Return what sweepers may read of a point: its means, and its control's under `control/…`."""
        if result is None or result.error or self._runner is None:
            return {}
        key = result.point.control_key
        known = self._runner.results.values()
        control = next((r for r in known if r.point.is_control and r.point.control_key == key), None)
        own = {name: summary.mean for name, summary in result.summaries.items()}
        return own | {
            OF_CONTROL + name: summary.mean for name, summary in (control.summaries if control else {}).items()
        }

    def when_held(self, call: Callable[[], None]) -> None:
        """Have something called as soon as no other process can be at work on the sweep."""
        self._when_held.append(call)

    def at_end(self, call: Callable[[], None]) -> None:
        """Have something called when everything else is over; before the first points are run."""
        self._undo.callback(call)

    def note(self, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Have something said on the sweep's own run when it ends."""
        if self._runner is not None and self._runner.publisher is not None:
            self._runner.publisher.note(metrics, tags)

    @property
    def started(self) -> bool:
        """Whether points have been handed over."""
        return self._runner is not None or self._preview is not None

    @property
    def has_results(self) -> bool:
        """Whether points were finished, in this run or before."""
        return self._runner is not None and bool(self._runner.results)

    @property
    def failures(self) -> list[str]:
        """One line for each point that failed or could not be published."""
        if self._runner is None:
            return []
        failed = [f"{r.point.name}: {r.error}" for r in self._runner.results.values() if r.error]
        return failed + self._runner.problems

    def _open(self, point: Point, crew: Callable[[], Crew | None] | None) -> Runner:
        # Here, so that help and wrong configurations are answered without waiting for PyTorch.
        from sweep.report.terminal import print_report
        from sweep.runner import Runner

        runner = Runner(point.config, self.id, _command(), self.terminal, self._workers(crew))
        try:
            lease = runner.folder / "lease"
            begun = lease.exists()
            self._undo.enter_context(Lease(lease, _lost))
            if not begun:
                self._undo.push(partial(self._withdraw, lease))
            for call in self._when_held:
                call()
            log = runner.folder / "sweep.log"
            self._undo.enter_context(self.terminal.divert(log, point.config.verbose))
        except OSError as error:
            raise ConfigError(f"sweep.dir: {point.config.sweep.dir!r} cannot be written: {error.strerror}.") from error
        self._undo.push(lambda *_: print_report(self.terminal, runner, point.config))
        self._runner = self._undo.enter_context(runner)
        return runner

    def _show(self, points: Sequence[Point], crew: Callable[[], Crew | None] | None) -> None:
        from sweep.preview import Preview

        if self._preview is None:
            self._preview = Preview(points[0].config, self.id, self.terminal, self._workers(crew))
        self._preview.show(points)

    def _workers(self, crew: Callable[[], Crew | None] | None) -> Crew | None:
        workers = crew() if crew else None
        if self.axes and workers is not None and not workers.waits:
            raise ConfigError(
                "hydra/launcher: a sweeper that chooses points by what has come of others needs a launcher that waits "
                "for them: not plan, and not slurm with hydra.launcher.wait=false."
            )
        return workers

    def _clear(
        self, made: Sequence[Path], kind: type[BaseException] | None, error: BaseException | None, tb: object
    ) -> None:
        """Remove what was made for a configuration that is refused, but for a log that says something."""
        refused = isinstance(error, (ConfigError, HydraException, OmegaConfBaseException))
        if self.has_results or (not refused and not (isinstance(error, OSError) and not self.started)):
            return
        for path in made:
            with suppress(OSError, Timeout):  # a folder that something else is in, or a lock that somebody holds, stays
                if path.is_dir():
                    path.rmdir()
                elif path.name == FOLDER_ID:
                    # Others name their sweeps by it, and have folders for them at once.
                    if all(other.name == self.id for other in path.parent.glob("sweeps/*")):
                        path.unlink()
                elif path.suffix == ".lock":
                    with FileLock(path, timeout=0):
                        path.unlink()
                elif path.suffix != ".log" or not path.stat().st_size:
                    path.unlink()

    def _withdraw(self, lease: Path, kind: type[BaseException] | None, error: BaseException | None, tb: object) -> None:
        """Remove a lease's folder while the lease is held, when nobody can have another claim in it."""
        if isinstance(error, ConfigError) and not self.has_results:
            with suppress(OSError):
                for claim in lease.glob("*.json"):
                    claim.unlink()
                lease.rmdir()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._undo.__exit__(kind, error, tb)


def _missing(folder: Path) -> list[Path]:
    """Return what an invocation makes before it has checked everything, and which is not there yet."""
    root = folder.parents[1]
    files = [folder / "multirun.yaml", folder / "sweep.log", root / ".tracking.lock"]
    files += [root / ".cache" / name for name in ("digests.json", "digests.lock")]
    return [path for path in (*files, root / ".cache", folder, folder.parent) if not path.exists()]


def _folder_id(root: Path) -> str:
    """Return what tells a folder of sweeps from others, whose sweeps by the same command may be on the same tracker."""
    path, fresh = root / FOLDER_ID, secrets.token_hex(8)
    temporary = root / f"{FOLDER_ID}-{fresh}"
    with suppress(OSError):  # a folder that cannot be written is refused later
        if path.is_file() and (known := path.read_text().strip()):
            return known
        root.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(fresh)
            if path.exists():  # empty, as a full disk leaves it
                temporary.replace(path)
            else:
                with suppress(FileExistsError):  # another process was first
                    os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return path.read_text().strip()
    return fresh


def _sweep_id(base: DictConfig, folder: str) -> str:
    """Return what names a sweep: a hash of its command, of the configuration that that begins from, and of its folder.

    Where it runs, how it is tracked and what it is called makes no other sweep of it.
    """
    plain = OmegaConf.to_container(OmegaConf.masked_copy(base, [str(key) for key in base if key not in NOT_IDENTITY]))
    sweeper: Any = OmegaConf.to_container(base.hydra.sweeper) if "hydra" in base else None
    sweeper = sweeper and {key: value for key, value in sweeper.items() if key not in HOW_LONG}
    swept = [argument for argument in sys.argv[1:] if "=" in argument and not _is_aside(argument)]
    text = json.dumps([plain, sweeper, sorted(swept), folder], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _is_aside(argument: str) -> bool:
    return re.split(r"[./=@]", argument.lstrip("+~"))[0] in NOT_IDENTITY


def _numbered(sweep_id: str, sweeps: Path, anew: bool) -> str:
    """Return the id of the latest sweep of this name; `anew`: of the next one."""
    # Those that got as far as to be held; a dry run or a refusal leaves others.
    begun = [path.parent.name for path in sweeps.glob(f"{sweep_id}*/lease")]
    numbers = [int(match[1] or 1) for name in begun if (match := re.fullmatch(rf"{sweep_id}(?:\.(\d+))?", name))]
    number = max(numbers, default=0) + anew or 1
    return sweep_id if number == 1 else f"{sweep_id}.{number}"


def _lost(reason: str) -> None:
    """End this process: another one is at work on its sweep."""
    logging.getLogger(__name__).warning("%s", reason)
    os.kill(os.getpid(), signal.SIGTERM)


def _command() -> str:
    """Return the command line as it was typed, without secrets."""
    return redact(shlex.join(["sweep", *(argument for argument in sys.argv[1:] if argument != "--multirun")]))


_current: Session | None = None


def current() -> Session:
    """Return this process's session."""
    global _current
    if _current is None:
        _current = Session()
    return _current
