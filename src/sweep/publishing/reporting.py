"""What compared points come to: files in the sweep's folder, and what MLflow is given of that."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from sweep.config import SweepConfig
from sweep.disk.archive import Archive, Archived
from sweep.outcome import PointResult
from sweep.report import FOLDER
from sweep.report.comparison import Comparison, Difference
from sweep.tracking import Closing


def report(
    base: SweepConfig,
    sweep_id: str,
    command: str,
    comparison: Comparison,
    results: Mapping[str, PointResult],
    archive: Archive,
    archived: Mapping[str, Archived],
) -> Closing:
    """Write the report, and return what MLflow is given of it.

    Args:
        comparison: of the results.
        results: of all points, with their values, by `Identity.result_key`.
        archived: their files, by the same.

    Raises:
        OSError, JournalError: the report cannot be written, or a point's file not be read.
    """
    # Or Matplotlib would leave its cache in the user's home.
    os.environ.setdefault("MPLCONFIGDIR", str(base.sweep.root / ".cache" / "matplotlib"))
    from sweep.report import closing, files
    from sweep.report.results import tables

    confidence, folder = base.scoring.confidence, base.sweep.root / "sweeps" / sweep_id / FOLDER
    laid_out = tables(
        comparison,
        archive.read([key for key, file in archived.items() if file.done]),
        sweep_id=sweep_id,
        name=base.sweep.name or sweep_id,
        command=command,
        confidence=confidence,
    )
    files.write(laid_out, folder)
    return Closing(
        series=closing.series(comparison),
        files=folder,
        axes=[f"axis/{key}" for key in laid_out.axes],
        measures=closing.shown_measures(comparison),
        differences={key: _metrics_of(comparison.differences.get(result.index, {})) for key, result in results.items()},
        time=max(file.record.ended for file in archived.values()),
    )


def _metrics_of(differences: Mapping[str, Difference]) -> dict[str, float]:
    metrics = {}
    for measure, difference in differences.items():
        metrics[f"{measure}/difference"] = difference.mean
        metrics[f"{measure}/difference/ci_low"] = difference.ci_low
        metrics[f"{measure}/difference/ci_high"] = difference.ci_high
        metrics |= {f"{measure}/p": difference.p, f"{measure}/q": difference.q}
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
