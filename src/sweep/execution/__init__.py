"""Execution: runs the requests of planned points on an engine, with prefetch and resume."""
