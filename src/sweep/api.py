"""A sweep's results in a notebook."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

GENERATIONS, POINTS = "generations.parquet", "points.csv"


def load(sweep: str | Path | None = None, dir: str | Path = "outputs", *, points: bool = False) -> pd.DataFrame:
    """Return a sweep's generations with their scores, one row for each; or its points with theirs.

    Args:
        sweep: a sweep's id or the beginning of it, or its folder; None for the newest in `dir`.
        dir: what `sweep.dir` was.
        points: whether to return the points instead.

    Returns:
        The columns of `SweepResults.generations` or `SweepResults.points`.  With the generations, `attrs` has
        `sweep_id`, `name`, `command` and `confidence`.

    Raises:
        FileNotFoundError: there is no such sweep, or it has no report (yet).
        ValueError: several sweeps' ids begin like that.
    """
    file = _report(sweep, Path(dir).expanduser()) / (POINTS if points else GENERATIONS)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there: that sweep has written no report.")
    if not points:
        return pd.read_parquet(file)
    # A swept value may well be called "none".
    return pd.read_csv(file, keep_default_na=False, na_values=[""])


def _report(sweep: str | Path | None, root: Path) -> Path:
    if sweep is not None and (folder := Path(sweep).expanduser()).is_dir():
        reports = [folder, folder / "report"]
        return next((path for path in reports if (path / GENERATIONS).is_file()), folder / "report")
    sweeps = root / "sweeps"
    ids = sorted(path.name for path in sweeps.iterdir() if path.is_dir()) if sweeps.is_dir() else []
    if sweep is None:
        reported = [path for path in (sweeps / name / "report" for name in ids) if (path / GENERATIONS).is_file()]
        if not reported:
            raise FileNotFoundError(f"No sweep in {sweeps.absolute()} has written a report; dir= says where to look.")
        return max(reported, key=lambda path: (path / GENERATIONS).stat().st_mtime_ns)
    found = [name for name in ids if name == str(sweep)] or [name for name in ids if name.startswith(str(sweep))]
    if len(found) > 1:
        raise ValueError(f"{sweep!r} is the beginning of several sweeps: {', '.join(found)}.")
    if not found:
        there = f"there are {', '.join(ids[-5:])}" if ids else "there are none"
        raise FileNotFoundError(f"No folder or sweep {str(sweep)!r} in {sweeps.absolute()}; {there}.")
    return sweeps / found[0] / "report"
