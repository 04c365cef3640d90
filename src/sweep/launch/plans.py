"""Plans of a sweep: lists, retires and closes the plans in one folder.

A later run of the sweep retires earlier plans, so that no worker starts their shards any more. While workers run such
shards, it waits or refuses, because the same answers would be generated twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from sweep.console import signals
from sweep.errors import ConfigError, SweepHeld
from sweep.launch.manifest import MANIFEST, Manifest, read
from sweep.launch.shard_state import ShardState, read_state
from sweep.storage.lock import SweepLock, unusable_folder

CLOSED = "closed"  # marks that no more plans will come
ELSEWHERE = "elsewhere"  # list of plan folders in other places, one a line
POLL_SECONDS = 0.2
NOTICE_SECONDS = 6.0  # of waiting, before the user is told why

log = logging.getLogger(__name__)


def new(plans: Path) -> Path:
    """Create and return the folder of a new plan."""
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
    """Register a plan folder in another place, and return it."""
    plans.mkdir(parents=True, exist_ok=True)
    if str(folder) not in _elsewhere(plans):
        with (plans / ELSEWHERE).open("a", encoding="utf-8") as file:
            file.write(f"{folder}\n")
    return folder


def all_plans(plans: Path) -> Iterator[Manifest]:
    """Yield the readable plans, oldest first, and those in other places last."""
    yield from _readable([*_numbered(plans), *map(Path, _elsewhere(plans))])


def later_plans(manifest: Manifest) -> Iterator[Manifest]:
    """Yield the plans of the same sweep that are newer than this one."""
    yield from _readable([f for f in _numbered(manifest.folder.parent) if f.name > manifest.folder.name])


def retire_all(plans: Path, patience: float) -> None:
    """Mark all plans as replaced, so that no worker starts their shards any more.

    Args:
        plans: folder of the sweep's plans.
        patience: seconds to wait for running workers.

    Raises:
        SweepHeld: workers are still running.
    """
    active = [manifest for manifest in all_plans(plans) if not manifest.is_replaced]
    started, notified = time.monotonic(), False
    while True:
        try:
            _expect_idle(active)
            break
        except SweepHeld as error:
            waited = time.monotonic() - started
            if waited > patience:
                raise
            if waited > NOTICE_SECONDS and not notified:
                log.warning("%s Waiting for up to %.0f s.", error, patience - waited)
                notified = True
            signals.check()
            time.sleep(POLL_SECONDS)
    try:
        for manifest in active:
            manifest.replaced.touch()
    except OSError as error:
        raise unusable_folder(manifest.folder, error) from error
    try:
        _expect_idle(active)  # a worker may have started before it could see the mark
    except SweepHeld:
        for manifest in active:
            manifest.replaced.unlink(missing_ok=True)
        raise


def uncounted(plans: Path) -> Iterator[tuple[Manifest, list[ShardState]]]:
    """Yield the plans whose costs are not yet part of the parent run, with the states of their shards."""
    for manifest in all_plans(plans):
        if not manifest.counted.exists():
            yield manifest, states(manifest)


def states(manifest: Manifest) -> list[ShardState]:
    """Return the states of the shards that have started."""
    shard_states = (read_state(manifest.state(index)) for index in range(manifest.shards))
    return [state for state in shard_states if state is not None]


def close(plans: Path) -> None:
    """Mark that no more plans will come."""
    (plans / CLOSED).touch()


def reopen(plans: Path) -> None:
    """Undo `close`."""
    (plans / CLOSED).unlink(missing_ok=True)


def is_closed(plans: Path) -> bool:
    """Return whether no more plans will come."""
    return (plans / CLOSED).exists()


def _numbered(plans: Path) -> list[Path]:
    return sorted(path.parent for path in plans.glob(f"*/{MANIFEST}"))


def _readable(folders: Sequence[Path]) -> Iterator[Manifest]:
    for folder in folders:
        with suppress(ConfigError):  # removed, of another version, or left incomplete by a process that died
            yield read(folder)


def _elsewhere(plans: Path) -> list[str]:
    try:
        return (plans / ELSEWHERE).read_text("utf-8").splitlines()
    except FileNotFoundError:
        return []


def _expect_idle(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        for index in range(manifest.shards):
            if (folder := manifest.lock(index)).is_dir():
                try:
                    SweepLock(folder).expect_free()
                except SweepHeld as error:
                    raise SweepHeld(f"Shard {index} of {manifest.folder}: {error}") from error
