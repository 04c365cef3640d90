"""MLflow: what is published of a sweep, and where it is seen.  Only this package knows MLflow."""

from sweep.tracking.records import Closing, PointRecord
from sweep.tracking.tracker import Tracker

__all__ = ["Closing", "PointRecord", "Tracker"]
