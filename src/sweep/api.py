"""Python API: load a sweep's results in a notebook, and compare points of one sweep or of two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sweep.report import GENERATIONS, POINTS
from sweep.report.frame_contrasts import frame_contrasts
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


def contrast(
    first: pd.DataFrame,
    second: pd.DataFrame,
    measures: Sequence[str] | None = None,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Return the differences between points of two sweeps, or of one, paired by prompt id: first minus second.

    A single point is compared with each point of the other side. Several points on both sides are paired by name.
    Intervals and tests are those of the report: BCa, or Agresti and Min's for yes-or-no measures; a sign-flip
    permutation test, or McNemar's exact test. Samples of a prompt are averaged first. Divergences of two controls,
    their noise floors, are not compared.

    Args:
        first: generations, as `load` returns them, or some of their rows: `answers[answers["name"] == "factor=1.2"]`.
        second: likewise; its values are subtracted.
        measures: names such as `quality/contains` or `contains`; None: all measures of both that the report tests.
        confidence: level of the intervals, in (0, 1).

    Returns:
        One row per pair and measure: `first`, `second`, `measure`, `difference`, `difference/ci_low`,
        `difference/ci_high`, `p` (two-sided), `q` (p after Benjamini and Hochberg, over all rows of a group of
        measures), `significant` (q < 0.05), `gained` and `lost` (of a yes-or-no measure, the prompts with a higher and
        with a lower value at the first point), `n` (prompts that both have), `only_first`, `only_second`.

    Raises:
        ValueError: The frames have no generations, no points to pair, no prompt or no measure in common.
    """
    return frame_contrasts(first, second, measures, confidence)


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
