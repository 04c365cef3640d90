"""This process's sweep, which launchers hand points to as often as they like.

It lives in a module, not in `__main__` or in a launcher object, so that whichever launcher calls finds the same engine,
the same parent run and the same controls.
"""

from __future__ import annotations

import secrets
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from sweep.errors import ConfigError
from sweep.point import Point
from sweep.terminal import Terminal

if TYPE_CHECKING:
    from sweep.outcome import PointResult
    from sweep.runner import Runner


class Session:
    """One invocation of the program."""

    def __init__(self) -> None:
        self.id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        self.terminal = Terminal()
        self._runner: Runner | None = None
        self._undo = ExitStack()
        OmegaConf.register_new_resolver("sweep_folder", self._folder, replace=True)

    def _folder(self, root: str) -> str:
        return str(Path(root).expanduser().resolve() / "sweeps" / self.id)

    def run(self, points: Sequence[Point]) -> list[PointResult | None]:
        """Run points and return what became of each, in their order; None for all of a dry run."""
        runner = self._runner or self._open(points[0])
        runner.run(points)
        return [runner.results.get(point.key) for point in points]

    @property
    def started(self) -> bool:
        """Whether points have been handed over."""
        return self._runner is not None

    @property
    def failures(self) -> list[str]:
        """One line for each point that failed or could not be published."""
        if self._runner is None:
            return []
        failed = [f"{r.point.name}: {r.error}" for r in self._runner.results.values() if r.error]
        return failed + self._runner.publishing_errors

    def _open(self, point: Point) -> Runner:
        # Here, so that help and wrong configurations are answered without waiting for PyTorch.
        from sweep.report.terminal import print_report
        from sweep.runner import Runner

        runner = Runner(point.config, self.id, _command(), self.terminal)
        log = runner.folder / "sweep.log"
        try:
            self._undo.enter_context(self.terminal.divert(log, point.config.verbose))
        except OSError as error:
            raise ConfigError(f"sweep.dir: {point.config.sweep.dir!r} cannot be written: {error.strerror}.") from error
        self._undo.push(lambda *_: print_report(self.terminal, runner, point.config))
        self._runner = self._undo.enter_context(runner)
        return runner

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._undo.__exit__(kind, error, tb)


def _command() -> str:
    """Return the command line as it was typed."""
    return shlex.join(["sweep", *(argument for argument in sys.argv[1:] if argument != "--multirun")])


_current: Session | None = None


def current() -> Session:
    """Return this process's session."""
    global _current
    if _current is None:
        _current = Session()
    return _current
