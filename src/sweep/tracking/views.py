"""Saved view of a sweep's charts for MLflow's runs page.

The format is that of the user interface and not documented. It was observed with MLflow 3.15 to 3.18, whose demo data
use it. If it changes, a link opens the page without the view; nothing else is lost.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

TAG = "mlflow.sharedViewState."
LIMIT = 20_000  # maximum number of characters of an experiment's tag
MAX_CHARTS = 12


def view_tag(view_id: str, name: str, now_ms: int, state: dict[str, Any]) -> tuple[str, str]:
    """Return key and value of the experiment tag that saves a view under its id."""
    packed = base64.b64encode(zlib.compress(json.dumps(state, separators=(",", ":")).encode())).decode()
    value = {"name": name, "createdAt": now_ms, "updatedAt": now_ms, "state": f"deflate;{packed}"}
    return TAG + view_id, json.dumps(value)


def sweep_view(view_id: str, search: str, order: str, axes: Sequence[str], measures: Sequence[str]) -> dict[str, Any]:
    """Return a view with scatter plots of measures over swept numbers, parallel coordinates, and differences.

    Args:
        view_id: seed of the charts' ids, so that saving the same view twice gives the same ids.
        search: filter of the runs page.
        order: order of the runs page, such as "metrics.`sweep/index`".
        axes: metric names of the swept numbers.
        measures: metric names of the measures.
    """
    section = _id(view_id, "section")
    charts = [
        {"uuid": _id(view_id, str(number)), "metricSectionId": section, "deleted": False, "isGenerated": False} | chart
        for number, chart in enumerate(_charts(axes, measures))
    ]
    return {
        "searchFilter": search,
        "orderByKey": order,
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [f"metrics.`{name}`" for name in (*axes, *measures)],
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "SHOWALL",
        "compareRunCharts": charts,
        "compareRunSections": [
            {
                "uuid": section,
                "name": "sweep",
                "display": True,
                "isReordered": True,
                "deleted": False,
                "isGenerated": False,
            }
        ],
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _charts(axes: Sequence[str], measures: Sequence[str]) -> Iterator[dict[str, Any]]:
    pairs = [(axis, measure) for axis in axes for measure in measures][:MAX_CHARTS]
    for axis, measure in pairs:
        yield {
            "type": "SCATTER",
            "runsCountToCompare": 100,
            "xaxis": {"key": axis, "type": "METRIC"},
            "yaxis": {"key": measure, "type": "METRIC"},
        }
    yield {
        "type": "PARALLEL",
        "runsCountToCompare": 100,
        "selectedParams": [],
        "selectedMetrics": [*axes, *measures],
        "showAllRuns": True,
    }
    yield {
        "type": "DIFFERENCE",
        "runsCountToCompare": 10,
        "compareGroups": ["PARAMETER_ATTRIBUTES", "MODEL_METRICS"],
        "chartName": "Differences",
        "showChangeFromBaseline": True,
        "showDifferencesOnly": True,
    }


def _id(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]
