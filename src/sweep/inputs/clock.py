"""Clock of chat templates: fixed for a sweep, so that all of its points have the same prompts."""

from __future__ import annotations

from datetime import datetime, time
from pathlib import Path

from sweep.errors import ConfigError
from sweep.inputs.config import PromptsConfig, parse_date
from sweep.util import atomic, state_files

FILE = "clock"  # name within the sweep's folder


class SweepClock:
    """The instant that a sweep's chat templates read. Taken on first use, kept in a file, and reused on resume.

    Owned by the thread that plans; one per sweep and process.

    Attributes:
        reads: the distinct instants that templates have read, in order.
    """

    def __init__(self, folder: Path | None = None, *, instant: datetime | None = None, keep: bool = True) -> None:
        """Create a clock.

        Args:
            folder: the sweep's folder, which may have the file of an earlier run; None for no folder.
            instant: the instant that another process of the sweep uses; None for the one in the file, else the current
                time.
            keep: whether to write the file.
        """
        self._file = folder / FILE if folder is not None else None
        self._instant, self._keep = instant, keep
        self.reads: list[datetime] = []

    def read(self, config: PromptsConfig) -> datetime:
        """Return the time for these prompts' templates: `prompts.date` if set, else the sweep's instant, in local time.

        Raises:
            ConfigError: the sweep's clock file is damaged or cannot be written.
        """
        instant = parse_date(config.date) if config.date is not None else self.instant()
        if instant not in self.reads:
            self.reads.append(instant)
        return instant

    def instant(self) -> datetime:
        """Return the sweep's instant; create it on first use."""
        if self._instant is None:
            self._instant = self._load() or self._create()
        return self._instant

    @property
    def used(self) -> datetime | None:
        """The sweep's instant, or None if it has not been needed yet."""
        return self._instant

    def _load(self) -> datetime | None:
        if self._file is None:
            return None
        try:
            return datetime.fromisoformat(state_files.read(self._file).decode().strip())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self._file}: must hold the date and time for the sweep's chat templates ({error}). "
                "Set prompts.date, or start over with sweep.resume=false."
            ) from error

    @staticmethod
    def _now() -> datetime:
        return datetime.now().replace(microsecond=0)

    def _create(self) -> datetime:
        now = self._now()
        if self._keep and self._file is not None:
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                atomic.replace(self._file, lambda path: path.write_text(f"{now.isoformat()}\n", "utf-8"))
            except OSError as error:
                raise ConfigError(f"{self._file} cannot be written: {error.strerror or error}.") from error
        return now


def describe_read(instant: datetime) -> str:
    """Return a line for the user about an instant that templates have read."""
    form = "%Y-%m-%d" if instant.time() == time() else "%Y-%m-%d %H:%M:%S"
    return f"The chat template reads the clock: {instant.strftime(form)} is used (prompts.date)."
