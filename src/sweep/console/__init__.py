"""Console: terminal output, streams and signals."""
