"""MLflow: what is published of a sweep, and where it is seen.  Only this package knows MLflow."""

from sweep.tracking.process import AnyTracker, open_tracker
from sweep.tracking.records import Closing, PointRecord
from sweep.tracking.tracker import Tracker

__all__ = ["AnyTracker", "Closing", "PointRecord", "Tracker", "open_tracker"]
