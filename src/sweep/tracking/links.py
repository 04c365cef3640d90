"""Links to a sweep's pages in MLflow's user interface.

They carry filter, order and view, since the bare link of an experiment shows an empty page.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, urlencode

LOCAL_UI = "http://127.0.0.1:5000"
ORDER = "metrics.`sweep/index`"


@dataclass(frozen=True, slots=True)
class Links:
    """Pages of one sweep.

    Attributes:
        base: address of the user interface.
        experiment: id of the experiment in MLflow.
        sweep_id: the sweep's id.
    """

    base: str
    experiment: str
    sweep_id: str

    @property
    def search(self) -> str:
        """Filter of the runs page: this sweep's points."""
        return f"tags.`sweep.id` = '{self.sweep_id}' AND tags.`sweep.role` != 'sweep'"

    @property
    def side_by_side(self) -> str:
        """The points side by side with prompts as rows; path within the user interface."""
        query = {"searchFilter": self.search, "orderByKey": ORDER, "orderByAsc": "true", "compareRunsMode": "ARTIFACT"}
        return f"#/experiments/{self.experiment}/runs?{urlencode(query, quote_via=quote, safe='')}"

    @property
    def charts(self) -> str:
        """The saved view of charts; path within the user interface."""
        query = {"viewStateShareKey": self.sweep_id, "compareRunsMode": "CHART"}
        return f"#/experiments/{self.experiment}/runs?{urlencode(query, quote_via=quote, safe='')}"

    def row_by_row(self, control: str, point: str) -> str:
        """Return the page that compares a point's traces with the control's; path within the user interface.

        Other points can be selected there.

        Args:
            control: run id of the control.
            point: run id of the point.
        """
        query = {"workflowType": "genai", "selectedRunUuid": point, "compareToRunUuid": control}
        return f"#/experiments/{self.experiment}/evaluation-runs?{urlencode(query)}"

    def full(self, page: str) -> str:
        """Return the full address of a page."""
        return f"{self.base.rstrip('/')}/{page}"
