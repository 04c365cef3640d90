"""Values that all packages share: records, seeds, timing and versions."""
