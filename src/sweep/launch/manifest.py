"""A plan on disk: written by the process that planned, read by those that work.

<folder>/manifest.json         what all shards share
         shard-00000.json      a shard's points: a table of each section of configurations, and rows of numbers
         shard-00000.state.json   how far it is, written by whoever works it off
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sweep.config import SweepConfig
from sweep.disk import atomic
from sweep.errors import ConfigError
from sweep.parsing import Parser
from sweep.plan import EngineGroup, PlannedPoint
from sweep.point import EngineSpec, Point

VERSION = 2
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Piece:
    """A point of a shard.

    Attributes:
        index: its place in the sweep.
        fingerprint: what it was when it was planned.
        home: the shard that has it done, as points of this one need it, which is a control; None: this one has.
    """

    point: Point
    index: int
    fingerprint: str
    home: int | None

    @property
    def own(self) -> bool:
        """Whether the shard has it done."""
        return self.home is None


@dataclass(frozen=True, slots=True)
class Shard:
    """What a shard's file says.

    Attributes:
        pieces: its points, controls first where they are not its own.
        max_model_len: tokens of prompt and answer that its engine must have room for, as all shards' of its kind, so
            that an engine can stay open from one to the next.
    """

    pieces: list[Piece]
    max_model_len: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What all shards of a plan share.

    Attributes:
        folder: where the plan lies.
        sweep_id: the sweep's.
        command: what the user typed, without secrets.
        workdir: the folder that relative paths of configurations start from.
        parent: the sweep's own run, as which's children points are published by whoever has them done; None: they are
            published by the process that planned.
        shards: how many there are.
        written: when, in seconds since the epoch.
    """

    folder: Path
    sweep_id: str
    command: str
    workdir: str
    parent: str | None
    shards: int
    written: float

    @property
    def path(self) -> Path:
        """The manifest's own file."""
        return self.folder / MANIFEST

    def shard(self, index: int) -> Path:
        """Return a shard's file."""
        return self.folder / f"shard-{index:05d}.json"

    def log(self, name: str) -> Path:
        """Return the file for what a process logs."""
        return self.folder / f"{name}.log"

    def enter(self) -> None:
        """Go to the folder in which the plan was made, as its paths begin there.

        Raises:
            ConfigError: it is not there.
        """
        try:
            os.chdir(self.workdir)
        except OSError as error:
            raise ConfigError(f"{self.workdir}, where the plan was made, is not here: {error.strerror}.") from error

    def state(self, index: int) -> Path:
        """Return the file that says how far a shard is."""
        return self.folder / f"shard-{index:05d}.state.json"

    def lease(self, index: int) -> Path:
        """Return the folder of the lease that whoever works a shard off holds."""
        return self.folder / f"shard-{index:05d}.lease"

    @property
    def replaced(self) -> Path:
        """The file that is there once a later run of the sweep has taken the plan's place."""
        return self.folder / "replaced"

    @property
    def counted(self) -> Path:
        """The file that is there once the sweep's own run has been told what the plan has cost."""
        return self.folder / "counted"

    @property
    def is_replaced(self) -> bool:
        """Whether a later run of the sweep has taken its place: its shards are not to be begun any more."""
        return self.replaced.exists()


def write(
    folder: Path,
    groups: Sequence[EngineGroup],
    shards: Sequence[Sequence[PlannedPoint]],
    *,
    sweep_id: str,
    command: str,
    parent: str | None,
) -> Manifest:
    """Write a plan and return what its shards share; the manifest is there once all is.

    A shard's points need their controls: those that are in none, or in another shard, come along as not its own.

    Args:
        groups: that the shards were cut of.

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
    )
    controls = {p.point.control_key: (p, i) for i, shard in enumerate(shards) for p in shard if p.point.is_control}
    room: Mapping[EngineSpec, int] = {group.spec: group.max_model_len for group in groups}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        manifest.path.unlink(missing_ok=True)
        manifest.replaced.unlink(missing_ok=True)
        manifest.counted.unlink(missing_ok=True)
        for index, shard in enumerate(shards):
            manifest.state(index).unlink(missing_ok=True)
            needed = dict.fromkeys(p.point.control_key for p in shard)
            here = {p.point.control_key for p in shard if p.point.is_control}
            others = [controls[key] for key in needed if key not in here and key in controls]
            table = _table([*others, *((p, None) for p in shard)])
            table["max_model_len"] = room[shard[0].point.engine_spec]
            _write_private(manifest.shard(index), table)
        plain = {name: value for name, value in asdict(manifest).items() if name != "folder"}
        _write_private(manifest.path, {"version": VERSION, **plain})
    except OSError as error:
        raise ConfigError(f"The plan in {folder} cannot be written: {error.strerror or error}.") from error
    return manifest


def read(path: Path) -> Manifest:
    """Return a manifest, of its path or its folder's.

    Raises:
        ConfigError: there is none, or it is of another version.
    """
    path = path / MANIFEST if path.is_dir() else path
    plain = _read(path)
    if plain.pop("version", None) != VERSION:
        raise ConfigError(f"{path} was written by another version of sweep; plan again.")
    return Manifest(folder=path.resolve().parent, **plain)


def read_shard(manifest: Manifest, index: int) -> Shard:
    """Return a shard.

    Raises:
        ConfigError: there is no such shard, or its file cannot be read.
    """
    if not 0 <= index < manifest.shards:
        raise ConfigError(f"{manifest.path} has the shards 0 to {manifest.shards - 1}, and none of number {index}.")
    plain, parser = _read(manifest.shard(index)), Parser()
    sections, pieces = plain["sections"], []
    for row in plain["points"]:
        config = parser.parse({key: table[row["config"][i]] for i, (key, table) in enumerate(sections.items())})
        axes = tuple((key, value) for key, value in row["axes"])
        point = Point(config, axes, row["control"])
        pieces.append(Piece(point, row["index"], row["fingerprint"], row["home"]))
    return Shard(pieces, plain["max_model_len"])


def _table(points: Sequence[tuple[PlannedPoint, int | None]]) -> dict[str, Any]:
    """Return points, each with its `Piece.home`, as rows of numbers into tables of sections, which many share."""
    keys = [field.name for field in fields(SweepConfig)]
    tables: dict[str, list[Any]] = {key: [] for key in keys}
    known: dict[tuple[str, int], int] = {}

    def place(key: str, config: SweepConfig) -> int:
        section = getattr(config, key)
        if (key, id(section)) not in known:
            known[key, id(section)] = len(tables[key])
            tables[key].append(config.plain_section(key))
        return known[key, id(section)]

    rows = [
        {
            "config": [place(key, planned.point.config) for key in keys],
            "axes": planned.point.axes,
            "control": planned.point.is_control,
            "index": planned.index,
            "fingerprint": planned.identity.fingerprint,
            "home": home,
        }
        for planned, home in points
    ]
    return {"sections": tables, "points": rows}


def cut(points: Sequence[PlannedPoint], count: int) -> list[list[PlannedPoint]]:
    """Return points in at most so many shards of about equal work, each of one engine, in their order.

    A control is in the shard of the first of its points.
    """
    total = sum(map(work, points)) or 1
    shards: list[list[PlannedPoint]] = []
    done = 0
    for planned in points:
        wanted = min(count - 1, done * count // total)
        fits = shards and shards[-1][0].point.engine_spec == planned.point.engine_spec
        if not fits or (wanted >= len(shards) and not shards[-1][-1].point.is_control):
            shards.append([])
        shards[-1].append(planned)
        done += work(planned)
    return shards


def work(planned: PlannedPoint) -> int:
    """Return how much is to be generated for a point: the most tokens, its prompts counted for a tenth."""
    sampling = planned.point.config.sampling
    prompts = sum(len(encoded.token_ids) for encoded in planned.prompts)
    return planned.runs * (len(planned.prompts) * sampling.n * sampling.max_tokens + prompts // 10)


def _write_private(path: Path, plain: dict[str, Any]) -> None:
    """Write what only the user may read: addresses may have passwords in them."""

    def write(temporary: Path) -> None:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump(plain, file, ensure_ascii=False, separators=(",", ":"))

    atomic.replace(path, write)


def _read(path: Path) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}; plan again.") from error
    return plain
