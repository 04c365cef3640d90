"""What can go wrong, by who has to act: the user (`ConfigError`), or whoever runs the engine or the tracker."""

from __future__ import annotations


class SweepError(Exception):
    """An error that is reported in a line or three, without a traceback.  The program ends with `exit_code`."""

    exit_code = 1


class ConfigError(SweepError):
    """The configuration or an input is wrong; found before anything expensive was started."""

    exit_code = 2


class EngineError(SweepError):
    """The engine failed or died while it was working."""


class TrackingError(SweepError):
    """Results are safe in the journal, but could not be published."""


class TransformError(SweepError):
    """A transform cannot be applied to a prompt, or gave rows that cannot be sent."""


class PointsFailed(SweepError):
    """Some points of the sweep failed; the others are done and published."""
