"""Report writer: files in the sweep's folder, and the closing data for MLflow."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from sweep.config.schema import SweepConfig
from sweep.planning.results import PointResult
from sweep.report import FOLDER
from sweep.report.comparison import Comparison
from sweep.storage.archive import Archive, Archived
from sweep.tracking import Closing


def report(
    base: SweepConfig,
    sweep_id: str,
    name: str,
    command: str,
    comparison: Comparison,
    results: Mapping[str, PointResult],
    archive: Archive,
    archived: Mapping[str, Archived],
) -> Closing:
    """Write the report, and return the closing data for MLflow.

    Args:
        base: the sweep's base configuration.
        sweep_id: the sweep's id.
        name: the sweep's name, without secrets.
        command: the command that ran the sweep.
        comparison: comparison of `results`.
        results: results of all points with their values, by `PointFingerprint.result_key`.
        archive: where to read generations from.
        archived: the points' archive files, by `PointFingerprint.result_key`.

    Raises:
        OSError: the report cannot be written.
        JournalError: a point's file cannot be read.
    """
    # Otherwise Matplotlib would put its cache into the user's home.
    os.environ.setdefault("MPLCONFIGDIR", str(base.sweep.root / ".cache" / "matplotlib"))
    from sweep.report import files, run_summary
    from sweep.report.results import tables

    confidence, folder = base.scoring.confidence, base.sweep.root / "sweeps" / sweep_id / FOLDER
    results_tables = tables(
        comparison,
        archive.read([key for key, file in archived.items() if file.done]),
        sweep_id=sweep_id,
        name=name,
        command=command,
        confidence=confidence,
    )
    files.write(results_tables, folder)
    return Closing(
        name=name,
        series=run_summary.point_metrics(comparison),
        files=folder,
        axes=[f"axis/{key}" for key in results_tables.axes],
        measures=run_summary.shown_measures(comparison),
        differences={key: _metrics_of(comparison, result.index) for key, result in results.items()},
        time=max(file.record.ended for file in archived.values()),
    )


def _metrics_of(comparison: Comparison, index: int) -> dict[str, float]:
    """Return a point's differences as metrics; for a control, also its neutral doses."""
    metrics = {f"axis/{key}": dose for key, dose in comparison.neutral.get(index, {}).items()}
    for measure, difference in comparison.differences.get(index, {}).items():
        metrics[f"{measure}/difference"] = difference.mean
        metrics[f"{measure}/difference/ci_low"] = difference.ci_low
        metrics[f"{measure}/difference/ci_high"] = difference.ci_high
        metrics |= {f"{measure}/p": difference.p, f"{measure}/q": difference.q}
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
