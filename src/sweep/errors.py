"""Exceptions and their exit codes.

The codes of `sweep` and `python -m sweep.shard`:

- 0: all points are done. `cli.main` and `shard` return.
- 1: points failed, or the engine, the disk or the tracker failed: `SweepError`. Also Hydra's errors once there are
  results, and Python's own code for an unexpected exception.
- 2: the configuration or an input is wrong: `ConfigError`. `cli.main` also decides it for Hydra's errors,
  configurations that are nested too deeply and paths that cannot be used; `shard` for wrong arguments.
- 75: another process holds the lock: `SweepHeld`.
- 129, 130, 143: SIGHUP; SIGINT; SIGTERM or SIGUSR2: `console.signals.CODES`.

`cli.main` and `shard` exit with an exception's `exit_code`, or with the code of `signals.Interrupted`.
`console.signals` ends the process itself 4.5 s after a signal, or at a second SIGINT. `__main__` ends it with the code
of `SystemExit`, without the interpreter's shutdown if PyTorch is loaded.
"""

from __future__ import annotations

from collections.abc import Hashable


class SweepError(Exception):
    """Base class: reported in one to three lines without a traceback. The program exits with `exit_code`."""

    exit_code = 1


class ConfigError(SweepError):
    """The configuration or an input is wrong. Raised before anything expensive starts."""

    exit_code = 2


class TrackerUnreachable(ConfigError):
    """The tracking server is unreachable. Resumed sweeps continue and publish later."""


class EngineError(SweepError):
    """The engine did not start, or failed while running."""


class EngineDied(EngineError):
    """A running engine is no longer usable: its process ended, or its state cannot be trusted.

    Attributes:
        culprits: keys of the requests that the engine named as the cause; usually empty.
    """

    def __init__(self, message: str, culprits: tuple[Hashable, ...] = ()) -> None:
        super().__init__(message)
        self.culprits = culprits


class EngineOutOfMemory(EngineDied):
    """The engine ran out of memory at start-up or while running. Fewer concurrent requests may help."""


class LockError(SweepError):
    """The sweep lock cannot be verified, because its folder is not usable."""


class TrackingError(SweepError):
    """Results are saved in the journal but could not be published.

    Attributes:
        reason: the cause alone, without saying what failed.
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason or message


class JournalError(SweepError):
    """Generations cannot be saved: the disk is full or the folder is gone. Earlier generations are kept."""


class SweepHeld(SweepError):
    """Another process holds the lock of this sweep."""

    exit_code = 75


class TransformError(SweepError):
    """A transform cannot be applied to a prompt, or returned rows that cannot be sent."""


class PointsFailed(SweepError):
    """Some points of the sweep failed. The others are complete and published."""


class TooManyFailures(SweepError):
    """More points failed than `sweep.max_failures` and `sweep.on_error` allow. Complete points are published."""
