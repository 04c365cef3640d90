"""Links into MLflow's user interface that open at what they promise.

An experiment's bare link shows an empty page; these carry filter, order and view.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, urlencode

LOCAL_UI = "http://127.0.0.1:5000"
ORDER = "metrics.`sweep/index`"


@dataclass(frozen=True, slots=True)
class Links:
    """The pages of one sweep.

    Attributes:
        base: the address of the user interface.
        experiment: MLflow's id of it.
        sweep_id: the sweep's.
    """

    base: str
    experiment: str
    sweep_id: str

    @property
    def search(self) -> str:
        """The runs page's filter: this sweep's points."""
        return f"tags.`sweep.id` = '{self.sweep_id}' AND tags.`sweep.role` != 'sweep'"

    @property
    def side_by_side(self) -> str:
        """The points side by side, prompts as rows; within the user interface."""
        query = {"searchFilter": self.search, "orderByKey": ORDER, "orderByAsc": "true", "compareRunsMode": "ARTIFACT"}
        return f"#/experiments/{self.experiment}/runs?{urlencode(query, quote_via=quote, safe='')}"

    @property
    def charts(self) -> str:
        """The saved view of charts; within the user interface."""
        query = {"viewStateShareKey": self.sweep_id, "compareRunsMode": "CHART"}
        return f"#/experiments/{self.experiment}/runs?{urlencode(query, quote_via=quote, safe='')}"

    def row_by_row(self, control: str, point: str) -> str:
        """The traces of a point's run beside those of the control's, by the runs' ids; within the user interface.

        Other points can be chosen there.
        """
        query = {"workflowType": "genai", "selectedRunUuid": point, "compareToRunUuid": control}
        return f"#/experiments/{self.experiment}/evaluation-runs?{urlencode(query)}"

    def full(self, page: str) -> str:
        """Return a page's whole address."""
        return f"{self.base.rstrip('/')}/{page}"
