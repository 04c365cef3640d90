"""MLflow tracking: publishes a sweep's results, and links to them. Only this package imports MLflow."""

from sweep.core.records import Closing, PointRecord, Publication
from sweep.tracking.process import AnyTracker, open_tracker
from sweep.tracking.tracker import Tracker

__all__ = ["AnyTracker", "Closing", "PointRecord", "Publication", "Tracker", "open_tracker"]
