"""Python API: load a sweep's results in a notebook."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from sweep.report import GENERATIONS, POINTS
from sweep.report.summary import name_of


def load(sweep: str | Path | None = None, dir: str | Path = "outputs", *, points: bool = False) -> pd.DataFrame:
    """Return a sweep's generations or points, with their scores.

    Args:
        sweep: Name of a sweep, its id or the beginning of the id, or its folder. None selects the newest sweep in
            `dir`. If several sweeps have the name, the newest is read.
        dir: The `sweep.dir` that the sweep wrote to.
        points: Return one row for each point instead of one for each generation.

    Returns:
        The columns of `SweepResults.generations` or `SweepResults.points`. With generations, `attrs` holds
        `sweep_id`, `name`, `command` and `confidence`.

    Raises:
        FileNotFoundError: No such sweep exists, or it has not written a report yet.
        ValueError: Several sweep ids begin with `sweep`.
    """
    file = _report_folder(sweep, Path(dir).expanduser()) / (POINTS if points else GENERATIONS)
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: the sweep has not written a report yet.")
    if not points:
        return pd.read_parquet(file)
    # Only empty cells are missing: a swept value may be the text "none".
    return pd.read_csv(file, keep_default_na=False, na_values=[""])


def _report_folder(sweep: str | Path | None, root: Path) -> Path:
    if sweep is not None and _is_folder(folder := Path(sweep).expanduser()):
        reports = [folder, folder / "report"]
        return next((path for path in reports if (path / GENERATIONS).is_file()), folder / "report")
    sweeps = root / "sweeps"
    started = sorted(path.name for path in sweeps.iterdir() if path.is_dir()) if sweeps.is_dir() else []
    ids = [name for name in started if (sweeps / name / "report" / GENERATIONS).is_file()]
    if sweep is None:
        if not ids:
            raise FileNotFoundError(
                f"No sweep in {sweeps.absolute()} has written a report. Set dir= to the sweep.dir it wrote to."
            )
        return max((sweeps / name / "report" for name in ids), key=lambda path: (path / GENERATIONS).stat().st_mtime_ns)
    matches = _matching_ids(str(sweep), ids)
    if not matches:
        newest = sorted(ids, key=lambda name: (sweeps / name / "report" / GENERATIONS).stat().st_mtime_ns, reverse=True)
        matches = [name for name in newest if name_of(sweeps / name / "report") == sweep][:1]
    if len(matches) > 1:
        raise ValueError(f"Several sweep ids begin with {sweep!r}: {', '.join(matches)}. Pass more of the id.")
    if not matches:
        available = f"Sweeps with a report: {', '.join(ids[-5:])}." if ids else "No sweep there has a report."
        if unfinished := _matching_ids(str(sweep), started):
            raise FileNotFoundError(
                f"Sweep {unfinished[0]} in {sweeps.absolute()} has not written a report yet. {available}"
            )
        raise FileNotFoundError(f"No folder and no sweep {str(sweep)!r} in {sweeps.absolute()}. {available}")
    return sweeps / matches[0] / "report"


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name too long for a folder
        return False


def _matching_ids(prefix: str, ids: list[str]) -> list[str]:
    return [name for name in ids if name == prefix] or [name for name in ids if name.startswith(prefix)]
