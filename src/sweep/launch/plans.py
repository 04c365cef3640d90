"""The plans of one sweep, in one folder: which there are, whether somebody is at work on one, and what it has cost.

A later run of the sweep takes the place of the plans before it, but not while somebody works one off: the same answers
would be generated twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from sweep import signals
from sweep.disk.lease import Lease, unusable
from sweep.errors import ConfigError, SweepHeld
from sweep.shards.manifest import MANIFEST, Manifest, read
from sweep.shards.state import State, read_state

CLOSED = "closed"  # no more plans will come
ELSEWHERE = "elsewhere"  # folders of plans that lie in other places, a line each
POLL_SECONDS = 0.2
TOLD_SECONDS = 6.0  # after which the user is told what is waited for

log = logging.getLogger(__name__)


def new(plans: Path) -> Path:
    """Make the folder of a new plan, and return it."""
    plans.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(path.name) for path in plans.iterdir() if path.name.isdecimal()), default=-1)
    while True:
        try:
            (folder := plans / f"{number:04d}").mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def add(plans: Path, folder: Path) -> Path:
    """Note down that a plan lies in another place, and return that."""
    plans.mkdir(parents=True, exist_ok=True)
    if str(folder) not in _elsewhere(plans):
        with (plans / ELSEWHERE).open("a", encoding="utf-8") as file:
            file.write(f"{folder}\n")
    return folder


def all_of(plans: Path) -> Iterator[Manifest]:
    """Yield the plans that can be read, the oldest first, those in other places last."""
    yield from _readable([*_numbered(plans), *map(Path, _elsewhere(plans))])


def later(manifest: Manifest) -> Iterator[Manifest]:
    """Yield the plans of the same sweep that were made after one."""
    yield from _readable([f for f in _numbered(manifest.folder.parent) if f.name > manifest.folder.name])


def take_place(plans: Path, patience: float) -> None:
    """Have nobody begin shards of the plans that there are.

    Args:
        patience: seconds to wait for whoever is at work on one.

    Raises:
        SweepHeld: somebody is.
    """
    open_ones = [manifest for manifest in all_of(plans) if not manifest.is_replaced]
    began, told = time.monotonic(), False
    while True:
        try:
            _expect_idle(open_ones)
            break
        except SweepHeld as error:
            waited = time.monotonic() - began
            if waited > patience:
                raise
            if waited > TOLD_SECONDS and not told:
                log.warning("%s Waiting for up to %.0f s.", error, patience - waited)
                told = True
            signals.check()
            time.sleep(POLL_SECONDS)
    try:
        for manifest in open_ones:
            manifest.replaced.touch()
    except OSError as error:
        raise unusable(manifest.folder, error) from error
    try:
        _expect_idle(open_ones)  # whoever has begun since has not seen it
    except SweepHeld:
        for manifest in open_ones:
            manifest.replaced.unlink(missing_ok=True)
        raise


def uncounted(plans: Path) -> Iterator[tuple[Manifest, list[State]]]:
    """Yield the plans of whose costs the sweep's own run has not been told, with the states of their shards."""
    for manifest in all_of(plans):
        if not manifest.counted.exists():
            yield manifest, states(manifest)


def states(manifest: Manifest) -> list[State]:
    """Return the states of the shards that were begun."""
    found = (read_state(manifest.state(index)) for index in range(manifest.shards))
    return [state for state in found if state is not None]


def close(plans: Path) -> None:
    """Say that no more plans will come."""
    (plans / CLOSED).touch()


def reopen(plans: Path) -> None:
    """Say that plans may come again."""
    (plans / CLOSED).unlink(missing_ok=True)


def is_closed(plans: Path) -> bool:
    """Whether no more plans will come."""
    return (plans / CLOSED).exists()


def _numbered(plans: Path) -> list[Path]:
    return sorted(path.parent for path in plans.glob(f"*/{MANIFEST}"))


def _readable(folders: Sequence[Path]) -> Iterator[Manifest]:
    for folder in folders:
        with suppress(ConfigError):  # removed by its owner, of another version, or left by a process that died
            yield read(folder)


def _elsewhere(plans: Path) -> list[str]:
    try:
        return (plans / ELSEWHERE).read_text("utf-8").splitlines()
    except FileNotFoundError:
        return []


def _expect_idle(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        for index in range(manifest.shards):
            if (folder := manifest.lease(index)).is_dir():
                try:
                    Lease(folder).expect_free()
                except SweepHeld as error:
                    raise SweepHeld(f"Shard {index} of {manifest.folder}: {error}") from error
