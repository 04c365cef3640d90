"""What can go wrong, by who has to act: the user (`ConfigError`), or whoever runs the engine or the tracker."""

from __future__ import annotations

from collections.abc import Hashable


class SweepError(Exception):
    """An error that is reported in a line or three, without a traceback.  The program ends with `exit_code`."""

    exit_code = 1


class ConfigError(SweepError):
    """The configuration or an input is wrong; found before anything expensive was started."""

    exit_code = 2


class TrackerAway(ConfigError):
    """The tracker does not answer; a sweep that was published there before goes on without it."""


class EngineError(SweepError):
    """The engine did not start, or failed while it was working."""


class EngineDied(EngineError):
    """A started engine is not usable any more: its process is gone, or its state is no longer to be trusted.

    Attributes:
        culprits: the keys of the requests that the engine itself named as the cause; mostly it cannot say.
    """

    def __init__(self, message: str, culprits: tuple[Hashable, ...] = ()) -> None:
        super().__init__(message)
        self.culprits = culprits


class EngineOutOfMemory(EngineDied):
    """The engine ran out of memory, while it was starting or working; with fewer requests at a time it may not."""


class LeaseError(SweepError):
    """It cannot be made sure that no other process runs the sweep: the lease's folder cannot be used."""


class TrackingError(SweepError):
    """Results are safe in the journal, but could not be published.

    Attributes:
        reason: why, without what.
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason or message


class JournalError(SweepError):
    """What is generated cannot be kept: the disk is full or the folder gone.  What was kept before is there."""


class SweepHeld(SweepError):
    """Another process is at work on this sweep."""

    exit_code = 75


class TransformError(SweepError):
    """A transform cannot be applied to a prompt, or gave rows that cannot be sent."""


class PointsFailed(SweepError):
    """Some points of the sweep failed; the others are done and published."""


class TooManyFailures(SweepError):
    """More points failed than the sweep was told to bear; what was complete is published."""
