"""Presentation of results: terminal table, HTML report, plots, and tables for notebooks.

This package imports nothing, so that each of them loads only the libraries that it needs.
"""

FOLDER, REPORT = "report", "report.html"
GENERATIONS, POINTS = "generations.parquet", "points.csv"
