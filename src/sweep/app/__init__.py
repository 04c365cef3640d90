"""Application: the sweep folder, its lock, the dry run and the runner."""
