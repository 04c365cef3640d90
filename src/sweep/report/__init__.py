"""What a sweep's user gets to see: the table in the terminal, the report, plots for papers, tables for notebooks.

Nothing is imported here, so that each of them costs only what it needs itself.
"""

FOLDER, REPORT = "report", "report.html"
