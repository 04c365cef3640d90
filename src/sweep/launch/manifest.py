"""Plan files: written by the coordinator, read by the workers.

<folder>/manifest.json            what all shards share
         shard-00000.json         a shard's points: a table per configuration section, and rows of indices into them
         shard-00000.state.json   progress of the shard, written by its worker
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from sweep.config.loader import Parser
from sweep.config.schema import SweepConfig
from sweep.core.section import Section, value_digest
from sweep.errors import ConfigError
from sweep.planning.plan import EngineGroup, PlannedPoint
from sweep.points.point import EngineSpec, Point
from sweep.util import atomic
from sweep.util.state_files import build, parse
from sweep.util.state_files import read as read_file

VERSION = 3
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class ShardPoint:
    """A point in a shard's file.

    Attributes:
        point: the point.
        index: position in the sweep.
        fingerprint: its fingerprint at planning.
        control_shard: for a control that this shard only compares with, the shard that generates it. None: this shard
            generates the point.
    """

    point: Point
    index: int
    fingerprint: str
    control_shard: int | None

    @property
    def is_generated_here(self) -> bool:
        """Whether this shard generates the point."""
        return self.control_shard is None


@dataclass(frozen=True, slots=True)
class Shard:
    """The content of a shard's file.

    Attributes:
        points: its points. Controls that other shards generate come first.
        max_model_len: largest number of tokens in prompt and answer together. Equal for all shards with the same
            engine, so that a worker keeps its engine from one shard to the next.
    """

    points: list[ShardPoint]
    max_model_len: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The part of a plan that all shards share.

    Attributes:
        folder: the plan's folder.
        sweep_id: id of the sweep.
        command: the user's command line, without secrets.
        workdir: base of the relative paths in configurations.
        parent: id of the sweep's parent run, under which workers publish points. None: the coordinator publishes them.
        shards: number of shards.
        written: time of writing, in seconds since the epoch.
        clock: the time that chat templates are given, in ISO 8601, or None if they read no clock.
    """

    folder: Path
    sweep_id: str
    command: str
    workdir: str
    parent: str | None
    shards: int
    written: float
    clock: str | None = None

    @property
    def instant(self) -> datetime | None:
        """`clock` as a datetime.

        Raises:
            ConfigError: `clock` is not in ISO 8601.
        """
        try:
            return None if self.clock is None else datetime.fromisoformat(self.clock)
        except ValueError as error:
            raise _damaged(self.path, error) from error

    @property
    def path(self) -> Path:
        """The manifest's file."""
        return self.folder / MANIFEST

    def shard(self, index: int) -> Path:
        """Return a shard's file."""
        return self.folder / f"shard-{index:05d}.json"

    def log(self, name: str) -> Path:
        """Return the log file of a process."""
        return self.folder / f"{name}.log"

    def enter_workdir(self) -> None:
        """Change to the folder in which the plan was made, because its paths are relative to it.

        Raises:
            ConfigError: the folder does not exist here.
        """
        try:
            os.chdir(self.workdir)
        except OSError as error:
            raise ConfigError(
                f"{self.path}: cannot change to {self.workdir}, where the plan was made: {error.strerror}. "
                "Shards must run on a machine that has this folder."
            ) from error

    def state(self, index: int) -> Path:
        """Return a shard's state file."""
        return self.folder / f"shard-{index:05d}.state.json"

    def lock(self, index: int) -> Path:
        """Return the folder of a shard's lock, which its worker holds."""
        return self.folder / f"shard-{index:05d}.lease"

    @property
    def replaced(self) -> Path:
        """A file that exists once a later run of the sweep has replaced the plan."""
        return self.folder / "replaced"

    @property
    def counted(self) -> Path:
        """A file that exists once the plan's costs have been added to the sweep's parent run."""
        return self.folder / "counted"

    @property
    def is_replaced(self) -> bool:
        """Whether a later run of the sweep has replaced the plan. Its shards must not be started any more."""
        return self.replaced.exists()


def write(
    folder: Path,
    groups: Sequence[EngineGroup],
    shards: Sequence[Sequence[PlannedPoint]],
    *,
    sweep_id: str,
    command: str,
    parent: str | None,
    instant: datetime | None = None,
) -> Manifest:
    """Write a plan and return its manifest. The manifest is written last, so that it marks a complete plan.

    A shard's file also contains the controls of its points that other shards generate.

    Args:
        folder: folder of the plan.
        groups: the groups that were split into shards.
        shards: the points of each shard.
        sweep_id: see `Manifest`.
        command: see `Manifest`.
        parent: see `Manifest`.
        instant: see `Manifest.clock`.

    Raises:
        ConfigError: the folder cannot be written.
    """
    manifest = Manifest(
        folder=folder,
        sweep_id=sweep_id,
        command=command,
        workdir=os.getcwd(),
        parent=parent,
        shards=len(shards),
        written=time.time(),
        clock=None if instant is None else instant.isoformat(),
    )
    controls = {p.point.control_key: (p, i) for i, shard in enumerate(shards) for p in shard if p.point.is_control}
    max_model_lens: Mapping[EngineSpec, int] = {group.spec: group.max_model_len for group in groups}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        manifest.path.unlink(missing_ok=True)
        manifest.replaced.unlink(missing_ok=True)
        manifest.counted.unlink(missing_ok=True)
        for index, shard in enumerate(shards):
            manifest.state(index).unlink(missing_ok=True)
            needed = dict.fromkeys(p.point.control_key for p in shard)
            generated = {p.point.control_key for p in shard if p.point.is_control}
            other_controls = [controls[key] for key in needed if key not in generated and key in controls]
            table = _table([*other_controls, *((p, None) for p in shard)])
            table["max_model_len"] = max_model_lens[shard[0].point.engine_spec]
            _write_private(manifest.shard(index), table)
        plain = {name: value for name, value in asdict(manifest).items() if name != "folder"}
        _write_private(manifest.path, {"version": VERSION, **plain})
    except OSError as error:
        raise ConfigError(f"The plan in {folder} cannot be written: {error.strerror or error}.") from error
    return manifest


def read(path: Path) -> Manifest:
    """Read a manifest.

    Args:
        path: the manifest or its folder.

    Raises:
        ConfigError: there is no manifest, or it is damaged or of another version.
    """
    path = path / MANIFEST if path.is_dir() else path
    plain = _read(path)
    if plain.pop("version", None) != VERSION:
        raise ConfigError(f"{path} was written by another version of sweep. Make a new plan.")
    try:
        return build(Manifest, {**plain, "folder": path.resolve().parent})
    except TypeError as error:
        raise _damaged(path, error) from error


def read_shard(manifest: Manifest, index: int) -> Shard:
    """Read a shard's file.

    Raises:
        ConfigError: there is no such shard, or its file cannot be read.
    """
    if not 0 <= index < manifest.shards:
        raise ConfigError(f"{manifest.path} has no shard {index}. It has the shards 0 to {manifest.shards - 1}.")
    path = manifest.shard(index)
    plain = _read(path)
    try:
        return _shard(plain)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _shard(plain: Mapping[str, Any]) -> Shard:
    sections, shard_points, parser = plain["sections"], [], Parser()
    for row in plain["points"]:
        config = parser.parse({key: table[row["config"][i]] for i, (key, table) in enumerate(sections.items())})
        axes = tuple((key, value) for key, value in row["axes"])
        point = Point(config, axes, row["control"])
        shard_points.append(ShardPoint(point, row["index"], row["fingerprint"], row["home"]))
    return Shard(shard_points, plain["max_model_len"])


def _table(points: Sequence[tuple[PlannedPoint, int | None]]) -> dict[str, Any]:
    """Return a shard's JSON: tables of distinct configuration sections, and a row for each point.

    Args:
        points: each with its `ShardPoint.control_shard`.
    """
    keys = [field.name for field in fields(SweepConfig)]
    tables: dict[str, list[Any]] = {key: [] for key in keys}
    row_numbers: dict[tuple[str, str], int] = {}

    def section_row(key: str, config: SweepConfig) -> int:
        section = getattr(config, key)
        is_section = isinstance(section, Section)
        digest = section.content_digest if is_section else value_digest(config.plain_section(key))
        if (key, digest) not in row_numbers:
            row_numbers[key, digest] = len(tables[key])
            tables[key].append(config.plain_section(key))
        return row_numbers[key, digest]

    rows = [
        {
            "config": [section_row(key, planned.point.config) for key in keys],
            "axes": planned.point.axes,
            "control": planned.point.is_control,
            "index": planned.index,
            "fingerprint": planned.point_fingerprint.fingerprint,
            "home": control_shard,
        }
        for planned, control_shard in points
    ]
    return {"sections": tables, "points": rows}


def _write_private(path: Path, plain: dict[str, Any]) -> None:
    """Write a file that only the user can read, because addresses can contain passwords."""

    def write(temporary: Path) -> None:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump(plain, file, ensure_ascii=False, separators=(",", ":"))

    atomic.replace(path, write)


def _read(path: Path) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = parse(read_file(path))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise _damaged(path, error) from error
    if not isinstance(plain, dict):
        raise _damaged(path, f"expected a JSON object, found {type(plain).__name__}")
    return plain


def _damaged(path: Path, reason: object) -> ConfigError:
    return ConfigError(f"{path} is damaged: {reason}. Make a new plan.")
