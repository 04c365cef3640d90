"""A saved view of a sweep's charts, in the form in which MLflow's runs page keeps such views.

The form is that of the user interface (seen with MLflow 3.15 to 3.18, whose own demo data is written in it) and not
documented: if it changes, a link opens the page without the view, and nothing else is lost.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

TAG = "mlflow.sharedViewState."
LIMIT = 20_000  # characters of an experiment's tag
MOST_CHARTS = 12


def view_tag(view_id: str, name: str, now_ms: int, state: dict[str, Any]) -> tuple[str, str]:
    """Return the experiment tag, key and value, that makes a view known under its id."""
    packed = base64.b64encode(zlib.compress(json.dumps(state, separators=(",", ":")).encode())).decode()
    value = {"name": name, "createdAt": now_ms, "updatedAt": now_ms, "state": f"deflate;{packed}"}
    return TAG + view_id, json.dumps(value)


def sweep_view(view_id: str, search: str, order: str, axes: Sequence[str], measures: Sequence[str]) -> dict[str, Any]:
    """Return a view: scatter plots of measures over the swept numbers, parallel coordinates, and differences.

    Args:
        view_id: seeds the ids of the charts, so that a view written twice is the same view.
        search: the runs page's filter.
        order: its order, such as "metrics.`sweep/index`".
        axes: names of metrics that hold the swept numbers.
        measures: names of metrics.
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
    pairs = [(axis, measure) for axis in axes for measure in measures][:MOST_CHARTS]
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
